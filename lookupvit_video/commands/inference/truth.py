"""`lookupvit timeline --truth`: the segments found in untrimmed videos against labelled ones."""

import argparse
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands.run_command import print_error
from lookupvit_video.files import write_json
from lookupvit_video.text import aligned_table, write_csv

if TYPE_CHECKING:
    from lookupvit_video.evaluation.temporal import Labelled
    from lookupvit_video.inference.predictor import Predictor
    from lookupvit_video.inference.timeline import Segment, Timeline

HARD = 10  # windows of a video


def score_list(predictor: "Predictor", arguments: argparse.Namespace) -> int:
    """Find the segments of each video of the list --truth, print how they compare, and write what was asked for.

    Of several values of --change-cost, what is written is of the one with the highest segment F1.
    """
    from lookupvit_video.evaluation.temporal import Labelled, temporal_metrics
    from lookupvit_video.inference.timeline import find_segments, timeline_as_json

    timelines, true, failed = _read_list(predictor, arguments)
    wanted = [each for each in true if each.label != arguments.background]
    hours = max(sum(windows.duration for windows in timelines), 1e-3) / 3600
    segments: dict[float, list[list[Segment]]] = {}
    metrics: dict[float, dict[str, float]] = {}
    for cost in arguments.change_cost:
        segments[cost] = [
            find_segments(windows, change_cost=cost, min_probability=arguments.min_probability) for windows in timelines
        ]
        found = [
            Labelled(windows.path, s.label, s.start, s.end, s.probability)
            for windows, its in zip(timelines, segments[cost], strict=True)
            for s in its
            if s.label != arguments.background
        ]
        metrics[cost] = temporal_metrics(found, wanted, hours)
    best = max(metrics, key=lambda cost: metrics[cost]["segment_f1"])
    _print_metrics(metrics, best)
    if arguments.json:
        facts: dict[str, Any] = {"change_cost": best, "metrics": metrics[best]}
        if len(metrics) > 1:
            facts["change_costs"] = {f"{cost:g}": each for cost, each in metrics.items()}
        pairs = zip(timelines, segments[best], strict=True)
        facts["timelines"] = [timeline_as_json(windows, its, arguments.topk) for windows, its in pairs]
        write_json(arguments.json, facts)
    if arguments.hard_negatives:
        hard = [row for windows in timelines for row in _hard_negatives(windows, true, arguments.background)]
        write_csv(arguments.hard_negatives, ["path", "label", "start", "end"], hard, end="\n")
    return 1 if failed else 0


def _read_list(predictor: "Predictor", arguments: argparse.Namespace) -> "tuple[list[Timeline], list[Labelled], int]":
    """Return the windows of each video of the list that can be read, all labelled segments, and how many cannot."""
    from lookupvit_video.data.manifest import read_manifest
    from lookupvit_video.decoding.backends import DecodeError
    from lookupvit_video.evaluation.temporal import Labelled
    from lookupvit_video.inference.timeline import read_timeline

    rows, classes = defaultdict(list), predictor.classes
    for video in read_manifest(arguments.truth, classes, multi_label=predictor.multi_label):
        rows[os.path.abspath(video.path)].append(video)
    timelines, true = [], []
    for path, its in rows.items():
        duration = 1e9  # what is in a video that cannot be read counts as missed
        try:
            windows = read_timeline(predictor, path, stride=arguments.stride, window=arguments.window,
                                    batch_size=arguments.batch_size)  # fmt: skip
            timelines.append(windows)
            duration = windows.duration
        except DecodeError as error:
            print_error(error)
        true += [Labelled(path, classes[k], *video.span(duration)) for video in its for k in video.every_label]
    return timelines, true, len(rows) - len(timelines)


def _print_metrics(metrics: dict[float, dict[str, float]], best: float) -> None:
    """Print a row for each metric, with a column for each change cost."""
    names = list(metrics[best])
    rows = [[name, *(f"{its[name]:g}" for its in metrics.values())] for name in names]
    if len(metrics) == 1:
        print(aligned_table(rows), end="")
        return
    print(aligned_table([["change cost", *(f"{cost:g}" for cost in metrics)], *rows]), end="")
    print(f"highest segment F1: --change-cost {best:g}")


def _hard_negatives(windows: "Timeline", true: "list[Labelled]", background: str) -> list[list[Any]]:
    """Return the rows of the windows outside of all labelled segments with the highest probability of some class."""
    from lookupvit_video.evaluation.temporal import hard_windows

    named = [label for label, name in enumerate(windows.classes) if name != background]
    spans = [(each.start, each.end) for each in true if each.video == windows.path and each.label != background]
    wrong, ends = windows.probabilities[:, named].max(1), windows.starts + windows.window
    found = hard_windows(windows.starts, ends, wrong, spans, HARD)
    return [[windows.path, background, windows.starts[i], ends[i]] for i in found]
