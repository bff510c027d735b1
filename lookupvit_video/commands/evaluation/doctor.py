"""`lookupvit check --model` and the page of `lookupvit check`: what a person should look at."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from lookupvit_video.distributed.world import World
    from lookupvit_video.preparation.check import ListedVideo

PAIRS = 20  # of classes, on the page


class Labels(NamedTuple):
    """What a model makes of the labels."""

    suspects: "Sequence[ListedVideo]" = ()
    """The likeliest errors first."""
    pairs: Sequence[tuple[str, str, float]] = ()
    """Classes that look alike, and the share of their videos answered as the other one."""


def look_at_labels(rows: "Sequence[ListedVideo]", arguments: argparse.Namespace, world: "World") -> Labels:
    """Note the rows whose labels are probably wrong, by the features of --model and a classifier a fold.

    The processes share the videos; the main one, which alone knows all problems, finds the labels.
    """
    import numpy as np

    from lookupvit_video.distributed.world import gather_objects, report_lost_processes
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.preparation.doctor.labels import alike_classes, likely_errors, out_of_fold
    from lookupvit_video.preparation.inspect_file import Problem

    usable = [row for row in rows if row.label and row.file.frames and row.video.labels is None and not row.is_bad]
    predictor = load_model(arguments.model, arguments.device)
    with report_lost_processes(world):
        places = {id(row): number for number, row in enumerate(rows)}
        usable = [rows[number] for number in gather_objects([places[id(row)] for row in usable], world)[0]]
        shares = gather_objects(features_of(predictor, usable[world.rank :: world.size]), world)
    if not world.is_main:
        return Labels()
    features = [shares[number % world.size][number // world.size] for number in range(len(usable))]
    usable = [row for row, feature in zip(usable, features, strict=True) if feature is not None]
    names = sorted({row.label for row in usable})
    labels = np.array([names.index(row.label) for row in usable])
    groups = [row.video.group or os.path.abspath(row.video.path) for row in usable]
    answers = out_of_fold(np.array([feature for feature in features if feature is not None]), labels, groups)
    found = likely_errors(answers, labels)
    for each in found:
        usable[each.row].problems.append(Problem("label", f"{names[each.likely]} is likelier by {each.margin:.2f}"))
    right = np.setdiff1d(np.arange(len(labels)), [each.row for each in found])  # wrong labels are no likeness
    pairs = [(names[a], names[b], share) for a, b, share in alike_classes(answers[right], labels[right])]
    return Labels([usable[each.row] for each in found], pairs)


def features_of(predictor: Any, rows: "Sequence[ListedVideo]") -> "list[np.ndarray | None]":
    """Return the mean pooled feature (D,) of each row's views; None where it cannot be read."""
    import torch

    from lookupvit_video.data.dataset import read_clips
    from lookupvit_video.data.transforms import eval_transform
    from lookupvit_video.decoding.backends import DecodeError
    from lookupvit_video.inference.features.extract import clip_features
    from lookupvit_video.progress import progress

    plan = predictor.plan
    transform = eval_transform(plan.size, plan.short_side, 1)
    found: list[Any] = []
    for row in progress(rows, total=len(rows), label="looking at labels", unit="videos"):
        try:
            clips = read_clips(row.video, plan.times, transform, plan.backend, timeout=plan.timeout)
        except DecodeError:
            found.append(None)
            continue
        found.append(clip_features(predictor, torch.stack(clips)).mean(0).numpy())
    return found


def write_problem_page(
    rows: "Sequence[ListedVideo]", summary: dict[str, Any], labels: Labels, arguments: argparse.Namespace
) -> None:
    """Write report.html: at most --sheet videos of each kind of problem, the likeliest label errors first."""
    from lookupvit_video.preparation.contact_sheet import strip_of_file
    from lookupvit_video.preparation.doctor.page import Card, Section, write_page
    from lookupvit_video.preparation.inspect_file import KINDS
    from lookupvit_video.processes.pool import run_isolated
    from lookupvit_video.progress import progress

    shown = {kind: [rows[number] for number in numbers] for kind, numbers in summary["problems"].items()}
    if labels.suspects:
        shown["label"] = list(labels.suspects)
    counts = {kind: len(its) for kind, its in shown.items()}
    shown = {kind: its[: arguments.sheet or 1] for kind, its in shown.items()}
    drawn = [row for its in shown.values() for row in its if row.file.frames] if arguments.sheet else []
    read: Callable[[int], Any] = partial(strip_of_file, rows=drawn)
    outcomes = run_isolated(read, range(len(drawn)), processes=arguments.processes, timeout=arguments.timeout)
    pictures = {
        id(drawn[o.number]): o.answer.picture
        for o in progress(outcomes, total=len(drawn), label="drawing", unit="videos")
        if o.answer is not None
    }
    sections = []
    for kind in sorted(shown, key=lambda kind: (kind != "label", not KINDS[kind].bad)):
        cards = [
            Card(row.label or row.split, row.video.path, next(p.detail for p in row.all_problems if p.kind == kind),
                 pictures.get(id(row)))
            for row in shown[kind]
        ]  # fmt: skip
        sections.append(Section(f"{kind}: {counts[kind]}", KINDS[kind].advice, cards))
    if labels.pairs:
        table = [["class", "class", "answered as the other"]]
        table += [[a, b, f"{100 * share:.1f} %"] for a, b, share in labels.pairs[:PAIRS]]
        sections.append(Section("classes that look alike", "by the same classifiers, most alike first", table=table))
    facts = [(split or "videos", f"{count['videos']} videos, {count['bad']} bad")
             for split, count in summary["splits"].items()]  # fmt: skip
    write_page(arguments.out / "report.html", "What to look at", facts, sections)
