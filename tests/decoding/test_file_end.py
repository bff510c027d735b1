"""A file that is shorter than it says is refused or reported, by the loader and by the check; sound ones never are.

LOOKUPVIT_ALL_FAULTS=1 pytest -s -p no:randomly tests/decoding/test_file_end.py   # 110 cut files
"""

import logging
import os
import random
import struct
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from lookupvit_video.decoding import file_end
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.file_end import bad_checksums, frame_seconds, may_turn_pictures, missing_bytes, tolerance
from lookupvit_video.preparation.inspect_file import inspect_file
from tests.videos import write_video

ALL = bool(os.environ.get("LOOKUPVIT_ALL_FAULTS"))
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
ANNOUNCED = {  # containers that tell how long they are
    "moov_first.mp4": {"container_options": {"movflags": "faststart"}},
    "moov_first.mov": {"container_options": {"movflags": "faststart"}, "b_frames": 2},
    "fragments.mp4": {"container_options": FRAGMENTS},
    "h264.mkv": {"b_frames": 2},
    "sound.mkv": {"with_audio": True},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "h264.flv": {},
    "sound.flv": {"with_audio": True},
    "wmv2.wmv": {"codec": "wmv2"},
}


def what_is_said(path):
    """Why a file is refused, or what is reported of it; empty: nothing."""
    try:
        with open_video(path) as reader:
            reader.frames_at(reader.times.tolist())
            return "; ".join(map(str, reader.damage))
    except DecodeError as error:
        return error.reason


def test_cut_files_are_not_accepted_without_a_report(tmp_path):
    """Cut anywhere in the second half, and where little is missing: a frame or less."""
    accepted, count = [], 0
    for name, settings in ANNOUNCED.items():
        path = Path(write_video(tmp_path / name, **{"frames": 48, "gop": 8, **settings}))
        data, rng = path.read_bytes(), random.Random(name)
        assert what_is_said(path) == "", name
        cuts = [rng.randrange(len(data) // 2, len(data)) for _ in range(8 if ALL else 1)]
        for kept in [*cuts, len(data) - 40, len(data) - 1]:
            cut = tmp_path / f"cut_{name}"
            cut.write_bytes(data[:kept])
            count += 1
            if not what_is_said(cut):
                accepted.append((name, kept, len(data)))
    print(f"\n{count} cut files: {len(accepted)} accepted without a report {accepted}")
    assert not accepted


@pytest.mark.parametrize("name", ["h264.mkv", "mpeg4.avi"])
def test_the_check_says_what_the_loader_says(tmp_path, name):
    path = Path(write_video(tmp_path / name, **{"frames": 48, **ANNOUNCED[name]}))
    assert inspect_file(str(path)).problems == []
    path.write_bytes(path.read_bytes()[:-1500])
    (problem,) = inspect_file(str(path)).problems
    assert problem.kind == "truncated"
    assert what_is_said(path).split(";")[0] in problem.detail


def test_the_log_says_where_no_end_is_announced(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(file_end, "_logged", set())
    path = write_video(tmp_path / "a.ts")
    with caplog.at_level(logging.INFO):
        open_video(path).close()
        open_video(path).close()
    assert caplog.text.count("mpegts announces no length") == 1


def test_a_frame_may_end_half_a_frame_early_and_one_more_where_its_length_is_not_known():
    stream = SimpleNamespace(time_base=0.001, average_rate=None)
    assert frame_seconds([80, 0, 40, 120, None], stream) == pytest.approx(0.04)
    assert frame_seconds([0], SimpleNamespace(time_base=0.001, average_rate=25)) == pytest.approx(0.04)
    assert tolerance({"matroska"}, 0.04, True) == pytest.approx(0.0225)
    assert tolerance({"flv"}, 0.04, False) == pytest.approx(0.0625)
    assert tolerance({"nut"}, 0.04, True) == pytest.approx(1.02), "not looked into"


def box(name, length, content=b""):
    return struct.pack(">I", length) + name + content


@pytest.mark.parametrize(
    ("container", "data", "announced"),
    [
        ("matroska", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + (100).to_bytes(7, "big") + bytes(60), 117),
        ("matroska", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7 + bytes(60), 0),  # not known
        ("mp4", box(b"ftyp", 16, bytes(8)) + box(b"mdat", 100, bytes(50)), 116),
        ("mp4", box(b"ftyp", 16, bytes(8)) + box(b"mdat", 1, struct.pack(">Q", 200) + bytes(50)), 216),
        ("mp4", box(b"ftyp", 16, bytes(8)) + box(b"mdat", 0, bytes(50)), 0),  # up to the end
        ("mp4", box(b"ftyp", 16, bytes(8)) + bytes(20), 0),  # padding
        ("avi", b"RIFF" + struct.pack("<I", 92) + bytes(50), 100),
        ("avi", b"RIFF" + struct.pack("<I", 12) + bytes(12) + b"RIFF" + struct.pack("<I", 92) + bytes(50), 120),
        ("flv", b"FLV" + b"filesize\0" + struct.pack(">d", 300.0) + bytes(9), 300),
        ("asf", bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365") + bytes(24) + struct.pack("<Q", 400) + bytes(9), 400),
    ],
)
def test_announced_bytes_are_counted(tmp_path, container, data, announced):
    path = tmp_path / "file"
    path.write_bytes(data)
    said = missing_bytes(str(path), {container})
    assert said == (f"announces {announced} bytes, holds {len(data)}" if announced else "")
    path.write_bytes(data + bytes(max(0, announced - len(data))))
    assert missing_bytes(str(path), {container}) == ""


def test_checksums_of_matroska_are_compared(tmp_path):
    path = Path(write_video(tmp_path / "a.mkv", frames=12))
    assert bad_checksums(str(path)) == ""
    data = bytearray(path.read_bytes())
    data[data.index(b"\x1f\x43\xb6\x75") + 200] ^= 4
    path.write_bytes(data)
    assert bad_checksums(str(path)).startswith("1 of ")
    assert "do not match their checksums" in what_is_said(path)


def test_a_text_in_the_header_turns_nothing(tmp_path):
    """The name of the encoder, which ffmpeg writes into .webm, holds the bytes of a projection's ID."""
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "libvpx-vp9"
        stream = container.add_stream("libvpx-vp9", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for packet in stream.encode(av.VideoFrame(64, 48, "yuv420p")):
            container.mux(packet)
        container.mux(stream.encode(None))
    assert b"vp" in path.read_bytes().partition(b"\x1f\x43\xb6\x75")[0]
    assert not may_turn_pictures(str(path), {"matroska"})


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_matrix_that_turns_pictures_is_seen(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", codec="libvpx-vp9", frames=4)
    names = {"mp4"} if suffix == ".mp4" else {"matroska"}
    assert not may_turn_pictures(path, names)
    if suffix == ".mp4":
        turned = write_video(tmp_path / "b.mp4", codec="libvpx-vp9", frames=4, rotation=90)
        assert may_turn_pictures(turned, names)
        with open_video(turned) as video:
            assert (video.info.width, video.info.height) == (48, 64)
