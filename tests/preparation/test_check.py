"""What is said of each file, sound or not, and of rows that contradict their files or each other."""

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sampling import build_time_sampler
from lookupvit_video.preparation.check import (
    ListedVideo,
    check_repeats,
    check_spans,
    file_digests,
    inspect_files,
    rows_of_lists,
    rows_of_path,
    summarize,
    table_row,
)
from lookupvit_video.preparation.inspect_file import KINDS, FileReport, Problem, inspect_file
from lookupvit_video.processes.pool import run_isolated
from tests.damage import FEW, ORIGINALS, pictures, write_byte_damage, write_no_videos, write_originals
from tests.videos import draw_frame, write_video


def kinds(path, thorough=False):
    return [problem.kind for problem in inspect_file(str(path), thorough).problems]


def row(path, split="train", label="a", **video):
    return ListedVideo(split, Video(str(path), 0, **video), label)


def known(split="train", label="a", path="/v.mp4", frames=240, fps=24.0, start=None, end=None):
    """A row whose file is known to be sound."""
    return ListedVideo(
        split, Video(path, 0, start, end), label, FileReport(frames=frames, fps=fps, duration=frames / fps)
    )


# Sound files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("name", ORIGINALS)
def test_sound_files_have_no_problem(tmp_path, name, thorough):
    path = write_video(tmp_path / name, **{"frames": 30, "gop": 10, **ORIGINALS[name]})
    facts = inspect_file(path, thorough)
    assert facts.problems == []
    assert (facts.width, facts.height, facts.frames) == (64, 48, 30)
    assert facts.bytes == Path(path).stat().st_size
    assert facts.fps == pytest.approx(24, rel=0.01)
    assert facts.duration == pytest.approx(1.25, rel=0.01)
    assert (facts.variable_rate, facts.rotation, facts.pixel_aspect) == (False, 0, "1:1")
    assert facts.codec in name.split("_")[0].split(".")[0].replace("mpeg2", "mpeg2video")
    assert Path(path).suffix[1:] in {"matroska": "mkv webm", "mpegts": "ts", "mpeg": "mpg"}.get(
        facts.container, facts.container
    )


def test_rotation_and_variable_rate(tmp_path):
    facts = inspect_file(write_video(tmp_path / "a.mp4", rotation=90))
    assert (facts.rotation, facts.width, facts.height, facts.problems) == (90, 48, 64, [])
    assert inspect_file(write_video(tmp_path / "b.mp4", rotation=270)).rotation == 270
    times = np.cumsum([0, *[0.04, 0.04, 0.12] * 8]).tolist()
    facts = inspect_file(write_video(tmp_path / "c.mkv", frames=25, times=times), thorough=True)
    assert (facts.variable_rate, facts.problems) == (True, [])
    assert not inspect_file(write_video(tmp_path / "d.mkv", fps=30)).variable_rate  # mkv rounds to milliseconds


# Files that are no videos ---------------------------------------------------------------------------------------------

EXPECTED = {
    "empty": "empty", "text": "text", "text of other letters": "text", "web page": "text", "playlist": "text",
    "list of files": "text", "git-lfs pointer": "git-lfs pointer", "one byte": "not a video", "zeros": "not a video",
    "noise": "not a video", "picture": "picture", "zip": "not a video", "header alone": "truncated",
    "name of a box alone": "no video stream", "matroska header alone": "not a video", "directory": "no file",
    "broken link": "missing", "link to itself": "missing", "link to a directory": "no file", "pipe": "no file",
    "audio only": "no video stream", "audio only in matroska": "no video stream",
    "audio only in avi": "no video stream", "no permission": "no permission", "missing": "missing",
}  # fmt: skip


def test_each_file_that_is_no_video_has_its_reason(tmp_path):
    found = {damaged.damage: kinds(damaged.path) for damaged in write_no_videos(tmp_path)}
    if os.access(tmp_path / "no_permission.mp4", os.R_OK):  # root may read everything
        assert found.pop("no permission") == []
    assert found == {damage: [kind] for damage, kind in EXPECTED.items() if damage in found}
    assert all(KINDS[EXPECTED[damage]].bad for damage in found)


