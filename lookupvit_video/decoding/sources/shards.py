"""Videos inside tar files (webdataset's layout), read at random through an index next to each.

A member is named as if the tar were a folder: ``train-000012.tar/00012345.mp4``; local or remote. The index
(``train-000012.tar.index``) is a NumPy array with a record for each member, sorted by a hash of its name, so that it
is mapped and not read. It holds the CRC-32 of each member: a member that was damaged is named, not decoded.
"""

import hashlib
import io
import os
import re
import tarfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.decoding.sources.remote_files import forget, read_remote
from lookupvit_video.files import atomic_write
from lookupvit_video.remote import is_remote

RECORD = np.dtype([("name", "<u8"), ("offset", "<i8"), ("size", "<i8"), ("crc", "<u4")])
SUFFIX = ".index"
_MEMBER = re.compile(r"(.*?\.tar)/(.+)", re.DOTALL)
_MAPPED = 4096  # indexes that a process keeps mapped
_PIECE = 8 << 20


class Member(NamedTuple):
    """A file in a shard."""

    name: str
    offset: int
    size: int
    crc: int


def split_member(path: str) -> tuple[str, str] | None:
    """Return the shard and the member that a path names; None: it names no member of a shard."""
    match = _MEMBER.fullmatch(path)
    if match is None or (not is_remote(match[1]) and os.path.isdir(match[1])):
        return None
    return match[1], match[2]


def read_member(path: str, parts: tuple[str, str] | None = None) -> bytes:
    """Return the bytes of a member.

    Args:
        parts: of the path, if it has been split.

    Raises:
        DecodeError: the shard, its index or the member is missing, or the member is damaged.
    """
    parts = parts or split_member(path) or ("", "")
    shard = parts[0]
    offset, size, crc = find_member(path, parts)
    data = _read(path, shard, offset, size)
    if zlib.crc32(data) != crc and is_remote(shard):  # perhaps only the copy here is damaged
        forget(shard)
        data = _read(path, shard, offset, size)
    if len(data) < size:
        raise DecodeError(path, f"the shard ends {size - len(data)} bytes before this member does: fetch it again")
    if zlib.crc32(data) != crc:
        raise DecodeError(
            path, "its bytes in the shard are not those of the index (CRC-32): fetch the shard again, or, if it was "
            "made again, run lookupvit prepare shards --index on it"
        )  # fmt: skip
    return data


def find_member(path: str, parts: tuple[str, str] | None = None) -> tuple[int, int, int]:
    """Return offset, size and CRC-32 of a member.

    Raises:
        DecodeError: there is no such member, shard or index.
    """
    shard, name = parts or split_member(path) or ("", "")
    try:
        records = _index(shard)
    except FileNotFoundError as error:
        exists = is_remote(shard) or os.path.exists(shard)
        reason = f"its shard has no index: run lookupvit prepare shards --index {shard}" if exists else "no such shard"
        raise DecodeError(path, reason) from error
    except (OSError, ValueError) as error:
        raise DecodeError(path, f"the index of its shard cannot be read ({error})") from error
    key = _hash(name)
    at = bisect_left(records["name"], key)  # NumPy's own would copy the column
    if at == len(records) or records["name"][at] != key:
        raise DecodeError(path, "no such member in the shard's index")
    record = records[at]
    return int(record["offset"]), int(record["size"]), int(record["crc"])


@lru_cache(_MAPPED)
def _index(shard: str) -> np.ndarray:
    name = shard + SUFFIX
    if is_remote(shard):
        records = np.load(io.BytesIO(read_remote(name)), allow_pickle=False)
    else:
        records = np.load(name, mmap_mode="r", allow_pickle=False)
    if records.dtype != RECORD:
        raise ValueError("not an index")
    return np.asarray(records)


def _read(path: str, shard: str, offset: int, size: int) -> bytes:
    try:
        if is_remote(shard):
            return read_remote(shard, offset, size)
        with open(shard, "rb") as file:  # buffered: a bare read returns 2 GiB at most
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise DecodeError(path, f"its shard cannot be read ({error.strerror or error})") from error


def write_index(shard: str) -> list[Member]:
    """Write the index of a local shard; return its members.

    Raises:
        ValueError: it is no tar file, is cut short, or two names share a hash.
        OSError: it cannot be read, or the folder not be written to.
    """
    members = list(members_of(shard))
    records = np.array([(_hash(m.name), m.offset, m.size, m.crc) for m in members], RECORD)
    records.sort(order="name")
    if len(np.unique(records["name"])) < len(records):
        raise ValueError("holds two members of one name")
    with atomic_write(shard + SUFFIX) as temporary, open(temporary, "wb") as file:
        np.save(file, records)
    _index.cache_clear()
    return members


def members_of(shard: str) -> Iterator[Member]:
    """Read through a local shard.

    Raises:
        ValueError: it is no tar file, or is cut short; names the member.
        OSError: it cannot be read.
    """
    try:
        with tarfile.open(shard, "r:") as tar, open(shard, "rb") as file:
            for entry in tar:
                if not entry.isreg():
                    continue
                file.seek(entry.offset_data)
                crc, left = 0, entry.size
                while left and (piece := file.read(min(left, _PIECE))):
                    crc, left = zlib.crc32(piece, crc), left - len(piece)
                if left:
                    raise ValueError(f"{entry.name}: the shard ends {left} bytes before this member does")
                yield Member(entry.name, entry.offset_data, entry.size, crc)
    except tarfile.TarError as error:
        raise ValueError(f"not a tar file, or damaged: {error}") from error


def damaged_members(shard: str) -> Iterator[str]:
    """Yield what is wrong with a local shard, compared with its index, each line with the member that it is about."""
    try:
        found = {_hash(member.name): member for member in members_of(shard)}
        records = np.load(shard + SUFFIX, allow_pickle=False)
    except (OSError, ValueError) as error:
        yield f"{shard}: {error}"
        return
    known = {int(record["name"]): record for record in records}
    for key, member in found.items():
        if key not in known:
            yield f"{shard}/{member.name}: not in the index"
        elif (member.offset, member.size, member.crc) != tuple(known[key].tolist()[1:]):
            yield f"{shard}/{member.name}: its bytes are not those of the index"
    lost = len(known.keys() - found.keys())
    if lost:
        yield f"{shard}: {lost} members of the index are not in the shard, or their headers are damaged"


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
