"""Label Studio: JSON (tasks with annotations or predictions) of TimelineLabels and Choices over a Video.

Its frames are the player's time times the rate of the Video tag (``frameRate``, 24 by default), from 1 on, the
last one included. They are those of the file only by chance, so the rate has to be given.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookupvit_video.files import write_json
from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark
from lookupvit_video.preparation.labelling.files import grouped, read_json

CONVENTION = Convention("frames", base=1, inclusive=True, rounding=0.001)
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


def read(path: Path) -> list[Mark]:
    """Return the labels of the first annotation of each task that was not cancelled, and its predictions."""
    marks: list[Mark] = []
    for task in read_json(path):
        done = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
        address = task["data"].get("video") or "".join(list(task["data"].values())[:1])
        name = _UPLOADED.sub("", re.split(r"[/\\]|d=", address)[-1])
        marks += _marks(name, done[0]["result"]) if done else []
        for each in task.get("predictions", []):
            marks += [mark._replace(score=each.get("score", 0.0)) for mark in _marks(name, each["result"])]
    return marks


def _marks(name: str, results: Sequence[dict[str, Any]]) -> list[Mark]:
    marks = []
    for result in results:
        value = result["value"]
        if result["type"] == "choices":
            marks += [Mark(name, label) for label in value["choices"]]
        elif result["type"] == "timelinelabels":
            spans = [(part["start"], part["end"]) for part in value["ranges"]]
            marks += [Mark(name, label, *span) for span in spans for label in value["timelinelabels"]]
    return marks


def write(marks: Sequence[Mark], path: Path, clocks: dict[str, Clock]) -> None:
    """Write tasks; labels with a score are predictions, which annotators start from."""
    tasks = []
    for video, its in grouped(marks, lambda mark: mark.video).items():
        task: dict[str, Any] = {"data": {"video": video}}
        for kind, chosen in (
            ("annotations", [mark for mark in its if mark.score is None]),
            ("predictions", [mark for mark in its if mark.score is not None]),
        ):
            if chosen:
                scores = {"score": min(mark.score or 0.0 for mark in chosen)} if kind == "predictions" else {}
                task[kind] = [{"result": [_result(number, mark) for number, mark in enumerate(chosen)], **scores}]
        tasks.append(task)
    write_json(path, tasks)


def _result(number: int, mark: Mark) -> dict[str, Any]:
    score = {} if mark.score is None else {"score": mark.score}
    common = {"id": f"r{number}", "to_name": "video", **score}
    if mark.start is None:
        return common | {"from_name": "choice", "type": "choices", "value": {"choices": [mark.label]}}
    value = {"ranges": [{"start": mark.start, "end": mark.end}], "timelinelabels": [mark.label]}
    return common | {"from_name": "label", "type": "timelinelabels", "value": value}
