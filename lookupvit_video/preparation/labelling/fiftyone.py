"""FiftyOne: JSON of temporal detections or classifications, by name of file; or samples.json of a complete data set.

Its frames are those of the file, from 1 on, the last one included.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookupvit_video.files import write_json
from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark
from lookupvit_video.preparation.labelling.files import grouped, read_json

CONVENTION = Convention("frames", base=1, inclusive=True)


def read(path: Path) -> list[Mark]:
    """Return the labels of ``labels.json`` (FiftyOneTemporalDetectionDataset and the classification one) or samples."""
    content = read_json(path)
    if "samples" in content:
        return [mark for sample in content["samples"] for mark in _of_sample(sample)]
    classes = content.get("classes")
    return [mark for name, labels in content["labels"].items() for mark in _of_labels(name, labels, classes)]


def _of_labels(name: str, labels: Any, classes: Sequence[str] | None) -> list[Mark]:
    def named(label: Any) -> str:
        return classes[label] if classes and isinstance(label, int) else str(label)

    if labels is None:
        return []
    if not isinstance(labels, list):
        labels = [labels if isinstance(labels, dict) else {"label": labels}]
    marks = []
    for each in labels:
        if "timestamps" in each:
            raise ValueError("it holds timestamps; export it with frames (support), which is FiftyOne's default")
        first, last = each.get("support") or (None, None)
        marks.append(Mark(name, named(each["label"]), first, last, each.get("confidence")))
    return marks


def _of_sample(sample: dict[str, Any]) -> list[Mark]:
    marks = []
    for field in sample.values():
        kind = field.get("_cls") if isinstance(field, dict) else None
        if kind in ("TemporalDetections", "Classifications"):
            labels = field["detections" if kind == "TemporalDetections" else "classifications"]
        elif kind in ("TemporalDetection", "Classification"):
            labels = [field]
        else:
            continue
        marks += _of_labels(sample["filepath"], labels, None)
    return marks


def write(marks: Sequence[Mark], path: Path, clocks: dict[str, Clock]) -> None:
    """Write the ``labels.json`` of a FiftyOneTemporalDetectionDataset; scores are confidences."""
    classes = sorted({mark.label for mark in marks})
    labels = {
        Path(video).stem: [
            {"label": classes.index(mark.label), "support": [mark.start, mark.end]}
            | ({} if mark.score is None else {"confidence": mark.score})
            for mark in its
        ]
        for video, its in grouped(marks, lambda mark: mark.video).items()
    }
    write_json(path, {"classes": classes, "labels": labels})
