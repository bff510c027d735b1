"""Damaged video files for tests: small sound videos, and what copies, disks, downloads and people make of them.

Everything follows from names and numbers: the same call writes the same damage on the same bytes.
"""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av

from lookupvit_video.decoding.opening import ANY_TAGS
from tests.videos import write_audio, write_video

# name: settings of write_video; the first FEW are enough for a quick look at codecs with and without B-frames
ORIGINALS = {
    "h264_b.mp4": {"b_frames": 2, "codec_options": {"crf": "8"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.mkv": {"codec_options": {"crf": "8"}},
    "h264_sound.mov": {"b_frames": 1, "with_audio": True},
    "h264.ts": {},
    "h264.flv": {},
    "hevc_b.mp4": {"codec": "libx265", "b_frames": 2},
    "vp8.webm": {"codec": "libvpx", "with_audio": True},
    "av1.mkv": {"codec": "libsvtav1", "codec_options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}
FEW = 3


class Damaged(NamedTuple):
    """A file, what was done to it, and the sound video it was made from (None: from none)."""

    path: Path
    damage: str
    original: Path | None


def write_originals(folder: Path, count: int = len(ORIGINALS)) -> list[Path]:
    """Write the first ``count`` sound videos: 30 pictures of 64 x 48 pixels, a key frame every 10."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        Path(write_video(folder / name, **{"frames": 30, "gop": 10, **settings}))
        for name, settings in list(ORIGINALS.items())[:count]
    ]


# Damage to bytes ------------------------------------------------------------------------------------------------------


def _cut(data: bytes, part: float) -> bytes:
    return data[: int(part * len(data))]


def _flip(data: bytes, bits: int, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for bit in rng.sample(range(8 * len(data)), bits):
        flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _overwrite(data: bytes, length: int, rng: random.Random, noise: bool = False) -> bytes:
    at = rng.randrange(len(data) - length)
    while not any(data[at : at + length]):  # zeros already
        at = rng.randrange(len(data) - length)
    return data[:at] + (rng.randbytes(length) if noise else bytes(length)) + data[at + length :]


def _swap(data: bytes, rng: random.Random, length: int = 512) -> bytes:
    blocks = [data[at : at + length] for at in range(0, len(data), length)]
    first = second = 0
    while blocks[first] == blocks[second]:
        first, second = rng.sample(range(len(data) // length), 2)
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


def _drop(data: bytes, length: int, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) - length)
    return data[:at] + data[at + length :]


def _insert(data: bytes, length: int, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(length) + data[at:]


BYTE_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **{f"truncated at {part} %": lambda data, rng, part=part: _cut(data, part / 100) for part in (2, 25, 50, 75, 97)},
    "last byte lost": lambda data, rng: data[:-1],
    "first 100 bytes lost": lambda data, rng: data[100:],
    **{f"{bits} bits flipped": lambda data, rng, bits=bits: _flip(data, bits, rng) for bits in (1, 8, 100)},
    **{f"{n} bytes zeroed": lambda data, rng, n=n: _overwrite(data, n, rng) for n in (16, 512)},
    "a fifth zeroed": lambda data, rng: _overwrite(data, len(data) // 5, rng),
    "512 bytes of noise": lambda data, rng: _overwrite(data, 512, rng, noise=True),
    "blocks swapped": _swap,
    "256 bytes dropped": lambda data, rng: _drop(data, 256, rng),
    "256 bytes inserted": lambda data, rng: _insert(data, 256, rng),
    "twice in one file": lambda data, rng: data + data,
    "header on noise": lambda data, rng: data[: len(data) // 10] + rng.randbytes(len(data) * 9 // 10),
}
REPEATED = ("flipped", "zeroed", "noise", "swapped", "dropped", "inserted")  # damage that depends on where it falls


def write_byte_damage(folder: Path, originals: list[Path], times: int = 1) -> list[Damaged]:
    """Write each kind of damage to each video, those that depend on chance ``times`` over; some with a wrong suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for original in originals:
        data = original.read_bytes()
        for damage, change in BYTE_DAMAGE.items():
            for turn in range(times if any(word in damage for word in REPEATED) else 1):
                what = f"{original.suffix[1:]}_{damage.replace(' ', '_').replace('%', 'percent')}_{turn}"
                name = f"{original.stem}_{what}{original.suffix}"
                (folder / name).write_bytes(change(data, random.Random(f"{original.name} {damage} {turn}")))
                made.append(Damaged(folder / name, damage, original))
        wrong = (
            folder
            / f"{original.stem}_{original.suffix[1:]}_named_wrong{'.avi' if original.suffix != '.avi' else '.mp4'}"
        )
        shutil.copy(original, wrong)
        made.append(Damaged(wrong, "wrong container", original))
    return made


# Files that never were videos -----------------------------------------------------------------------------------------

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)  # one black pixel
CONTENTS = {
    "empty": b"",
    "text": b"not a video\n",
    "text of other letters": "это не видео, совсем не видео\n".encode(),
    "web page": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n",
    "playlist": b"#EXTM3U\n#EXTINF:10,\nhttp://localhost:9/a.ts\n",
    "list of files": b"ffconcat version 1.0\nfile 'other.mp4'\n",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "one byte": b"\0",
    "zeros": bytes(4096),
    "noise": random.Random(0).randbytes(4096),
    "picture": PNG,
    "zip": b"PK\x03\x04\x14\0\0\0\0\0" + random.Random(1).randbytes(500),
    "header alone": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "name of a box alone": b"\0\0\0\x08moov",
    "matroska header alone": b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska",
}


def write_no_videos(folder: Path) -> list[Damaged]:
    """Write everything that can bear a video's name without being one; permissions are left to who is not root."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def name(damage: str, suffix: str = ".mp4") -> Path:
        made.append(Damaged(folder / (damage.replace(" ", "_") + suffix), damage, None))
        return made[-1].path

    for damage, content in CONTENTS.items():
        name(damage).write_bytes(content)
    name("directory").mkdir()
    name("broken link").symlink_to("nowhere.mp4")
    ring = name("link to itself")
    ring.symlink_to(ring.name)
    name("link to a directory").symlink_to(folder)
    os.mkfifo(name("pipe"))
    write_audio(name("audio only"))
    write_audio(name("audio only in matroska", ".mkv"))
    write_audio(name("audio only in avi", ".avi"))
    forbidden = name("no permission")
    write_video(forbidden)
    forbidden.chmod(0)
    name("missing")
    return made


# What is left of a video ----------------------------------------------------------------------------------------------


def tree(folder):
    """Every file below a folder, with what tells that it was written to."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (status.st_size, status.st_mtime_ns)
    return found


def pictures(path: str | Path) -> list[tuple[float, str]] | None:
    """(seconds, hash of the pixels) of each picture that a plain decode delivers; None: the file cannot be opened.

    What cannot be decoded is passed over, as players do, so damage shows as other or fewer pictures, or other times.
    """
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, **ANY_TAGS) as container:
            shown = list(_shown(container))
    except (OSError, av.FFmpegError, IndexError):
        return None
    start = shown[0][0] if shown else 0.0
    return [(round(seconds - start, 4), digest) for seconds, digest in shown]


def _shown(container):
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        return
    stream.thread_type = "NONE"
    packets = container.demux(stream)
    while (packet := next(packets, None)) is not None:
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            continue
        for count, frame in enumerate(frames):
            digest = hashlib.sha1(frame.to_ndarray().tobytes()).hexdigest()
            yield frame.time if frame.time is not None else float(count), digest