# Damage ---------------------------------------------------------------------------------------------------------------

# Damage that can leave data valid for its codec or container, as an encoder or a muxer might have written it.
MAY_PASS = ("flipped", "zeroed", "noise", "swapped", "dropped", "inserted", "twice in one file")


def test_damage_is_found_or_cannot_be_known(tmp_path):
    """What a file shows is compared with the sound video it was made from; the rest must be found.

    All videos and more damage: see the test of the command in tests/commands/test_check.py.
    """
    originals = write_originals(tmp_path / "sound", FEW)
    made = write_byte_damage(tmp_path / "damaged", originals)
    rows = {thorough: [row(damaged.path) for damaged in made] for thorough in (False, True)}
    for thorough, checked in rows.items():
        inspect_files(checked, processes=2, thorough=thorough)
    truth = pictures_of([*originals, *(damaged.path for damaged in made)])
    unnoticed = []
    for damaged, fast, slow in zip(made, rows[False], rows[True], strict=True):
        assert not {problem.kind for problem in fast.file.problems} & {"crash", "timeout", "error", "memory"}
        assert slow.is_bad or not fast.is_bad, damaged
        if damaged.damage == "wrong container":
            assert [problem.kind for problem in slow.file.problems] == ["suffix"]
        if truth[damaged.path] != truth[damaged.original] and not slow.is_bad:
            unnoticed.append(damaged)
    assert {damaged.damage for damaged in unnoticed if not any(word in damaged.damage for word in MAY_PASS)} == set()
    assert len(unnoticed) <= 0.12 * len(made), unnoticed


def pictures_of(paths):
    answers = {o.number: o.answer for o in run_isolated(pictures, paths, processes=2, timeout=60)}
    return {path: answers[number] for number, path in enumerate(paths)}


def test_damage_between_the_frames_looked_at_is_found_by_the_thorough_look_alone(tmp_path):
    path = Path(write_video(tmp_path / "a.mp4", frames=400, gop=10))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        # Far from the middle and the end, and from what libav probes; and no packet's beginning, where libav's parser
        # would see the damage in reading the file.
        packet = max(packets[290:310], key=lambda packet: packet.size)
        start, end = packet.pos + packet.size // 2, packet.pos + packet.size
    data = bytearray(path.read_bytes())
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    assert inspect_file(str(path)).problems == []
    assert kinds(path, thorough=True) == ["damaged"]


def test_an_end_that_is_cut_off_between_two_packets_is_found(tmp_path):
    """Nothing in the data tells: only the header's duration does."""
    path = Path(write_video(tmp_path / "a.mkv", gop=4, container_options={"cluster_time_limit": "200"}))
    clusters = path.read_bytes().split(b"\x1f\x43\xb6\x75")
    assert len(clusters) > 6
    path.write_bytes(b"\x1f\x43\xb6\x75".join(clusters[:-3]))
    (problem,) = inspect_file(str(path)).problems
    assert problem.kind == "truncated"
    assert "of 2.00 s" in problem.detail
    packets = write_video(tmp_path / "a.ts")
    assert kinds(packets) == []
    Path(packets).write_bytes(Path(packets).read_bytes()[:-1])
    assert kinds(packets) == ["truncated"]


def test_a_complaint_of_one_file_is_not_kept_from_the_next(tmp_path):
    """libav tells a complaint once if it comes again and again, also across files."""
    sound = write_video(tmp_path / "a.mkv")
    for name in "bcd":
        (tmp_path / f"{name}.mkv").write_bytes(Path(sound).read_bytes()[:-300])
    assert [kinds(tmp_path / f"{name}.mkv") for name in "bcda"] == [["truncated"]] * 3 + [[]]


def test_a_file_that_takes_too_long_is_told(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=300)
    rows = [row(video) for _ in range(8)]
    inspect_files(rows, processes=1, timeout=0.001, thorough=True)
    # On a busy machine, an answer may be there before this process has the processor again.
    late = [one for one in rows if one.file.problems]
    assert late
    for one in late:
        assert one.file.problems == [Problem("timeout", "took longer than 0.001 s")]
        assert one.is_bad


