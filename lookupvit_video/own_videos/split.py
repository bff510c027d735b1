"""A list of videos -> training, validation and test: by group, with each class in each split as far as possible."""

import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from lookupvit_video.data.manifest import Video, label_cell
from lookupvit_video.text import write_csv, write_text

SHARED_TEST = 200
"""With fewer videos, one held-out quarter serves as validation and test."""


def split_by_group(
    labels: Sequence[Sequence[int]],
    groups: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    fixed: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the split of each video: no group in two splits, the share of each class as near as that allows.

    Args:
        labels: of each video, one or several.
        shares: split -> its share; the first one is for training, and gets a video of each class.
        seed: the same seed, videos and groups give the same splits.
        fixed: the split of groups that have one already.
    """
    fixed = fixed or {}
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for every, group in zip(labels, groups, strict=True):
        counts[group].update(every)
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -counts[group].total())  # large ones first: small ones fill what is missing
    totals = Counter(label for every in labels for label in every)
    have: dict[str, Counter[int]] = {split: Counter() for split in shares}
    split_of: dict[str, str] = {}

    def put(group: str, split: str) -> None:
        if group in split_of:
            have[split_of[group]] -= counts[group]
        split_of[group] = split
        have[split] += counts[group]

    def missing(split: str, group: str) -> float:
        """How much of this group's classes a split still needs, with each class counting the same."""
        wanted = {label: shares[split] * totals[label] - have[split][label] for label in counts[group]}
        return sum(min(number, wanted[label]) / totals[label] for label, number in counts[group].items())

    for group in sorted(order, key=lambda group: group not in fixed):  # what is fixed comes first
        put(group, fixed.get(group) or max(reversed(list(shares)), key=lambda split: missing(split, group)))
    first, *others = shares
    for split in (first, *others):  # training first: what it lacks cannot be learned
        for label in sorted(totals):
            givers = [
                group for group in reversed(order)
                if split_of[group] != split and counts[group][label] and group not in fixed
            ]  # fmt: skip
            if split != first:  # from training only, and nothing of which it has no more
                givers = [
                    group for group in givers
                    if split_of[group] == first and all(have[first][k] > n for k, n in counts[group].items())
                ]  # fmt: skip
            if not have[split][label] and givers:
                put(givers[0], split)
    return [split_of[group] for group in groups]


def complete_splits(found: Mapping[str, list[Video]], seed: int) -> tuple[dict[str, list[Video]], list[str]]:
    """Return "train", "val" and "test" of what was found, and in words what was split."""
    splits = {split: list(videos) for split, videos in found.items()}
    said = []
    if "val" not in splits:
        ((source, videos),) = [item for item in splits.items() if item[0] != "test"]
        shares = {"train": 0.75, "val": 0.25}
        if "test" not in splits and len(videos) >= SHARED_TEST:
            shares = {"train": 0.7, "val": 0.15, "test": 0.15}
        names = split_by_group([v.every_label or (-1,) for v in videos], [v.group for v in videos], shares, seed)
        del splits[source]
        for split in shares:
            splits[split] = [video for video, name in zip(videos, names, strict=True) if name == split]
        groups = len({video.group for video in videos})
        by = f"by {groups} groups" if groups < len({video.path for video in videos}) else "by file"
        said.append(f"split {len(videos)} videos {by}, with RNG_SEED {seed}")
    if not splits["val"]:
        splits["val"] = splits["train"]
        said.append("too few groups to hold any out: validation and test are on the training videos, and prove nothing")
    if "test" not in splits:
        splits["test"] = splits["val"]
        said.append("the validation videos serve as test too; model.pt is not chosen by them")
    return splits, said


def shared_names(videos: Sequence[Video]) -> str:
    """Return a hint where files seem to be parts of one recording, named alike up to a last number; or nothing."""
    if any(video.group != video.path for video in videos):
        return ""
    parts: dict[tuple[str, int], int] = Counter()
    for video in videos:
        match = re.fullmatch(r"(.*?)[-_ .]\d+", Path(video.path).stem)
        parts[(match[1] if match else video.path, video.label)] += 1
    (name, label), most = max(parts.items(), key=lambda item: item[1])
    kinds = sum(of == label for _, of in parts)
    if most < 2 or kinds < 2 or len(parts) > 0.8 * len(videos):
        return ""
    return (
        f"{most} videos are named {name}_NUMBER: if videos named alike are parts of one recording, keep them in one "
        r"split, or the accuracy is too high: --group-by '([^/]*)[-_ .]\d+\.'"
    )


def imbalance(classes: Sequence[str], splits: Mapping[str, Sequence[Video]]) -> str:
    """Return a hint where the largest class of the test has a share that makes top-1 look good; or nothing."""
    if splits["train"][0].labels is not None:
        return ""
    counts = Counter(video.label for video in splits["train"])
    (most, many), (least, few) = max(counts.items(), key=_second), min(counts.items(), key=_second)
    if many < 5 * few:
        return ""
    tested = Counter(video.label for video in splits["test"])
    share = 100 * tested[most] / max(1, tested.total())
    return (
        f"{classes[most]!r} has {many} training videos and {classes[least]!r} {few}: always answering the former "
        f"gives {share:.0f} % top-1 in the test; compare mean_class_accuracy, or try DATA.SAMPLER balanced"
    )


def _second(item: tuple[int, int]) -> int:
    return item[1]


def write_splits(folder: Path, classes: Sequence[str], splits: Mapping[str, Sequence[Video]]) -> None:
    """Write train.csv, val.csv, test.csv and classes.txt, with absolute paths."""
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
    for split, videos in splits.items():
        rows = [
            [os.path.abspath(video.path), label_cell(video, classes),
             *("" if second is None else second for second in (video.start, video.end))]
            for video in videos
        ]  # fmt: skip
        write_csv(folder / f"{split}.csv", ["path", "label", "start", "end"], rows, end="\n")
