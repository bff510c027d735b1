"""Whether a video is encrypted, by its container: decoders treat such data as damage, or show noise.

Looked at: mp4 and mov (protected sample entries, ISO 14496-12 8.12 and ISO 23001-7; Apple's drmi; fragments with
sample encryption), mkv and webm (ContentEncryption), transport and program streams (scrambling control), asf (content
encryption objects) and flv (filtered tags). A file that is encrypted from its first byte on looks like noise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from lookupvit_video.decoding.reader import DecodeError

_LOOK = 4 << 20  # bytes of a stream without a header that are looked at
_HEAD = 4 << 10  # bytes of a header that are enough, nearly always
_SHARE = 0.1  # of packets marked as scrambled: fewer are damage
_PROTECTED = frozenset({b"encv", b"drmi"})  # sample entries of video; enca and drms are sound
_FRAGMENT_SIGNS = frozenset({b"senc", b"saiz"})
_PIFF_SAMPLE_ENCRYPTION = bytes.fromhex("a2394f525a9b4f14a2446c427c648df4")
_ASF_ENCRYPTION = (  # Content Encryption, Extended and Advanced Content Encryption (ASF specification, 3.14 to 3.16)
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
    bytes.fromhex("b6690743d6b3434d9adaf3ea31a9c85a"),
)
_SEGMENT, _CLUSTER, _TRACKS, _TRACK, _TRACK_TYPE = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0x83
_ENCRYPTION_PATH = (0x6D80, 0x6240, 0x5035)  # ContentEncodings, ContentEncoding, ContentEncryption


def encrypted(how: str) -> str:
    """The reason for a DecodeError; ``how``: the scheme, or what shows it."""
    return f"is encrypted ({how}): there is no key to decode it; get a copy without protection"


ENCRYPTED = encrypted("its samples are")


def refuse_encrypted(path: str, container: Any, stream: Any) -> None:
    """Look at the structure of a file that PyAV has opened; ``stream``: the one to be decoded, None: any.

    Raises:
        DecodeError: its video is encrypted.
    """
    names = container.format.name.split(",")
    how = None
    with open(path, "rb", buffering=0) as file:  # each read is at another place: a buffer would be of no use
        if "mp4" in names:
            is_plain = len(container.streams.video) == 1 and _is_plain_mp4(file)
            how = None if is_plain else _mp4_scheme(file)
        elif "matroska" in names:
            how = _matroska_scheme(file)
        elif "mpegts" in names:
            how = _scrambled_transport(file, getattr(stream, "id", None))
        elif "mpeg" in names:
            how = _scrambled_program(file)
        elif "asf" in names:
            how = _asf_scheme(file)
        elif "flv" in names:
            how = _filtered_flv(file)
    if how:
        raise DecodeError(path, encrypted(how))


def why_not_opened(path: str) -> str | None:
    """Why libav cannot open a file, where its structure shows that; None: its form is not known here."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(16)
        if head[4:8] in (b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"mdat"):
            return _why_no_mp4(file)
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            how = _matroska_scheme(file)
            if not how and _TRACKS in (kinds := _segment_kinds(file)) and _CLUSTER not in kinds:
                return "holds no frames: a header, and nothing after it; fetch it again"
        elif head[:1] == b"G" or head[4:5] == b"G":
            how = _scrambled_transport(file, None)
        elif head.startswith(bytes.fromhex("3026b2758e66cf11")):
            how = _asf_scheme(file)
        else:
            how = None
    return encrypted(how) if how else None


# mp4 ------------------------------------------------------------------------------------------------------------------


def _boxes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start and end of its content) of the boxes in a span of bytes; stops where they make no sense."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, content = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:
            size, content = int.from_bytes(head[8:16], "big"), start + 16
        following = start + size if size else end
        if following < content:
            return
        yield head[4:8], content, min(following, end)
        start = following


