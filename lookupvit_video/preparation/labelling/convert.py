"""`lookupvit prepare import-labels` and `export-labels`: between the files of labelling tools and lists."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import simplejson

from lookupvit_video.data.manifest import has_several_labels, read_class_list, read_manifest
from lookupvit_video.data.video_files import find_video_files, some_videos
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.labelling import activitynet, cvat, elan, fiftyone, label_studio, via
from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark, Span
from lookupvit_video.preparation.labelling.files import named
from lookupvit_video.text import open_text, shown, write_csv, write_text

logger = logging.getLogger(__name__)
TOOLS: dict[str, ModuleType] = {
    "label-studio": label_studio, "cvat": cvat, "via": via, "fiftyone": fiftyone, "activitynet": activitynet,
    "elan": elan,
}  # fmt: skip
Follow = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Choices:
    """What the user knows of how a tool counted; None or empty: as the tool does."""

    rate: float | None = None
    base: int | None = None
    end: str = ""
    """"inclusive" or "exclusive"."""
    origin: str = ""

    def convention(self, tool: str) -> Convention:
        """Return how a tool counts, with these choices.

        Raises:
            UserError: a choice is missing, or does not fit the tool.
        """
        how: Convention = TOOLS[tool].CONVENTION
        if how.unit == "seconds" and (self.rate is not None or self.base is not None or self.end):
            raise UserError(f"--rate, --frame-base and --end are for frames; {tool} has seconds")
        if tool == "label-studio" and self.rate is None:
            raise UserError(
                "label-studio counts frames at the rate of its Video tag, not those of the file: give it with --rate "
                "(frameRate in the labeling interface; 24 where it is not set)"
            )
        how = replace(
            how, rate=self.rate, origin=self.origin, base=how.base if self.base is None else self.base,
            inclusive=self.end == "inclusive" if self.end else how.inclusive,
        )  # fmt: skip
        how.validate()
        return how


def import_labels(tool: str, sources: Sequence[Path], videos: Path, out: Path, choices: Choices, follow: Follow) -> int:
    """Write the labels of a tool's files as OUT/all.csv and OUT/classes.txt; return the number of rows.

    Args:
        videos: folder of the videos, which are found by name.
        follow: passes the videos through; a progress bar.

    Raises:
        UserError: names the file and what to do.
    """
    how = choices.convention(tool)
    marks: list[Mark] = []
    for source in sources:
        if not source.exists():
            raise UserError(f"{source}: no such file")
        with named(source, tool):
            marks += TOOLS[tool].read(source)
    predicted = sum(mark.score is not None for mark in marks)
    marks = [mark for mark in marks if mark.score is None]
    if predicted:
        logger.info("%d predictions (labels with a score) are left out", predicted)
    if not marks:
        raise UserError(f"{shown(map(str, sources))}: no labels of {tool}{' but predictions' * bool(predicted)}")
    find = _finder(videos)
    of_file: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        of_file[find(mark.video)].append(mark)
    spans = []
    for path in follow(list(of_file)):
        clock = Clock(path)
        spans += sorted(
            {clock.span(mark, how) for mark in of_file[path]}, key=lambda span: (span.start or 0, span.label)
        )
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in sorted({span.label for span in spans})))
    rows = [
        [os.path.abspath(s.path), s.label, *("" if t is None else repr(t) for t in (s.start, s.end))] for s in spans
    ]
    write_csv(out / "all.csv", ["path", "label", "start", "end"], rows, end="\n")
    return len(rows)


def _finder(folder: Path) -> Callable[[str], str]:
    """Return a function that finds a video by the name that a tool has for it."""
    files = some_videos(folder, find_video_files(folder))
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[file.name].append(file)
        by_name[file.stem].append(file)

    @cache
    def find(name: str) -> str:
        parts = [part for part in re.split(r"[/\\]", name.removeprefix("file://")) if part not in ("", ".", "..")]
        found = by_name.get(parts[-1] if parts else "", [])
        for count in range(2, len(parts) + 1):
            if len(found) > 1:  # of the same name in several folders, the one whose folders are alike
                found = [file for file in found if file.parts[-count:-1] == tuple(parts[-count:-1])] or found
        if len(found) != 1:
            what = f"is {shown(map(str, found))}" if found else "is not there"
            raise UserError(
                f"{folder}: the video {name!r} of the labels {what}; give the folder with just these videos"
            )
        return str(found[0])

    return find


def export_labels(tool: str, source: Path, out: Path, choices: Choices, follow: Follow) -> int:
    """Write a list, timelines or predictions as a tool's file; return the number of labels.

    Raises:
        UserError: names the file and what to do.
    """
    how = choices.convention(tool)
    spans = read_spans(source)
    clocks = {path: Clock(path) for path in follow(list(dict.fromkeys(span.path for span in spans)))}
    stems = {Path(path).stem for path in clocks}
    if len(stems) < len(clocks) and tool in ("fiftyone", "activitynet", "elan"):
        raise UserError(f"{source}: {tool} names videos by their files' names, and two of these are the same")
    marks = [clocks[span.path].mark(span, how) for span in spans]
    TOOLS[tool].write(marks, out, clocks)
    return len(marks)


def read_spans(source: Path) -> list[Span]:
    """Return the rows of a list, the segments of `timeline --json`, or the answers of `predict --json`.

    Raises:
        UserError: it is none of them.
    """
    if source.suffix.lower() not in (".json", ".jsonl"):
        return _of_list(source)
    with open_text(source) as file, named(source, "lookupvit timeline or predict"):
        text = file.read()
        if text.lstrip().startswith("{") and '"segments"' in text:
            entry = simplejson.loads(text)
            return [Span(entry["path"], each["label"], each["start"], each["end"], each["probability"])
                    for each in entry["segments"]]  # fmt: skip
        answers = [simplejson.loads(line) for line in text.splitlines() if line.strip()]
        return [span for answer in answers if "classes" in answer for span in _of_answer(answer)]


def _of_answer(answer: Mapping[str, Any]) -> list[Span]:
    scores = answer["classes"]
    chosen = answer.get("present", list(scores)[:1])
    return [] if answer.get("rejected") else [Span(answer["path"], name, score=scores[name]) for name in chosen]


def _of_list(source: Path) -> list[Span]:
    names = source.parent / "classes.txt"
    classes = read_class_list(names) if names.is_file() else [str(number) for number in range(100_000)]
    several = has_several_labels(source, classes)
    videos = read_manifest(source, classes, multi_label=several)
    return [Span(video.path, classes[label], video.start, video.end) for video in videos for label in video.every_label]
