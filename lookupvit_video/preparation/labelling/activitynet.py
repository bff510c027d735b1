"""ActivityNet's and THUMOS' JSON: segments in seconds by video, as ground truth ("database") or answers ("results")."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookupvit_video.files import write_json
from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark
from lookupvit_video.preparation.labelling.files import grouped, read_json

CONVENTION = Convention("seconds", rounding=0.001)


def read(path: Path) -> list[Mark]:
    """Return all segments; those of results have scores."""
    content = read_json(path)
    entries = content.get("database") or content["results"]
    marks = []
    for name, entry in entries.items():
        annotations = entry.get("annotations", []) if isinstance(entry, dict) else entry
        for each in annotations:
            start, end = map(float, each["segment"])
            marks.append(Mark(name, each["label"], start, end, each.get("score")))
    return marks


def write(marks: Sequence[Mark], path: Path, clocks: dict[str, Clock]) -> None:
    """Write a database, or results where all labels have scores; a label without a span is that of all of the video."""
    videos = grouped(marks, lambda mark: mark.video)

    def annotation(mark: Mark) -> dict[str, Any]:
        end = clocks[mark.video].duration
        segment = [0.0, round(end, 3)] if mark.start is None else [mark.start, mark.end]
        return {"segment": segment, "label": mark.label} | ({} if mark.score is None else {"score": mark.score})

    found = {Path(video).stem: [annotation(mark) for mark in its] for video, its in videos.items()}
    if marks and all(mark.score is not None for mark in marks):
        write_json(path, {"version": "VERSION 1.3", "results": found, "external_data": {}})
        return
    database = {
        Path(video).stem: {
            "duration": round(clocks[video].duration, 3), "subset": "", "url": "",
            "resolution": f"{clocks[video].width}x{clocks[video].height}", "annotations": found[Path(video).stem],
        }
        for video in videos
    }  # fmt: skip
    write_json(path, {"version": "VERSION 1.3", "taxonomy": [], "database": database})