def _inside(file: IO[bytes], kind: bytes, start: int, end: int) -> tuple[int, int]:
    """The content of the first box of a kind; an empty span where there is none."""
    return next(((at, stop) for found, at, stop in _boxes(file, start, end) if found == kind), (end, end))


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _mp4_scheme(file: IO[bytes]) -> str | None:
    for kind, start, end in _boxes(file, 0, _size(file)):
        if kind == b"moov":
            return _moov_scheme(file, start, end)
    return None


def _is_plain_mp4(file: IO[bytes]) -> bool:
    """Whether a short look is enough to see that the only video of a file is not protected; it nearly always is."""
    for kind, start, _ in _boxes(file, 0, _size(file)):
        if kind == b"moov":
            file.seek(start)
            head = file.read(_HEAD)
            entry = head.find(b"stsd", max(0, head.find(b"vide")))
            found = b"vide" in head and 0 <= entry <= len(head) - 20
            return (
                found
                and head[entry + 8 : entry + 12] == b"\0\0\0\1"
                and head[entry + 16 : entry + 20] not in _PROTECTED
            )
    return False


def _moov_scheme(file: IO[bytes], start: int, end: int) -> str | None:
    for kind, at, stop in _boxes(file, start, end):
        if kind != b"trak":
            continue
        span = _inside(file, b"mdia", at, stop)
        for name in (b"minf", b"stbl", b"stsd"):
            span = _inside(file, name, *span)
        for entry, content, last in _boxes(file, span[0] + 8, span[1]):
            if entry in _PROTECTED:
                file.seek(content)
                data = file.read(min(last - content, 1 << 16))
                scheme = data[data.find(b"schm") + 8 :][:4] if b"schm" in data else entry
                return f"{scheme.decode('latin-1')} in {entry.decode('latin-1')}"
    return None


def _why_no_mp4(file: IO[bytes]) -> str:
    """Why libav finds no video in a file that is made of boxes."""
    kinds = set()
    for kind, start, end in _boxes(file, 0, _size(file)):
        kinds.add(kind)
        if kind == b"moov":
            how = _moov_scheme(file, start, end)
            if how:
                return encrypted(how)
        if kind == b"moof" and b"moov" not in kinds:
            how = _fragment_scheme(file, start, end)
            return encrypted(how) if how else "is a fragment without its header (moov): join it to its initial segment"
    if b"moov" in kinds:
        return "cannot be opened: its index (moov) is damaged or cut off: fetch it again"
    return "cannot be opened: its index (moov) is missing: truncated, fetch it again"


def _fragment_scheme(file: IO[bytes], start: int, end: int) -> str | None:
    for kind, at, stop in _boxes(file, start, end):
        if kind != b"traf":
            continue
        for sign, content, _ in _boxes(file, at, stop):
            file.seek(content)
            if sign in _FRAGMENT_SIGNS or (sign == b"uuid" and file.read(16) == _PIFF_SAMPLE_ENCRYPTION):
                return f"{sign.decode('latin-1')} in a fragment"
    return None


# Matroska -------------------------------------------------------------------------------------------------------------


def _number(file: IO[bytes], keep_marker: bool) -> int | None:
    """A number of variable length (RFC 8794, 4); None: the end, or of unknown size."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    data = first + file.read(length - 1)
    value = int.from_bytes(data, "big")
    marker = 1 << 7 * length
    if keep_marker:
        return value
    return None if value == 2 * marker - 1 else value - marker


def _elements(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(ID, start and end of its content) of the elements in a span of bytes."""
    while start < end:
        file.seek(start)
        identity = _number(file, keep_marker=True)
        if identity is None:
            return
        size = _number(file, keep_marker=False)
        content = file.tell()
        start = end if size is None else content + size
        yield identity, content, min(start, end)


