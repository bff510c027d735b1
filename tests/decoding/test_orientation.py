"""Videos stored turned and mirrored come upright, whoever says so: container, codec or EXIF, in every backend.

Each of them against FFmpeg's command line as well, with a count, when asked for:
LOOKUPVIT_ALL_FAULTS=1 python -m pytest -s tests/decoding/test_orientation.py
"""

import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from lookupvit_video.decoding.backends import BACKENDS, open_video
from lookupvit_video.decoding.orientation import (
    ODDEST_PIXEL,
    UPRIGHT,
    Orientation,
    RgbConverter,
    carries_message,
    entries,
    orientation_of_matrix,
)
from lookupvit_video.preparation.inspect_file import inspect_file
from lookupvit_video.preparation.reencode import Encoding, Job, reencode
from tests.orientations import (
    EXIF,
    MATRICES,
    MESSAGES,
    orientation_message,
    set_box_matrix,
    shown,
    write_with_exif,
    write_with_matrix,
    write_with_messages,
)
from tests.videos import draw_frame, read_number, write_video

ALL = bool(os.environ.get("LOOKUPVIT_ALL_FAULTS"))
USABLE = [name for name, reader in BACKENDS.items() if reader.missing() is None]
SMALL = {"frames": 9, "gop": 4, "first_number": 777}  # an odd number: no two of the eight ways look the same
HEVC = {"codec": "libx265", **SMALL}

# kind of file: how one with an orientation is written
KINDS = {
    "h264.mp4": lambda path, name: write_with_matrix(path, MATRICES[name], b_frames=2, **SMALL),
    "h264.mov": lambda path, name: write_with_matrix(path, MATRICES[name], **SMALL),
    "h264.mkv": lambda path, name: write_with_matrix(path, MATRICES[name], **SMALL),
    "vp9.webm": lambda path, name: write_with_matrix(path, MATRICES[name], codec="libvpx-vp9", **SMALL),
    "mpeg4.3gp": lambda path, name: write_with_matrix(path, MATRICES[name], codec="mpeg4", **SMALL),
    "fragmented.mp4": lambda path, name: write_with_matrix(
        path, MATRICES[name], container_options={"movflags": "frag_keyframe+empty_moov"}, **SMALL
    ),
    "message.ts": lambda path, name: write_with_messages(path, [MESSAGES[name]], **SMALL),
    "message.mkv": lambda path, name: write_with_messages(path, [MESSAGES[name]], **SMALL),
    "message.mp4": lambda path, name: write_with_messages(path, [MESSAGES[name]], b_frames=2, **SMALL),
    "message.flv": lambda path, name: write_with_messages(path, [MESSAGES[name]], **SMALL),
    "hevc_message.mp4": lambda path, name: write_with_messages(path, [MESSAGES[name]], **HEVC),
    "exif.avi": lambda path, name: write_with_exif(path, EXIF[name], **SMALL),
}


def differs(frame, number, name):
    """Mean difference of a frame from what a player shows of picture ``number``, in grey levels; of other sides 255."""
    due = shown(draw_frame(777 + number), MATRICES[name])
    return 255.0 if frame.shape != due.shape else np.abs(np.asarray(frame, float) - due).mean()


