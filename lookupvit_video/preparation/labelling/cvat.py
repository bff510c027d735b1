"""CVAT: XML of "CVAT for video 1.1" (a track is a span) or "CVAT for images 1.1" (tags of neighboring frames are one).

Its frames are those of the file, from 0 on. A track lasts up to the frame at which it is outside of the picture.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark
from lookupvit_video.preparation.labelling.files import read_xml, runs, write_xml

CONVENTION = Convention("frames")


def read(path: Path) -> list[Mark]:
    """Return the tracks and tags of a task, or of all tasks of a project."""
    root = read_xml(path)
    sources = {task.findtext("id"): task.findtext("source") or task.findtext("name") for task in root.iter("task")}
    sizes = {task.findtext("id"): _last_frame(task) for task in root.iter("task")}
    if not sources:
        raise ValueError("no task in it")
    only = next(iter(sources))

    def video(element: ElementTree.Element) -> tuple[str, int]:
        task = element.get("task_id", only)
        return sources[task] or "", sizes[task]

    marks = [mark for track in root.iter("track") for mark in _spans(track, *video(track))]
    tagged: dict[tuple[str, str], list[int]] = defaultdict(list)
    for image in root.iter("image"):
        found = re.search(r"(\d+)(\.\w+)?$", image.get("name", ""))
        for tag in image.iter("tag"):
            tagged[video(image)[0], tag.attrib["label"]].append(int(found[1]) if found else int(image.attrib["id"]))
    step = max(1, *(_step(task) for task in root.iter("task")))
    for (name, label), frames in tagged.items():
        marks += [Mark(name, label, first, last + step) for first, last in runs(frames, step)]
    return marks


def _spans(track: ElementTree.Element, name: str, after: int) -> list[Mark]:
    """Return the stretches in which a track is inside of the picture."""
    marks, start = [], None
    for shape in sorted(track, key=lambda shape: int(shape.attrib["frame"])):
        frame, outside = int(shape.attrib["frame"]), shape.get("outside") == "1"
        if start is not None and outside:
            marks.append(Mark(name, track.attrib["label"], start, frame))
            start = None
        elif start is None and not outside:
            start = frame
    if start is not None:
        marks.append(Mark(name, track.attrib["label"], start, after))
    return marks


def _last_frame(task: ElementTree.Element) -> int:
    """Return the frame after the last one of a task."""
    stop = task.findtext("stop_frame")
    return int(stop) + _step(task) if stop else int(task.findtext("size") or 0)


def _step(task: ElementTree.Element) -> int:
    found = re.search(r"step=(\d+)", task.findtext("frame_filter") or "")
    return int(found[1]) if found else 1


def write(marks: Sequence[Mark], path: Path, clocks: dict[str, Clock]) -> None:
    """Write a track around the complete picture for each span; those with a score have the source "auto"."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    project = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "project")
    tasks = ElementTree.SubElement(project, "tasks")
    numbers = {video: str(number) for number, video in enumerate(dict.fromkeys(mark.video for mark in marks), start=1)}
    for video, number in numbers.items():
        task, count = ElementTree.SubElement(tasks, "task"), len(clocks[video].times)
        facts = {"id": number, "name": Path(video).name, "size": count, "mode": "interpolation", "start_frame": 0,
                 "stop_frame": count - 1, "source": video}  # fmt: skip
        for name, value in facts.items():
            ElementTree.SubElement(task, name).text = str(value)
    labels = ElementTree.SubElement(project, "labels")
    for name in sorted({mark.label for mark in marks}):
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    for index, mark in enumerate(marks):
        source = "manual" if mark.score is None else "auto"
        track = ElementTree.SubElement(
            root, "track", id=str(index), label=mark.label, source=source, task_id=numbers[mark.video]
        )
        clock = clocks[mark.video]
        for frame, outside in ((mark.start, "0"), (mark.end, "1")):
            if frame is not None and frame < len(clock.times):
                ElementTree.SubElement(
                    track, "box", frame=str(int(frame)), outside=outside, occluded="0", keyframe="1", xtl="0", ytl="0",
                    xbr=str(clock.width), ybr=str(clock.height), z_order="0",
                )  # fmt: skip
    write_xml(path, root)
