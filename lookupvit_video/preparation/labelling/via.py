"""VIA, the VGG Image Annotator 3: a project's JSON with temporal segments in seconds of the player."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookupvit_video.files import write_json
from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark
from lookupvit_video.preparation.labelling.files import read_json

CONVENTION = Convention("seconds")


def read(path: Path) -> list[Mark]:
    """Return the segments, and the labels of complete files, of every attribute with options or text."""
    project = read_json(path)
    names = {key: each["fname"] for key, each in project["file"].items()}
    files = {key: [names[str(fid)] for fid in view["fid_list"]] for key, view in project["view"].items()}
    marks = []
    for each in project["metadata"].values():
        for key, value in each["av"].items():
            labels = project["attribute"][key].get("options") or {}
            span = tuple(each["z"])
            if each["xy"] or len(span) not in (0, 2):
                continue  # a region of the picture, or a single moment
            for choice in str(value).split(",") if labels else [value]:
                marks += [Mark(name, str(labels.get(choice, choice)), *span) for name in files[str(each["vid"])]]
    return marks


def write(marks: Sequence[Mark], path: Path, clocks: dict[str, Clock]) -> None:
    """Write a project with one attribute, "label"."""
    labels = {name: str(number) for number, name in enumerate(sorted({mark.label for mark in marks}))}
    videos = {video: str(number) for number, video in enumerate(dict.fromkeys(m.video for m in marks), start=1)}
    metadata: dict[str, Any] = {}
    for number, mark in enumerate(marks):
        span = [] if mark.start is None else [mark.start, mark.end]
        metadata[f"{videos[mark.video]}_{number:08d}"] = {
            "vid": videos[mark.video], "flg": 0, "z": span, "xy": [], "av": {"1": labels[mark.label]},
        }  # fmt: skip
    attribute = {
        "aname": "label", "anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "", "default_option_id": "",
        "options": {number: name for name, number in labels.items()},
    }  # fmt: skip
    project = {
        "project": {"pid": "__VIA_PROJECT_ID__", "rev": "__VIA_PROJECT_REV_ID__", "pname": path.stem, "creator": "VIA",
                    "data_format_version": "3.1.1", "vid_list": list(videos.values())},
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
        "attribute": {"1": attribute},
        "file": {key: {"fid": int(key), "fname": Path(video).name, "type": 4, "loc": 3, "src": video}
                 for video, key in videos.items()},
        "view": {key: {"fid_list": [key]} for key in videos.values()},
        "metadata": metadata,
    }  # fmt: skip
    write_json(path, project)
