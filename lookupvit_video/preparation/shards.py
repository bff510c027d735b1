"""Videos of a list -> tar shards with an index (webdataset's layout), and their list; checks of such shards."""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lookupvit_video.data.manifest import Video, label_cell, read_class_list
from lookupvit_video.data.video_files import is_video_name
from lookupvit_video.decoding.sources.shards import RECORD, SUFFIX, Member, damaged_members, write_index
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.progress import progress
from lookupvit_video.text import write_csv, write_text


class Packed(NamedTuple):
    """A file on its way into a shard."""

    path: str
    name: str
    """Of the member."""
    size: int
    labels: tuple[int, ...]


def make_shards(videos: Sequence[Video], classes: Sequence[str], out: Path, name: str, max_bytes: int) -> list[str]:
    """Write the videos of a list into shards OUT/NAME-000000.tar, ..., and OUT/NAME.csv, a list of them.

    A file is packed once, whatever the number of its rows. Shards that an earlier call completed are kept.

    Args:
        max_bytes: of a shard, unless a single video takes more.

    Raises:
        UserError: a file is missing, or is a folder of pictures.
        OSError: a file cannot be read, or the folder not be written to.
    """
    shards, members = _planned(videos, name, max_bytes)
    todo = progress(shards.items(), total=len(shards), label="shards", unit="shards")
    for shard, files in todo:
        if not _is_complete(out / shard, files):
            _write(out / shard, files)
    write_list(out / f"{name}.csv", (replace(video, path=members[video.path]) for video in videos), classes)
    return list(shards)


def _planned(videos: Sequence[Video], name: str, max_bytes: int) -> tuple[dict[str, list[Packed]], dict[str, str]]:
    """Return the files of each shard, and the member that each file becomes."""
    shards: dict[str, list[Packed]] = {}
    members: dict[str, str] = {}
    shard, filled = "", max_bytes
    for video in videos:
        if video.path in members:
            continue
        try:
            size = os.stat(video.path).st_size
        except OSError as error:
            raise UserError(f"{video.source}: video {video.path}: {error.strerror}") from None
        if os.path.isdir(video.path):
            raise UserError(f"{video.source}: {video.path} is a folder of pictures; shards hold video files")
        if filled and filled + size > max_bytes:
            shard, filled = f"{name}-{len(shards):06d}.tar", 0
            shards[shard] = []
        member = f"{len(members):08d}{Path(video.path).suffix}"
        shards[shard].append(Packed(video.path, member, size, video.every_label))
        members[video.path] = f"{shard}/{member}"
        filled += size
    return shards, members


def _is_complete(shard: Path, files: Sequence[Packed]) -> bool:
    """Whether an earlier call wrote this shard of the same files."""
    try:
        records = np.load(str(shard) + SUFFIX, allow_pickle=False)
        wanted = sorted([file.size for file in files] + [len(_label_text(file)) for file in files])
        return bool(
            records.dtype == RECORD and sorted(records["size"].tolist()) == wanted
            and shard.stat().st_size > int((records["offset"] + records["size"]).max())
        )  # fmt: skip
    except (OSError, ValueError):
        return False


def _label_text(file: Packed) -> bytes:
    return "\n".join(map(str, file.labels)).encode()


def _write(shard: Path, files: Sequence[Packed]) -> None:
    with atomic_write(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            with open(file.path, "rb") as content:
                tar.addfile(_entry(file.name, file.size), content)
            text = _label_text(file)
            tar.addfile(_entry(f"{Path(file.name).stem}.cls", len(text)), io.BytesIO(text))
    write_index(str(shard))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


def index_shards(shards: Sequence[str]) -> dict[str, list[Member]]:
    """Write the index of each shard; return its members.

    Raises:
        RunFailure: a shard cannot be read; names it.
    """
    found = {}
    for shard in progress(shards, total=len(shards), label="index", unit="shards"):
        try:
            found[shard] = write_index(shard)
        except (OSError, ValueError) as error:
            raise RunFailure(f"{shard}: {error}") from None
    return found


def labelled_members(members: Mapping[str, Sequence[Member]], classes: int, folder: Path) -> Iterator[Video]:
    """Yield a row for each video of some shards, with the label in the member KEY.cls next to it.

    Args:
        classes: how many there are.
        folder: of the list.

    Raises:
        UserError: a video has no label, or a label is no number of a class.
    """
    for shard, found in members.items():
        labels = {member.name.rpartition(".")[0]: member for member in found if member.name.endswith(".cls")}
        with open(shard, "rb") as file:
            for member in filter(lambda member: is_video_name(member.name), found):
                of_video = labels.get(member.name.rpartition(".")[0])
                if of_video is None:
                    raise UserError(f"{shard}/{member.name}: no member {Path(member.name).stem}.cls with its label")
                file.seek(of_video.offset)
                text = file.read(of_video.size).decode("ascii", "replace").split()
                if not all(part.isdecimal() and int(part) < classes for part in text):
                    raise UserError(f"{shard}/{of_video.name}: {' '.join(text)!r} is no class from 0 to {classes - 1}")
                numbers = tuple(map(int, text))
                several = numbers if len(numbers) != 1 else None
                path = os.path.join(os.path.relpath(shard, folder), member.name)
                yield Video(path, numbers[0] if numbers else -1, labels=several)


def write_list(path: Path, videos: Iterable[Video], classes: Sequence[str]) -> None:
    """Write a list of videos, with the columns that they use, and classes.txt next to it.

    Raises:
        UserError: the folder has other classes already.
    """
    names = path.with_name("classes.txt")
    if names.exists() and read_class_list(names) != list(classes):
        raise UserError(f"{names}: these are other classes than those of the shards; choose another folder with --out")
    write_text(names, "".join(f"{name}\n" for name in classes))
    rows = list(videos)
    columns = [name for name in ("start", "end", "group") if any(getattr(row, name) for row in rows)]
    cells = (
        [
            row.path,
            label_cell(row, classes),
            *("" if getattr(row, name) is None else getattr(row, name) for name in columns),
        ]
        for row in rows
    )
    write_csv(path, ["path", "label", *columns], cells, end="\n")


def verify_shards(shards: Sequence[str]) -> list[str]:
    """Return what is wrong with some shards, a line for each member or shard."""
    shown = progress(shards, total=len(shards), label="verify", unit="shards")
    return [line for shard in shown for line in damaged_members(shard)]