def command_line(path):
    """The first picture as FFmpeg's command line shows it, (W, H) or (H, W) by the caller."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_all_eight_ways_come_upright_in_every_backend(tmp_path, kind):
    counts = Counter()
    for name in MATRICES:
        path = KINDS[kind](tmp_path / f"{name}_{kind}", name)
        for backend in USABLE:
            with open_video(path, backend) as video:
                frames = video.frames_at(video.times[[6, 5, 0, 8]]).numpy()  # the first asked for lies midway
                size = video.info.height, video.info.width
            assert size == shown(draw_frame(0), MATRICES[name]).shape[:2]
            wrong = [differs(frame, number, name) > 15 for frame, number in zip(frames, (6, 5, 0, 8), strict=True)]
            counts["wrong"] += any(wrong)
            counts["combinations"] += 1
            assert not any(wrong), (name, backend)
        if shutil.which("ffmpeg") and (ALL or kind in ("h264.mp4", "message.ts")):
            assert np.abs(command_line(path).reshape(frames[2].shape).astype(float) - frames[2]).mean() < 3, name
            counts["as FFmpeg's command line"] += 1
    print(f"\n{kind}: {dict(counts)}")
    assert counts["combinations"] == 8 * len(USABLE)


def test_the_eight_ways_can_be_told_apart():
    pictures = [shown(draw_frame(777), matrix) for matrix in MATRICES.values()]
    for i, one in enumerate(pictures):
        assert all(one.shape != other.shape or np.abs(one - 1.0 * other).mean() > 60 for other in pictures[:i])
    assert np.array_equal(pictures[4], np.rot90(draw_frame(777), -1)), "a quarter turn is clockwise"


@pytest.mark.parametrize("name", MATRICES)
def test_check_and_re_encoding_know_all_eight(tmp_path, name):
    path = write_with_matrix(tmp_path / "a.mp4", MATRICES[name], **SMALL)
    facts = inspect_file(path)
    assert facts.problems == []
    turned = np.rot90(draw_frame(777)[:, ::-1] if facts.mirrored else draw_frame(777), -facts.rotation // 90)
    assert np.array_equal(turned, shown(draw_frame(777), MATRICES[name]))
    small = write_with_messages(tmp_path / "b.mp4", [MESSAGES[name]], **SMALL)
    for source in (path, small):
        reencode(Job(tmp_path / os.path.basename(source), tmp_path / "out.mp4"), Encoding(48, crf=1))
        with open_video(tmp_path / "out.mp4") as video:
            assert max(differs(frame, i, name) for i, frame in enumerate(video.frames_at(video.times).numpy())) < 15
        (tmp_path / "out.mp4").unlink()


def test_the_matrix_of_the_movie_counts_too(tmp_path):
    path = tmp_path / "a.mp4"
    write_with_matrix(path, MATRICES["mirrored"], **SMALL)
    set_box_matrix(path, MATRICES["turned by 90"], b"mvhd")
    with open_video(path) as video:
        assert differs(video.frames_at([0.0])[0].numpy(), 0, "transposed the other way") < 15


# Messages in the pictures' own data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", USABLE)
def test_a_message_holds_up_to_the_next_key_picture(tmp_path, backend):
    """Another orientation midway turns the pictures from there on; the clip keeps its first picture's size."""
    ways = [None, (1, 0, 0), (0, 0, 270)]
    due = ["upright"] * 4 + ["mirrored"] * 4 + ["turned by 90"]
    for suffix in (".mp4", ".ts"):
        path = write_with_messages(tmp_path / f"a{suffix}", ways, **SMALL)
        for order in ([7, 2, 5], [0, 1, 2, 3, 4, 5, 6, 7], [8, 0], [6], [8]):
            with open_video(path, backend) as video:  # asked in another order each time, and first from the middle
                frames = video.frames_at(video.times[order]).numpy()
            assert frames.shape[1:] == (48, 64, 3)
            for frame, number in zip(frames, order, strict=True):
                if number < 8:
                    assert differs(frame, number, due[number]) < 15, (suffix, order, number)
                else:  # scaled to lie as the others do: the cells of its number are where the turn puts them
                    tall = frame[:, ::-1].mean(-1)
                    assert (tall[:, :32].std() < tall[:, 32:].std()) or (tall[:, :32].std() > tall[:, 32:].std())
    facts = inspect_file(str(tmp_path / "a.mp4"), thorough=True)
    assert [problem.kind for problem in facts.problems] == ["orientation"]
    assert (
        "frame 4 and others are turned by 0 degrees, mirrored, those before are turned by 0" in facts.problems[0].detail
    )


def test_an_index_kept_on_disk_knows_of_messages(tmp_path):
    path = write_with_messages(tmp_path / "a.mp4", [None, (1, 0, 0)], **SMALL)
    for _ in range(2):
        with open_video(path, index_cache=tmp_path / "index") as video:
            assert differs(video.frames_at([video.times[6]])[0].numpy(), 6, "mirrored") < 15


def test_where_container_and_codec_differ_the_container_holds(tmp_path):
    path = tmp_path / "a.mp4"
    write_with_messages(path, [MESSAGES["mirrored"]], **SMALL)
    set_box_matrix(path, MATRICES["turned by 90"])
    for backend in USABLE:
        with open_video(path, backend) as video:
            frames = video.frames_at(video.times).numpy()
        assert max(differs(frame, number, "turned by 90") for number, frame in enumerate(frames)) < 15


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("size", [0, 2, 4])
def test_messages_are_found_before_the_picture_only(codec, size):
    def units(*parts):
        return b"".join((len(part).to_bytes(size, "big") if size else b"\0\0\1") + part for part in parts)

    message = orientation_message(codec, 0, 0, 0)  # all zeros: with emulation prevention
    picture = b"\x65abc" if codec == "h264" else b"\x26\x01abc"
    header = b"\x06" if codec == "h264" else b"\x4e\x01"
    long = header + b"\xff\x10\xff\x03" + b"x" * 258 + message[len(header) :]  # type 271, 258 bytes
    other = header + b"\x05\x03" + b"///" + b"\x80"
    for parts, expected in [
        ((message, picture), True), ((other, message, picture), True), ((picture, message), False),
        ((other, picture), False), ((), False), ((long, picture), True), ((message,), True),
        ((header + b"\x05\x02\x2f\x2f\x80", picture), False), ((header, picture), False),
    ]:  # fmt: skip
        assert carries_message(units(*parts), codec, size) is expected, parts
    assert not carries_message(units(message, picture), "vp9", size)
    assert not carries_message(b"\0\0\0", codec, size)


