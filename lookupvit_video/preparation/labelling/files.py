"""Reading other programs' files: JSON and XML from outside, with errors that name the file."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import simplejson

from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.text import decode

_T = TypeVar("_T")


@contextmanager
def named(path: Path, tool: str) -> Iterator[None]:
    """Turn what a file of another form raises into one line that names the file and the tool.

    Raises:
        UserError: the file is not what the tool writes.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: not a file of {tool} ({what}); export it again, or choose another --tool") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises ValueError for other text."""
    return simplejson.loads(decode(path.read_bytes()))


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file; raises ValueError for other text, and for one that declares entities."""
    data = path.read_bytes()
    if b"<!ENTITY" in data:
        raise ValueError("it declares entities, which may expand without end")
    try:
        return ElementTree.fromstring(data)  # noqa: S314 - without entities
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None


def write_xml(path: Path, root: ElementTree.Element) -> None:
    """Write an XML file, completely or not at all."""
    ElementTree.indent(root)
    with atomic_write(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def runs(numbers: Iterable[int], step: int = 1) -> list[tuple[int, int]]:
    """Return the first and last of each run of numbers that are ``step`` apart."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number - found[-1][1] <= step:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def grouped(items: Iterable[_T], key: Callable[[_T], str]) -> dict[str, list[_T]]:
    """Return items by a key, in the order in which the keys come."""
    groups: dict[str, list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
