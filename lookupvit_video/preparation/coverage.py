"""Which classes the lists have videos of, and what a model cannot learn from them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lookupvit_video.data.manifest import Video, class_folders, read_class_list, read_table
from lookupvit_video.data.video_table import every_label, path_hashes
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.check import ListedVideo
from lookupvit_video.text import one_line, shown


def coverage_warnings(classes: Sequence[str], used: Mapping[str, Collection[int]]) -> list[str]:
    """Return a line for each way in which the lists do not fit the classes.

    Args:
        classes: all class names.
        used: labels of the videos of each split, "train" among them.
    """
    train, count = set(used["train"]), len(classes)
    missing = [label for label in range(count) if label not in train]
    if count == 1:
        return [f"there is a single class ({one_line(classes[0])}): every answer is right, and nothing is learned"]
    warnings = []
    if len(train) == 1:
        warnings.append(
            f"all training videos are of a single class ({one_line(classes[next(iter(train))])}): a model learns to "
            "answer nothing else"
        )
    if missing:
        names = shown(classes[label] for label in missing)
        warnings.append(f"{len(missing)} of {count} classes have no training video ({names}): they cannot be learned")
    for split, labels in used.items():
        unlearned = sorted(set(labels).intersection(missing)) if split != "train" else []
        if unlearned:
            warnings.append(
                f"{len(unlearned)} classes have videos in {split} but none in training "
                f"({shown(classes[label] for label in unlearned)}): those videos will be answered wrongly"
            )
    everywhere = set().union(*used.values())
    if 0 not in everywhere and count - 1 in everywhere:
        warnings.append(
            f"no list has a video of label 0 ({one_line(classes[0])}): labels count from 0; if yours count from 1, "
            f"subtract 1 and set MODEL.NUM_CLASSES {count - 1}"
        )
    return warnings


IMBALANCED = 20  # times as many videos in the largest class as in the smallest


def imbalance_warning(classes: Sequence[str], labels: Collection[int]) -> str:
    """Return a line for training labels of which one class has far more than another; empty where none has."""
    counts = Counter(labels).most_common() or [(0, 0)]
    (most, many), (least, few) = counts[0], counts[-1]
    if many <= IMBALANCED * few:
        return ""
    return (
        f"{one_line(classes[most])} has {many} training videos and {one_line(classes[least])} has {few}: plain "
        "training neglects small classes; try DATA.SAMPLER balanced, and judge by mean_class_accuracy in TEST.METRICS "
        "(docs/labels.md)"
    )


def class_counts(videos: Sequence[Video], classes: Sequence[str]) -> str:
    """Return the videos a class as one line for a log: of up to ten classes all, of more the five with the fewest."""
    counts = Counter(every_label(videos).tolist())
    rows = [(counts[label], f"{one_line(name)} {counts[label]}") for label, name in enumerate(classes)]
    if len(rows) <= 10:
        return ", ".join(text for _, text in rows)
    fewest = ", ".join(text for _, text in sorted(rows)[:5])
    return f"fewest {fewest}; most {max(rows)[1]}"


def warnings_of_run(
    classes: Sequence[str], train: Sequence[Video], val: Sequence[Video], test_list: str = "", prefix: str = ""
) -> list[str]:
    """Return ``coverage_warnings`` of a run's lists, and what training shares with the others.

    Args:
        test_list: of a run with a test; it is left out where it cannot be read, which the test reports.
        prefix: see ``read_manifest``.
    """
    used, held_out = {"train": _labels(train), "validation": _labels(val)}, {"validation": val}
    with suppress(UserError):
        multi_label = train[0].labels is not None
        test = read_table(test_list, classes, prefix, multi_label=multi_label) if test_list else []
        if test not in (train, val):
            used["test"] = _labels(test)
        if test != val:
            held_out["test"] = test
    imbalance = imbalance_warning(classes, every_label(train).tolist())
    shared = [shared_warning(train, videos, split) for split, videos in held_out.items()]
    return [*coverage_warnings(classes, used), *filter(None, [imbalance, *shared])]


def shared_warning(train: Sequence[Video], held_out: Sequence[Video], split: str) -> str:
    """Return a line where files of a held-out split are in training too, whatever their spans; empty where none is."""
    rows = np.flatnonzero(np.isin(path_hashes(held_out), path_hashes(train)))
    shared = [held_out[row].path for row in rows.tolist()]
    if not shared:
        return ""
    return (
        f"{len(shared)} of {len(held_out)} {split} rows are of files that training reads too, such as "
        f"{one_line(shared[0])}: the accuracy will be too high; lookupvit prepare split makes lists that share none"
    )


def _labels(videos: Sequence[Video]) -> set[int]:
    return set(every_label(videos).tolist())


def warnings_of_rows(rows: Sequence[ListedVideo], classes: Sequence[str]) -> list[str]:
    """Return ``coverage_warnings`` of checked rows; bad files do not count.

    The split for training is the one whose name begins with "train", or the only one.

    Args:
        classes: all class names; empty: those that occur, or the numbers from 0 where all labels are numbers.
    """
    found = dict.fromkeys(row.label for row in rows if row.label)
    names = list(classes) or sorted(found)
    if not classes and names and all(name.isdecimal() for name in names):
        names = [str(label) for label in range(max(map(int, names)) + 1)]
    numbers = {name: label for label, name in enumerate(names)}
    splits = dict.fromkeys(row.split for row in rows)
    train = [split for split in splits if split.lower().startswith("train")] or list(splits)
    if len(train) != 1 or not found:
        return []
    used = {
        "train" if split == train[0] else split: {
            numbers[row.label] for row in rows if row.split == split and row.label in numbers and not row.is_bad
        }
        for split in splits
    }
    return coverage_warnings(names, used)


def classes_of_inputs(paths: Sequence[str]) -> list[str]:
    """Return the class names that belong to lists and folders: from classes.txt next to the lists, and of the folders.

    Raises:
        UserError: see ``read_class_list``.
    """
    names: dict[str, None] = {}
    for path in map(Path, paths):
        class_list = path.parent / "classes.txt"
        if path.is_dir():
            names |= dict.fromkeys(class_folders(path))
        elif class_list.is_file():
            names |= dict.fromkeys(read_class_list(class_list))
    return list(names)
