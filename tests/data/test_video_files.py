"""What counts as a video below a folder, in every command alike, and what is said of the rest."""

import os
from collections import Counter

import av
import pytest

from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.data.video_files import (
    find_video_files,
    is_video_name,
    left_out_line,
    video_suffixes,
    walk_files,
)
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.inference.batch import find_videos as find_to_predict
from lookupvit_video.preparation.check import rows_of_path
from lookupvit_video.preparation.lists import files_below as find_prepared
from tests.videos import read_number, write_video

OLD = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
# suffix: (muxer, settings) that write such a file
WRITTEN = {
    ".MTS": ("mpegts", {}), ".m2ts": ("mpegts", {}), ".vob": ("vob", {"codec": "mpeg2video", "fps": 25}),
    ".ogv": ("ogg", {"codec": "libvpx"}), ".gif": ("gif", {"codec": "gif", "pix_fmt": "rgb8"}), ".h264": ("h264", {}),
    ".mxf": ("mxf", {"codec": "mpeg2video", "fps": 25}), ".265": ("hevc", {"codec": "libx265"}),
    ".3g2": ("3g2", {"codec": "mpeg4"}), ".m2v": ("mpeg2video", {"codec": "mpeg2video", "fps": 25}),
    ".dv": ("dv", {"codec": "dvvideo", "size": (720, 576), "fps": 25, "frames": 6}), ".asf": ("asf", {"codec": "wmv2"}),
    ".nut": ("nut", {}), ".mjpeg": ("mjpeg", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}), ".qt": ("mov", {}),
    ".f4v": ("f4v", {}), ".ivf": ("ivf", {"codec": "libvpx"}), ".y4m": ("yuv4mpegpipe", {"codec": "wrapped_avframe"}),
}  # fmt: skip


def names_of(paths, root):
    return {os.path.relpath(path, root) for path in paths}


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_libav_opens_by_suffix_is_a_video(tmp_path, suffix):
    muxer, settings = WRITTEN[suffix]
    settings = {"frames": 12, **settings}
    if settings.get("codec", "libx264") not in av.codecs_available or muxer not in av.formats_available:
        pytest.skip("this build of PyAV cannot write it")
    path = write_video(tmp_path / f"a{suffix}", container_format=muxer, **settings)
    assert is_video_name(path)
    assert [str(video) for video in find_video_files(tmp_path).videos] == [path]
    with open_video(path) as video:
        number = read_number(video.frames_at([video.times[4]])[0].numpy())
        assert number == 4 or suffix == ".gif"  # 256 colours blur the cells


def test_names():
    assert OLD < video_suffixes()
    assert len(video_suffixes()) > 80
    assert {".mts", ".m2ts", ".ogv", ".gif", ".vob", ".mxf", ".dv", ".h264", ".hevc", ".rmvb"} < video_suffixes()
    for name in ("a.jpg", "a.png", "a.txt", "a.csv", "a.json", "a.wav", "a.mp3", "a.m4a", "a.srt", "a.py", "a.yaml",
                 "mp4", ".mp4", "._a.mp4", "a.mp4.part", "a", "a.zip", "a.npy", "a.pt", "a.yuv", "a.ass", "a.webp",
                 "a.heic", "a.tar", "a.flac", "a.bin", "a.dat", "a.idx"):  # fmt: skip
        assert not is_video_name(name), name
    assert is_video_name("clips/A b.MoV")
    assert is_video_name(os.fsdecode(b"\xff.mp4"))


@pytest.fixture
def folder(tmp_path):
    """Class folders with videos of many suffixes, and with what is none."""
    root = tmp_path / "v"
    videos = ["jump/a.MTS", "jump/deep/b.ogv", "run/c.gif", "run/d.vob", "run/e.mp4"]
    others = ["jump/a.txt", "jump/b.TXT", "run/c.json", "run/thumb.jpg", "run/README", ".git/x.mp4", "run/.f.mp4"]
    for name in videos + others:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "g.mkv").touch()
    (root / "run" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root / "run")  # a ring
    return root, {*videos, "run/linked/g.mkv"}


def test_every_command_finds_the_same_files(folder, caplog):
    root, videos = folder
    caplog.set_level("INFO")
    line = "left out 5 files without a video's suffix: 2 .txt, 1 without any, 1 .jpg, 1 .json"
    finders = {
        "training": lambda: [video.path for video in read_manifest(root, ["jump", "run"])],
        "check": lambda: [row.video.path for row in rows_of_path(root)],
        "prepare": lambda: find_prepared([root]),
        "predict": lambda: find_to_predict([str(root)])[0],
    }
    for name, find in finders.items():
        caplog.clear()
        assert names_of(find(), root) == videos, name
        (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert said.endswith(line), name


def test_videos_beside_the_class_folders_are_named(folder, caplog):
    root, _ = folder
    (root / "stray.mov").touch()
    assert len(read_manifest(root, ["jump", "run"])) == 6
    assert "left out 1 videos in no class folder, such as" in caplog.text
    assert "stray.mov" in caplog.text


def test_a_folder_without_videos_says_what_is_there(tmp_path):
    (tmp_path / "jump").mkdir()
    (tmp_path / "jump" / "a.zip").touch()
    reason = r"such as \.mp4.*\(left out 1 file without a video's suffix: 1 \.zip\)"
    with pytest.raises(ValueError, match=reason):
        rows_of_path(tmp_path)
    with pytest.raises(ValueError, match=reason):
        find_prepared([tmp_path])
    with pytest.raises(ValueError, match=r"no videos in class folders below it.*1 \.zip"):
        read_manifest(tmp_path, ["jump"])
    assert "1 .zip" in find_to_predict([str(tmp_path)])[1][0].error
    assert "there is no file at all" in find_to_predict([str((tmp_path / "e").mkdir() or tmp_path / "e")])[1][0].error


def test_the_line_is_short():
    counts = Counter({f".{letter}": number for number, letter in enumerate("abcdefgh", start=1)})
    line = left_out_line(counts)
    assert line == "left out 36 files without a video's suffix: 8 .h, 7 .g, 6 .f, 5 .e, 4 .d, 3 .c, 2 more suffixes"
    assert left_out_line(Counter()) == ""


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: this folder cannot be read \(No such file or directory\)"):
        list(walk_files(tmp_path / "nowhere", set()))
