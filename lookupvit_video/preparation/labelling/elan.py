"""ELAN: one .eaf file a video, with aligned annotations in milliseconds of the player."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark
from lookupvit_video.preparation.labelling.files import grouped, read_xml, write_xml

CONVENTION = Convention("seconds", rounding=0.001)
_TIER = "label"


def read(path: Path) -> list[Mark]:
    """Return the aligned annotations of all tiers of a file, or of every .eaf file in a folder."""
    if path.is_dir():
        return [mark for each in sorted(path.glob("*.eaf")) for mark in read(each)]
    root = read_xml(path)
    media = root.find(".//MEDIA_DESCRIPTOR")
    if media is None:
        raise ValueError("it names no video")
    name = unquote(media.get("RELATIVE_MEDIA_URL") or media.attrib["MEDIA_URL"])
    begin = int(media.get("TIME_ORIGIN", 0))  # of the video, where annotations count from a later moment
    slots = {slot.attrib["TIME_SLOT_ID"]: slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    marks = []
    for each in root.iter("ALIGNABLE_ANNOTATION"):
        times = [slots[each.attrib[f"TIME_SLOT_REF{number}"]] for number in (1, 2)]
        if None in times:
            raise ValueError(f"annotation {each.get('ANNOTATION_ID')} has no time of its own; align it in ELAN")
        start, end = ((int(time or 0) + begin) / 1000 for time in times)
        marks.append(Mark(name, (each.findtext("ANNOTATION_VALUE") or "").strip(), start, end))
    return marks


def write(marks: Sequence[Mark], path: Path, clocks: dict[str, Clock]) -> None:
    """Write a folder with one file a video; labels with a score are on a tier "predicted"."""
    for video, its in grouped(marks, lambda mark: mark.video).items():
        root = ElementTree.Element("ANNOTATION_DOCUMENT", AUTHOR="", DATE="2000-01-01T00:00:00+00:00", FORMAT="3.0",
                                   VERSION="3.0")  # fmt: skip
        header = ElementTree.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
        ElementTree.SubElement(
            header, "MEDIA_DESCRIPTOR", MEDIA_URL=Path(video).absolute().as_uri(), MIME_TYPE="video/mp4"
        )
        order = ElementTree.SubElement(root, "TIME_ORDER")
        tiers = {name: ElementTree.Element("TIER", LINGUISTIC_TYPE_REF="default", TIER_ID=name)
                 for name in (_TIER, "predicted")}  # fmt: skip
        for number, mark in enumerate(its):
            tier = tiers[_TIER if mark.score is None else "predicted"]
            times = (0.0, clocks[video].duration) if mark.start is None else (mark.start, mark.end or 0.0)
            for slot, time in enumerate(times):
                value = str(round(time * 1000))
                ElementTree.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=f"ts{number}_{slot}", TIME_VALUE=value)
            aligned = ElementTree.SubElement(
                ElementTree.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", ANNOTATION_ID=f"a{number}",
                TIME_SLOT_REF1=f"ts{number}_0", TIME_SLOT_REF2=f"ts{number}_1",
            )  # fmt: skip
            ElementTree.SubElement(aligned, "ANNOTATION_VALUE").text = mark.label
        for tier in tiers.values():
            if len(tier):
                root.append(tier)
        ElementTree.SubElement(root, "LINGUISTIC_TYPE", LINGUISTIC_TYPE_ID="default", TIME_ALIGNABLE="true",
                               GRAPHIC_REFERENCES="false")  # fmt: skip
        write_xml(path / f"{Path(video).stem}.eaf", root)