# Pictures that show nothing, names that mislead -----------------------------------------------------------------------


def test_blank_and_still_pictures_and_wrong_suffixes_are_told_but_not_bad(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4")
    shutil.copy(tmp_path / "a.mp4", tmp_path / "a.webm")
    monkeypatch.setattr("tests.videos.draw_frame", lambda number, size: np.zeros((*size[::-1], 3), np.uint8))
    write_video(tmp_path / "blank.mp4")
    monkeypatch.setattr("tests.videos.draw_frame", lambda number, size: draw_frame(5, size=size))
    write_video(tmp_path / "still.mp4")
    rows = rows_of_path(tmp_path)
    inspect_files(rows, processes=1)
    assert {Path(r.video.path).name: [p.kind for p in r.file.problems] for r in rows} == {
        "a.mp4": [], "a.webm": ["suffix"], "blank.mp4": ["blank"], "still.mp4": ["still"],
    }  # fmt: skip
    assert not any(r.is_bad for r in rows)


# Rows -----------------------------------------------------------------------------------------------------------------


def config(*overrides):
    """A clip of 16 frames, 4 frames of 30 a second apart: 2 s from the first to the last."""
    return load_config(None, overrides)


@pytest.mark.parametrize(
    ("row", "overrides", "expected"),
    [
        (known(frames=240), (), []),
        (known(frames=48), (), []),
        (known(frames=36), (), [("short", "lasts 1.50 s; a clip of the config takes 2.00 s")]),
        (known(frames=36), ("DATA.SAMPLING_RATE", "2"), []),
        (known(frames=240, start=2, end=3), (), [("short", "lasts 1.00 s; a clip of the config takes 2.00 s")]),
        (known(frames=240, start=9), (), [("short", "lasts 1.00 s; a clip of the config takes 2.00 s")]),
        (known(frames=12), ("DATA.SAMPLING", "segments"), [("short", "holds 12 frames; DATA.NUM_FRAMES is 16")]),
        (known(frames=16), ("DATA.SAMPLING", "segments"), []),
        (known(frames=1), (), [("short", "holds a single frame")]),
        (known(frames=240, start=10), (), [("span", "starts at 10 s, but the video ends at 10 s")]),
        (known(frames=240, start=5, end=20), (), [("span", "ends at 20 s, but the video at 10 s")]),
        (known(frames=240, start=5, end=10.5), (), []),
        (ListedVideo("train", Video("/x.mp4", 0, 5), "a", FileReport(problems=[Problem("empty", "")])), (), []),
    ],
)
def test_rows_against_their_videos(row, overrides, expected):
    check_spans([row], build_time_sampler(config(*overrides), training=False, num_clips=1))
    assert row.problems == [Problem(*pair) for pair in expected]
    row.problems.clear()


def test_without_a_config_only_single_frames_are_short():
    rows = [known(frames=2), known(frames=1)]
    check_spans(rows, None)
    assert [[problem.kind for problem in r.problems] for r in rows] == [[], ["short"]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([known(), known("val")], [["train and test"], ["train and test"]]),
        ([known("val"), known("test")], [[], []]),
        ([known(), known("val"), known("test")], [["train and test"]] * 3),
        ([known(), known()], [["twice"], ["twice"]]),
        ([known(), known(label="b")], [["two labels", "twice"]] * 2),
        ([known(), known(path="/w.mp4")], [[], []]),
        ([known(end=2), known(start=2)], [[], []]),
        ([known(end=2), known(start=2, label="b")], [[], []]),  # two actions of one video
        ([known(end=3), known("test", start=2)], [["train and test"]] * 2),
        ([known(), known(path="/x/../v.mp4")], [["twice"], ["twice"]]),
        ([known("val", "b"), known(), known(), known("test", "b")],
         [["train and test", "two labels"], ["train and test", "two labels", "twice"]] * 2),
    ],
)  # fmt: skip
def test_the_same_video_in_several_rows(rows, expected):
    rows = [ListedVideo(r.split, r.video, r.label, r.file) for r in rows]
    check_repeats(rows, {})
    found = [[problem.kind for problem in r.problems] for r in rows]
    assert sorted(found) == sorted(expected)


