"""Encrypted videos of several forms, made of small sound ones; none can be decoded without a key that is not there."""

import re
from pathlib import Path

from tests.videos import write_video

PROTECTED = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
TS_PACKET = 188


def box(kind: bytes, content: bytes) -> bytes:
    """A box of an mp4 file."""
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def _replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def cenc(path: Path, **settings) -> None:
    write_video(path, container_options=PROTECTED, **settings)


def cbcs(path: Path) -> None:
    cenc(path)
    _replace(path, b"cenc", b"cbcs")


def fragmented(path: Path) -> None:
    write_video(path, container_options=PROTECTED | FRAGMENTED)


def initial_segment(path: Path) -> None:
    fragmented(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])


def without_sample_tables(path: Path) -> None:
    """No senc, as where all samples have one vector: nothing but the sample entry shows it."""
    cenc(path)
    _replace(path, b"senc", b"free")


def fairplay(path: Path) -> None:
    write_video(path)
    _replace(path, b"avc1\0\0\0\0\0\0\0\1", b"drmi\0\0\0\0\0\0\0\1")


def lone_fragment(path: Path) -> None:
    traf = box(b"traf", box(b"tfhd", bytes(8)) + box(b"senc", bytes(8)))
    moof = box(b"moof", box(b"mfhd", bytes(8)) + traf)
    path.write_bytes(box(b"styp", b"msdh\0\0\0\0msdh") + moof + box(b"mdat", b"x"))


def matroska(path: Path, damaged: bool = True, **settings) -> None:
    """A track with ContentEncryption (AES); where damaged, libav finds nothing in it that could be a picture."""
    write_video(path, **settings)
    data = path.read_bytes()
    encryption = b"\x50\x35\x84\x47\xe1\x81\x05"
    encoding = b"\x50\x33\x81\x01" + encryption
    encoding = b"\x62\x40" + bytes([0x80 | len(encoding)]) + encoding
    extra = b"\x6d\x80" + bytes([0x80 | len(encoding)]) + encoding

    def parts(at: int) -> tuple[int, int]:
        length = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + length], "big") - (1 << 7 * length)
        return at + length, at + length + size

    def element(identity: bytes, content: bytes) -> bytes:
        return identity + (1 << 56 | len(content)).to_bytes(8, "big") + content

    tracks = data.index(b"\x16\x54\xae\x6b", data.index(b"\x16\x54\xae\x6b") + 4)  # the first is in a table of contents
    start, end = parts(tracks + 4)
    start += 6 * (data[start] == 0xBF)  # a checksum, which would not hold any more
    track = start
    assert data[track] == 0xAE
    inner, stop = parts(track + 1)
    new = element(b"\xae", data[inner:stop] + extra) + data[stop:end]
    segment = data.index(b"\x18\x53\x80\x67") + 4
    head = data[:segment] + b"\x01" + b"\xff" * 7 + data[segment + 8 : tracks]
    path.write_bytes(head + element(b"\x16\x54\xae\x6b", new) + (_noise(data[end:], 64) if damaged else data[end:]))


def _noise(data: bytes, start: int) -> bytes:
    return data[:start] + bytes(byte ^ 0x5A if number % 7 else byte for number, byte in enumerate(data[start:]))


def transport(path: Path, everything: bool = False) -> None:
    write_video(path, frames=60)
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), TS_PACKET):
        pid = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        if (pid == 0x100 or everything) and data[at + 3] & 0x10:
            data[at + 3] |= 0x80
            start = at + 5 + data[at + 4] if data[at + 3] & 0x20 else at + 4
            data[start : at + TS_PACKET] = bytes(byte ^ 0x5A for byte in data[start : at + TS_PACKET])
    path.write_bytes(data)


def program(path: Path) -> None:
    """As on a DVD: the flags of the packets of video, whose headers are clear."""
    write_video(path, codec="mpeg2video", fps=25, frames=60)
    data = bytearray(path.read_bytes())
    for found in re.finditer(rb"\x00\x00\x01\xe0..([\x80-\xbf])", bytes(data), re.DOTALL):
        data[found.start(1)] |= 0x10
    path.write_bytes(data)


def asf(path: Path) -> None:
    write_video(path, codec="wmv2")
    codec_list, encryption = "4052d1861d31d011a3a400a0c90348f6", "fbb3112223bdd211b4b700a0c955fc6e"
    _replace(path, bytes.fromhex(codec_list), bytes.fromhex(encryption))


def flv(path: Path) -> None:
    write_video(path)
    data = bytearray(path.read_bytes())
    at = 13
    while at + 11 < len(data):
        if data[at] == 9:
            data[at] |= 0x20
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
    path.write_bytes(data)


FORMS = {
    "cenc.mp4": cenc,
    "cenc_b.mov": lambda path: cenc(path, b_frames=2, with_audio=True),
    "cenc_hevc.mp4": lambda path: cenc(path, codec="libx265"),
    "cenc_vp9.mp4": lambda path: cenc(path, codec="libvpx-vp9"),
    "cenc_mpeg4.mp4": lambda path: cenc(path, codec="mpeg4"),
    "cenc_av1.mp4": lambda path: cenc(path, codec="libsvtav1"),
    "cbcs.mp4": cbcs,
    "fragmented.mp4": fragmented,
    "initial_segment.mp4": initial_segment,
    "without_sample_tables.mp4": without_sample_tables,
    "fairplay.m4v": fairplay,
    "fragment.m4s": lone_fragment,
    "encrypted.mkv": matroska,
    "readable.mkv": lambda path: matroska(path, damaged=False),
    "encrypted.webm": lambda path: matroska(path, codec="libvpx-vp9"),
    "scrambled.ts": transport,
    "scrambled_all.ts": lambda path: transport(path, everything=True),
    "scrambled.vob": program,
    "protected.wmv": asf,
    "filtered.flv": flv,
}
