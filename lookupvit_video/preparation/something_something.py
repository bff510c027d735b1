"""Something-Something V1 and V2: official annotations and the files -> lists.

V2: JSON; the label is the template without its brackets. V1: lines ``id;label``. Both: arXiv 1706.04261. Classes are
numbered as the official list of labels numbers them.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookupvit_video.errors import UserError
from lookupvit_video.preparation.lists import Annotation, Key, Options, files_below, finish, match

# Videos of each split as published; the README names the sources.
PUBLISHED: dict[int, dict[str, int | None]] = {
    1: {"train": 86_017, "val": 11_522, "test": 10_960},
    2: {"train": 168_913, "val": 24_777, "test": 27_157},
}
NUM_CLASSES = 174
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_NAMES = re.compile(
    r"(?:something-something-v[12]-)?(labels|train|validation|test|test-answers)\.(json|csv)", re.IGNORECASE
)


def plain(template: str) -> str:
    """The class of a template: ``Holding [something] next to [something]`` without the brackets."""
    return template.replace("[", "").replace("]", "").strip()


def official_files(folder: Path) -> dict[str, Path]:
    """Find labels, train, validation, test and test-answers in a folder, by their official names.

    Raises:
        UserError: labels are not there, nothing else is, or one is there twice.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = _NAMES.fullmatch(path.name)
        if name is None:
            continue
        kind = name[1].lower()
        if kind in found:
            raise UserError(f"{folder}: both {found[kind].name} and {path.name}; keep one version's files in a folder")
        found[kind] = path
    if "labels" not in found or not found.keys() & _SPLITS.keys():
        raise UserError(
            f"{folder}: expected the official labels and train, validation or test files (.json or .csv), "
            f"found {', '.join(path.name for path in found.values()) or 'none'}"
        )
    return found


def read_labels(path: Path) -> list[str]:
    """Read the class names in their official order: JSON ``{"name": "number"}``, or a name a line.

    Raises:
        UserError: a number is missing, or a name or number occurs twice.
    """
    if path.suffix.lower() == ".csv":
        names = [plain(line) for line in _text(path).splitlines() if line.strip()]
    else:
        numbers = _json(path)
        if not isinstance(numbers, dict):
            raise UserError(f'{path}: expected {{"class name": "number"}}')
        try:
            by_number = {int(number): plain(name) for name, number in numbers.items()}
        except (TypeError, ValueError):
            raise UserError(
                f'{path}: expected {{"class name": "number"}}, one of the numbers is not a number'
            ) from None
        if sorted(by_number) != list(range(len(numbers))):
            raise UserError(f"{path}: {len(numbers)} classes are not numbered from 0 to {len(numbers) - 1}, each once")
        names = [by_number[number] for number in range(len(numbers))]
    twice = {name for name in names if names.count(name) > 1}
    if twice or not names:
        raise UserError(f"{path}: {f'class {min(twice)!r} occurs twice' if twice else 'holds no class'}")
    return names


def read_split(path: Path, split: str, classes: set[str]) -> list[Annotation]:
    """Read the annotations of one split: of "test" they need no label.

    Raises:
        UserError: names the file, and the line or entry, of what is wrong.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    annotations = []
    for where, video, label in rows:
        if not video:
            raise UserError(f"{where}: no id")
        if label is None and split != "test":
            raise UserError(f"{where}: no label; only the test split has none")
        name = None if label is None else plain(label)
        if name is not None and name not in classes:
            raise UserError(f"{where}: {name!r} is not in the list of labels")
        annotations.append(Annotation(Key(video), split, name, where))
    if not annotations:
        raise UserError(f"{path}: holds no annotation")
    return annotations


def _json_rows(path: Path) -> Iterator[tuple[str, str, str | None]]:
    entries = _json(path)
    if not isinstance(entries, list):
        raise UserError(f'{path}: expected a list of {{"id": ..., "template": ...}}')
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str | int):
            raise UserError(f'{where}: expected {{"id": ..., "template": ...}}')
        template = entry.get("template")
        if template is not None and not isinstance(template, str):
            raise UserError(f"{where}: the template is not text")
        yield where, str(entry["id"]).strip(), template


def _csv_rows(path: Path) -> Iterator[tuple[str, str, str | None]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        fields = next(csv.reader([line], delimiter=";"))
        if len(fields) > 2:
            raise UserError(f"{where}: expected 'id;label' or 'id'")
        yield where, fields[0].strip(), fields[1] if len(fields) == 2 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again") from None


def key_of(path: Path) -> Key:
    """What a name says: ``12345.webm``, or a folder ``12345`` of pictures."""
    return Key(path.name if path.is_dir() else path.stem)


def prepare_something_something(version: int, annotations: Path, videos: list[Path], options: Options) -> int:
    """Write the lists of Something-Something; see `datasets/something_something/README.md`.

    Args:
        version: 1 or 2.
        annotations: folder of the official label, train, validation and test files.
        videos: folders that hold the videos, or with V1 the folders of pictures.

    Returns:
        The exit code: 1 where a video could not be re-encoded, else 0.
    """
    official = official_files(annotations)
    names = read_labels(official["labels"])
    clips = [
        clip for kind, split in _SPLITS.items() if kind in official
        for clip in read_split(official[kind], split, set(names))
    ]  # fmt: skip
    if "test-answers" in official:
        clips += read_split(official["test-answers"], "test", set(names))
    account = match(clips, files_below(videos, pictures=True), key_of)
    pictures = [clip for clip in account.found if clip.path.is_dir()]
    if pictures and options.encoding is None:
        raise UserError(
            f"{pictures[0].path} and {len(pictures) - 1} more are folders of pictures; have them made into videos "
            "with --short-side 240"
        )
    return finish(account, names, options, PUBLISHED[version], NUM_CLASSES)