def test_the_same_content_under_two_names_is_found(tmp_path):
    first = write_video(tmp_path / "a.mp4")
    shutil.copy(first, tmp_path / "b.mp4")
    write_video(tmp_path / "c.mp4", first_number=50)
    for name in "de":  # the same size, another content; and what cannot be read is compared with nothing
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    rows = [row(tmp_path / f"{name}.mp4", split) for name, split in zip("abcde", ("train", "test") * 3, strict=False)]
    inspect_files(rows, processes=1)
    digests = dict(file_digests(rows))
    check_repeats(rows, digests)
    assert [[problem.kind for problem in r.problems] for r in rows] == [["train and test"]] * 2 + [[]] * 3
    assert f"the same video as {tmp_path / 'b.mp4'} (test, a)" in table_row(rows[0])["problems"]
    assert len({digest for path, digest in digests.items() if path[-5:] in ("a.mp4", "b.mp4")}) == 1


def test_a_thousand_copies_of_a_placeholder_are_told_in_time():
    rows = [known("train", "a", path=f"/{number}.mp4") for number in range(20_000)]
    check_repeats(rows, {r.video.path: "one" for r in rows})
    assert all([problem.kind for problem in r.problems] == ["twice"] for r in rows)


# Lists ----------------------------------------------------------------------------------------------------------------


def test_rows_of_a_list_a_folder_and_a_file(tmp_path):
    for name in ("jump/a.mp4", "run/b.mkv", "run/deep/c.avi", "stray.mp4", "run/notes.txt"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    rows = rows_of_path(tmp_path / "v")
    assert [(Path(r.video.path).name, r.label, r.split) for r in rows] == [
        ("a.mp4", "jump", "v"), ("b.mkv", "run", "v"), ("c.avi", "run", "v"), ("stray.mp4", "", "v"),
    ]  # fmt: skip
    (tmp_path / "mine.csv").write_text("path,label\nv/jump/a.mp4,1\n")
    assert [(r.split, r.label) for r in rows_of_path(tmp_path / "mine.csv")] == [("mine", "1")]
    (tmp_path / "classes.txt").write_text("jump\nrun\n")
    assert [(r.split, r.label) for r in rows_of_path(tmp_path / "mine.csv")] == [("mine", "run")]
    assert [r.video.path for r in rows_of_path("somewhere/x.MP4")] == ["somewhere/x.MP4"]
    with pytest.raises(ValueError, match=r"no video below it: no file has the suffix of one, such as \.mp4"):
        rows_of_path((tmp_path / "empty").mkdir() or tmp_path / "empty")


def test_a_list_that_serves_two_splits_is_read_once(tmp_path, caplog):
    (tmp_path / "train.csv").write_text("path,label\na.mp4,0\n")
    (tmp_path / "val.csv").write_text("path,label\nb.mp4,0\n")
    lists = {"train": str(tmp_path / "train.csv"), "val": str(tmp_path / "val.csv"), "test": str(tmp_path / "val.csv")}
    caplog.set_level("INFO")
    assert [r.split for r in rows_of_lists(lists, ["x"])] == ["train", "val"]
    assert "test: the same list as val, checked once" in caplog.text


def test_summary_counts_files_once_and_rows_each():
    rows = [known(path="/a.mp4", end=1), known(path="/a.mp4", start=1), known("val", "b", path="/b.mp4", frames=48)]
    rows.append(ListedVideo("val", Video("/c.mp4", 0), "b", FileReport(problems=[Problem("empty", "is empty")])))
    summary = summarize(rows, ["a", "b", "c"])
    assert summary["files"] == 3
    assert summary["hours"] == pytest.approx(12 / 3600)
    assert summary["duration"] == [2, 6, 10]
    assert summary["splits"]["train"]["videos"] == summary["splits"]["val"]["videos"] == 2
    assert summary["splits"]["val"]["bad"] == 1
    assert summary["splits"]["train"]["without_video"] == ["b", "c"]
    assert summary["splits"]["train"]["per_class"] == [0, 0, 2]
    assert summary["problems"] == {"empty": [3]}