def _matroska_scheme(file: IO[bytes]) -> str | None:
    file.seek(0)
    head = file.read(_HEAD)
    clusters = head.find(_CLUSTER.to_bytes(4, "big"))
    while clusters >= 0 and head[clusters - 3 : clusters - 1] == b"\x53\xab":  # in a table of contents
        clusters = head.find(_CLUSTER.to_bytes(4, "big"), clusters + 4)
    if clusters >= 0 and not any(identity.to_bytes(2, "big") in head[:clusters] for identity in _ENCRYPTION_PATH):
        return None  # what nearly every file looks like; the rest is looked at element by element
    for identity, start, end in _elements(file, 0, _size(file)):
        if identity != _SEGMENT:
            continue
        for inner, at, stop in _elements(file, start, end):
            if inner == _TRACKS and any(_is_protected(file, *track[1:]) for track in _elements(file, at, stop)):
                return "ContentEncryption"
            if inner in (_CLUSTER, _TRACKS):
                return None
    return None


def _segment_kinds(file: IO[bytes]) -> set[int]:
    """The IDs of the elements in the first segment."""
    for identity, start, end in _elements(file, 0, _size(file)):
        if identity == _SEGMENT:
            return {inner for inner, _, _ in _elements(file, start, end)}
    return set()


def _is_protected(file: IO[bytes], start: int, end: int) -> bool:
    is_video = protected = False
    for identity, at, stop in _elements(file, start, end):
        if identity == _TRACK_TYPE:
            file.seek(at)
            is_video = file.read(stop - at)[-1:] == b"\x01"
        if identity == _ENCRYPTION_PATH[0]:
            codings = [part[1:] for part in _elements(file, at, stop) if part[0] == _ENCRYPTION_PATH[1]]
            protected = any(part[0] == _ENCRYPTION_PATH[2] for span in codings for part in _elements(file, *span))
    return is_video and protected


# Streams of packets, and others ---------------------------------------------------------------------------------------


def _scrambled_transport(file: IO[bytes], pid: int | None) -> str | None:
    """Look at transport_scrambling_control (ISO 13818-1, 2.4.3.3) of a PID, None: of all."""
    file.seek(0)
    data = np.frombuffer(file.read(_LOOK), np.uint8)
    for length, first in ((188, 0), (192, 4)):
        packets = data[: len(data) // length * length].reshape(-1, length)[:, first : first + 4]
        if len(packets) and (packets[:, 0] == ord("G")).mean() > 0.9:
            holds = (packets[:, 3] & 0x10).astype(bool)  # data, not only an adaptation field
            pids = (packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]
            holds &= (pids == pid) if pid is not None else pids < 0x1FFF
            scrambled = (packets[holds, 3] & 0xC0) > 0
            return "scrambled transport stream" if len(scrambled) and scrambled.mean() > _SHARE else None
    return None


def _scrambled_program(file: IO[bytes]) -> str | None:
    """Look at PES_scrambling_control (ISO 13818-1, 2.4.3.7) of the video, as on DVDs."""
    file.seek(0)
    flags = [found[1][0] for found in re.finditer(rb"\x00\x00\x01[\xe0-\xef]..(.)", file.read(_LOOK), re.DOTALL)]
    of_mpeg2 = [flag & 0x30 for flag in flags if flag & 0xC0 == 0x80]
    return "scrambled, as on DVDs" if of_mpeg2 and sum(map(bool, of_mpeg2)) > _SHARE * len(of_mpeg2) else None


def _asf_scheme(file: IO[bytes]) -> str | None:
    file.seek(0)
    head = file.read(1 << 16)
    return "digital rights management of asf" if any(sign in head for sign in _ASF_ENCRYPTION) else None


def _filtered_flv(file: IO[bytes]) -> str | None:
    """Look at the filter bit of the first video tags (Adobe Flash Video File Format 10.1, E.4.1)."""
    file.seek(5)
    at, end = int.from_bytes(file.read(4), "big") + 4, min(_size(file), _LOOK)
    while at + 11 <= end:
        file.seek(at)
        head = file.read(4)
        if head[0] & 31 == 9:
            return "filtered tags of flv" if head[0] & 32 else None
        at += 15 + int.from_bytes(head[1:], "big")
    return None
