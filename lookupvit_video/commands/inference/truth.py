"""`lookupvit timeline --truth`: the segments found in untrimmed videos against labelled ones."""

import argparse
import os
from collections import defaultdict
from typing import TYPE_CHECKING

from lookupvit_video.commands.run_command import print_error
from lookupvit_video.files import write_json
from lookupvit_video.text import aligned_table, write_csv

if TYPE_CHECKING:
    from lookupvit_video.inference.predictor import Predictor

HARD = 10  # windows of a video


def score_list(predictor: "Predictor", arguments: argparse.Namespace) -> int:
    """Find the segments of each video of the list --truth, print how they compare, and write what was asked for."""
    from lookupvit_video.data.manifest import read_manifest
    from lookupvit_video.decoding.backends import DecodeError
    from lookupvit_video.evaluation.temporal import Labelled, hard_windows, temporal_metrics
    from lookupvit_video.inference.timeline import find_segments, read_timeline, timeline_as_json

    rows, classes, background = defaultdict(list), predictor.classes, arguments.background
    for video in read_manifest(arguments.truth, classes, multi_label=predictor.multi_label):
        rows[os.path.abspath(video.path)].append(video)
    found, true, hard, timelines, seconds, failed = [], [], [], [], 0.0, 0
    for path, its in rows.items():
        try:
            windows = read_timeline(predictor, path, stride=arguments.stride, window=arguments.window,
                                    batch_size=arguments.batch_size)  # fmt: skip
        except DecodeError as error:  # what is in it counts as missed
            print_error(error)
            failed += 1
            true += [Labelled(path, classes[k], *v.span(v.end or 1e9)) for v in its for k in v.every_label]
            continue
        seconds += windows.duration
        segments = find_segments(windows, change_cost=arguments.change_cost, min_probability=arguments.min_probability)
        found += [Labelled(path, s.label, s.start, s.end, s.probability) for s in segments]
        true += [Labelled(path, classes[k], *v.span(windows.duration)) for v in its for k in v.every_label]
        timelines.append(timeline_as_json(windows, segments, arguments.topk))
        if arguments.hard_negatives:
            named = [label for label, name in enumerate(classes) if name != background]
            spans = [(each.start, each.end) for each in true if each.video == path and each.label != background]
            wrong, ends = windows.probabilities[:, named].max(1), windows.starts + windows.window
            hard += [[path, background, windows.starts[i], ends[i]]
                     for i in hard_windows(windows.starts, ends, wrong, spans, HARD)]  # fmt: skip
    found, true = ([each for each in side if each.label != background] for side in (found, true))
    metrics = temporal_metrics(found, true, max(seconds, 1e-3) / 3600)
    print(aligned_table([[name, f"{value:g}"] for name, value in metrics.items()]), end="")
    if arguments.json:
        write_json(arguments.json, {"metrics": metrics, "timelines": timelines})
    if arguments.hard_negatives:
        write_csv(arguments.hard_negatives, ["path", "label", "start", "end"], hard, end="\n")
    return 1 if failed else 0