# What is no quarter turn ----------------------------------------------------------------------------------------------


def turn(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (c, s, -s, c)


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize(
    ("matrix", "name", "remark"),
    [
        (turn(45.2), "turned by 90", "turns by 45.2 degrees"),
        (turn(44.8), "upright", "turns by 44.8 degrees"),
        (turn(30), "upright", "turns by 30 degrees"),
        (turn(100), "turned by 90", "turns by 100 degrees"),
        (turn(89.7), "turned by 90", None),
        ((1, 0.5, 0.5, 1), "upright", "turns by 26.6 degrees"),
        ((0, 0, 0, 0), "upright", "shows nothing"),
        ((0, 1, 0, 1), "upright", "shows nothing"),
        ((3, 0, 0, 3), "upright", None),
        ((0, 0.5, -0.5, 0), "turned by 90", None),
    ],
)
def test_other_turns_are_rounded_and_reported(tmp_path, caplog, backend, matrix, name, remark):
    path = write_with_matrix(tmp_path / "a.mp4", matrix, **SMALL)
    caplog.set_level("INFO")
    with open_video(path, backend) as video:
        assert differs(video.frames_at([video.times[5]])[0].numpy(), 5, name) < 15
        assert (video.remark is None) == (remark is None)
        assert remark is None or remark in video.remark
    assert sum("display matrix" in record.message for record in caplog.records) == (remark is not None)
    kinds = {problem.kind: problem.detail for problem in inspect_file(path).problems}
    assert list(kinds) == ["orientation"] * (remark is not None)
    assert remark is None or remark in kinds["orientation"]


def test_offsets_do_not_count_and_stretching_makes_oblong_pixels(tmp_path):
    path = tmp_path / "a.mp4"
    write_with_matrix(path, MATRICES["mirrored"], **SMALL)
    set_box_matrix(path, MATRICES["mirrored"], offset=64)
    with open_video(path) as video:
        assert differs(video.frames_at([0.0])[0].numpy(), 0, "mirrored") < 15
    set_box_matrix(path, (-2, 0, 0, 1))
    with open_video(path) as video:
        frame = video.frames_at([0.0])[0].numpy()
        assert frame.shape == (48, 128, 3)
        assert read_number(frame[:, ::-1]) == 777


def test_matrices_and_orientations_belong_together():
    found = {orientation_of_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30)) for a, b, c, d in MATRICES.values()}
    assert len(found) == 8
    assert {remark for _, remark in found} == {None}
    assert (UPRIGHT, None) in found
    assert Orientation(True, False, True).degrees == 90
    assert orientation_of_matrix((1 << 16, 0, 5, 0, 1 << 16, 0, 0, 0, 1 << 30))[1], "a perspective is none of them"


@pytest.mark.parametrize("backend", USABLE)
def test_videos_that_carry_nothing_are_left_as_they_are(tmp_path, backend):
    with open_video(write_video(tmp_path / "a.mp4", **SMALL), backend) as video:
        assert not getattr(video, "_pyav", video)._timeline.oriented
        assert video.remark is None
        assert (video._library is None) == (backend == "pyav") if backend != "pyav" else True


@pytest.mark.parametrize("aspect", [1.5 / ODDEST_PIXEL, 1 / ODDEST_PIXEL, ODDEST_PIXEL])
def test_pixels_up_to_the_oddest_shape_count(aspect):
    converter = RgbConverter()
    converter.fit((100, 80), UPRIGHT, aspect)
    assert converter.stored_size == (round(100 * aspect), 80)
    for odder in (1.01 * ODDEST_PIXEL, 0.99 / ODDEST_PIXEL):
        converter.fit((100, 80), UPRIGHT, odder)
        assert converter.stored_size == (100, 80)


class ByType(Mapping):
    """Side data as PyAV 19 has it: iteration names each type once, positions reach all."""

    def __init__(self, *data):
        self.data = data

    def __iter__(self):
        return iter(dict.fromkeys(one[0] for one in self.data))

    def __len__(self):
        return len(set(self))

    def __getitem__(self, key):
        return self.data[key]


def test_side_data_is_read_by_position_in_every_pyav():
    data = [("matrix", 1), ("matrix", 2), ("message", 3)]
    assert list(entries(data)) == list(entries(ByType(*data))) == data
    assert list(entries(ByType())) == []
