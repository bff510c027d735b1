"""Re-encoded videos show what their sources show, at the same times; a run that is killed is gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.preparation.reencode import Encoding, Job, output_size, reencode, reencode_all
from tests.videos import draw_frame, read_number, write_audio, write_video

SMALL = Encoding(32, gop=6)

# name of the file: how it is written
FILES = {
    "plain.mp4": {},
    "b_frames.mp4": {"b_frames": 2, "with_audio": True},
    "ntsc.mp4": {"fps": Fraction(24000, 1001)},
    "fast.mkv": {"fps": 120},
    "one.mp4": {"frames": 1},
    "rate_varies.mp4": {"b_frames": 2, "times": [0.002 * i * i for i in range(48)]},
    "vp9.webm": {"codec": "libvpx-vp9", "with_audio": True},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "h264.avi": {"b_frames": 2},  # its time stamps are in the order of decoding
    "raw.h264": {"b_frames": 2},  # it has none
    "late_start.ts": {"b_frames": 2, "start": 500},
    "edit_list.mp4": {"b_frames": 2, "start": -7},
    "open_gop.mp4": {"b_frames": 3, "codec_options": {"x264-params": "open-gop=1"}},
    "full_range.mp4": {"pix_fmt": "yuvj420p"},
    "full_range_10_bit.mp4": {"pix_fmt": "yuv420p10le", "codec_options": {"color_range": "pc", "crf": "4"}},
    "ten_bit.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "bt709.mp4": {"codec_options": {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}},
    "turned_90.mp4": {"rotation": 90, "b_frames": 2, "size": (96, 64)},
    "turned_180.mov": {"rotation": 180},
    "turned_270.mp4": {"rotation": 270, "size": (96, 64)},
    "name: 100%.mp4": {},
}


def make(path, **recipe):
    if recipe.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {recipe['codec']} encoder")
    return Path(write_video(path, **recipe))


def all_frames(path):
    with open_video(path) as video:
        return video.times, video.frames_at(video.times.tolist())


def packets(path):
    """(whether it is a key frame) of each picture, in the order of decoding."""
    with av.open(str(path)) as container:
        return [packet.is_keyframe for packet in container.demux(video=0) if packet.size]


def assert_same_pictures(out, source, *, tolerance=10.0):
    """Pictures (T, H, W, 3) are the source's, resized."""
    resized = F.resize(source.permute(0, 3, 1, 2), list(out.shape[1:3]), antialias=True).permute(0, 2, 3, 1)
    assert (out.float() - resized.float()).abs().mean(dim=(1, 2, 3)).max() < tolerance
    assert (out.float().mean(dim=(0, 1, 2)) - resized.float().mean(dim=(0, 1, 2))).abs().max() < 2.5


@pytest.mark.parametrize("name", FILES)
def test_every_frame_at_its_own_time(tmp_path, name):
    source = make(tmp_path / name, **FILES[name])
    target = tmp_path / "out" / "a.mp4"
    reencode(Job(source, target), Encoding(32, gop=6, crf=8))
    times, pictures = all_frames(source)
    out_times, out_pictures = all_frames(target)
    np.testing.assert_allclose(out_times, times, atol=1e-6)
    assert min(out_pictures.shape[1:3]) == 32
    assert_same_pictures(out_pictures, pictures)
    if "turned" not in name:
        assert [read_number(p.numpy()) for p in out_pictures] == [read_number(p.numpy()) for p in pictures]
    assert [i for i, key in enumerate(packets(target)) if key] == list(range(0, len(times), 6))
    with av.open(str(target)) as container:
        assert [s.type for s in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.sample_aspect_ratio in (None, 0, 1)
        assert next(container.decode(stream)).rotation == 0
    assert [p.name for p in target.parent.iterdir()] == ["a.mp4"]


def test_pixels_become_square(tmp_path):
    source = tmp_path / "wide.mp4"
    with av.open(str(source), "w") as container:  # 64x48 pixels, each twice as wide as high: shown 128x48
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for i in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_frame(i), format="rgb24")))
        container.mux(stream.encode(None))
    reencode(Job(source, tmp_path / "out.mp4"), SMALL)
    with open_video(tmp_path / "out.mp4") as video:
        assert (video.info.width, video.info.height, video.info.num_frames) == (86, 32, 6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1920, 1080, None, 0, 256), (456, 256)),
        ((1080, 1920, None, 0, 256), (256, 456)),
        ((1920, 1080, None, 1, 256), (256, 456)),
        ((320, 240, None, 0, 256), (320, 240)),  # never enlarged
        ((321, 241, None, 0, 256), (320, 240)),
        ((720, 576, Fraction(16, 11), 0, 256), (466, 256)),
        ((720, 576, Fraction(16, 11), 3, 256), (256, 466)),
        ((340, 256, Fraction(1), 2, 256), (340, 256)),
    ],
)
def test_sizes(given, expected):
    assert output_size(*given) == expected


# Cutting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("a.mp4", {"b_frames": 2, "gop": 50}),
        ("open_gop.mkv", {"b_frames": 3, "gop": 30, "codec_options": {"x264-params": "open-gop=1"}}),
        ("a.webm", {"codec": "libvpx-vp9", "gop": 60}),
        ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("late.ts", {"b_frames": 2, "start": 100}),
        ("one_key.mp4", {"gop": 600}),
    ],
)
def test_only_the_span_is_written(tmp_path, name, recipe):
    source = make(tmp_path / name, frames=600, fps=20, **recipe)
    for number, (start, end, first, last) in enumerate([(0, 2, 0, 39), (14.02, 16, 280, 319), (29, 40, 580, 599)]):
        target = tmp_path / f"{number}.mp4"
        reencode(Job(source, target, start, end), SMALL)
        times, pictures = all_frames(target)
        assert [read_number(p.numpy()) for p in pictures] == list(range(first, last + 1))
        source_times = all_frames(source)[0][first : last + 1] if number == 1 else None
        if source_times is not None:
            np.testing.assert_allclose(times, source_times - source_times[0], atol=1e-6)
    with pytest.raises(DecodeError, match=r"is to be cut from 31 s on, but ends at 30\.0 s"):
        reencode(Job(source, tmp_path / "late.mp4", 31, 41), SMALL)


# Pictures ---------------------------------------------------------------------------------------------------------


def write_pictures(folder, numbers):
    folder.mkdir()
    for number in numbers:
        with av.open(str(folder / f"{number:05d}.jpg"), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            picture = av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24")
            container.mux(stream.encode(picture))
            container.mux(stream.encode(None))


def test_folder_of_pictures(tmp_path):
    write_pictures(tmp_path / "100%d", range(1, 21))
    reencode(Job(tmp_path / "100%d", tmp_path / "out.mp4"), Encoding(48, gop=6))
    times, pictures = all_frames(tmp_path / "out.mp4")
    np.testing.assert_allclose(times, np.arange(20) / 12, atol=1e-6)
    assert [read_number(p.numpy()) for p in pictures] == list(range(1, 21))
    assert_same_pictures(pictures, torch.from_numpy(np.stack([draw_frame(i) for i in range(1, 21)])), tolerance=14)


@pytest.mark.parametrize(("numbers", "gap"), [([1, 2, 4], "00003"), ([2, 3], "00001"), ([], "00001")])
def test_a_gap_in_the_pictures_is_told(tmp_path, numbers, gap):
    write_pictures(tmp_path / "7", numbers)
    with pytest.raises(DecodeError, match=rf"{gap}\.jpg is missing"):
        reencode(Job(tmp_path / "7", tmp_path / "out.mp4"), SMALL)
    assert not (tmp_path / "out.mp4").exists()


# Many -------------------------------------------------------------------------------------------------------------


def jobs_for(folder, count, **recipe):
    (folder / "in").mkdir()
    write_video(folder / "in" / "0.mp4", **recipe)
    for i in range(1, count):
        os.link(folder / "in" / "0.mp4", folder / "in" / f"{i}.mp4")
    return [Job(folder / "in" / f"{i}.mp4", folder / "out" / f"{i}.mp4") for i in range(count)]


def test_bad_files_are_told_and_the_others_written(tmp_path):
    jobs = jobs_for(tmp_path, 3)
    folder = tmp_path / "in"
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video")
    write_audio(folder / "audio.mp4")
    whole = (folder / "0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    damaged = bytearray(whole)
    at = whole.index(b"mdat") + 2000
    damaged[at : at + 1500] = bytes(1500)
    (folder / "damaged.mp4").write_bytes(damaged)
    bad = ["empty", "text", "audio", "cut", "damaged", "absent"]
    jobs += [Job(folder / f"{name}.mp4", tmp_path / "out" / f"{name}.mp4") for name in bad]
    failed = reencode_all(jobs, SMALL, tmp_path / "out", processes=2)
    assert {path.stem for path in failed} == set(bad)
    assert all(failed.values())
    assert "empty" in failed[tmp_path / "out" / "empty.mp4"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.mp4", "1.mp4", "2.mp4", "encoding.json"]


def test_what_is_there_is_not_written_again_and_torn_files_go(tmp_path):
    jobs = jobs_for(tmp_path, 2)
    assert reencode_all(jobs[:1], SMALL, tmp_path / "out", processes=1) == {}
    before = jobs[0].target.stat()
    (tmp_path / "out" / ".1.77.tmp.mp4").write_bytes(b"torn")
    assert reencode_all([*jobs, jobs[1]], SMALL, tmp_path / "out", processes=1) == {}
    assert jobs[0].target.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(os.listdir(tmp_path / "out")) == ["0.mp4", "1.mp4", "encoding.json"]


def test_videos_of_other_settings_are_never_mixed(tmp_path):
    jobs = jobs_for(tmp_path, 1)
    reencode_all(jobs, SMALL, tmp_path / "out", processes=1)
    with pytest.raises(ValueError, match=r"other settings.*'gop': 6.*choose another --out"):
        reencode_all(jobs, Encoding(32, gop=7), tmp_path / "out", processes=1)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [(Encoding(255), "--short-side must be an even"), (Encoding(8), "--short-side"), (Encoding(256, gop=0), "--gop"),
     (Encoding(256, crf=52), "--crf")],
)  # fmt: skip
def test_settings_that_cannot_be(tmp_path, encoding, message):
    with pytest.raises(ValueError, match=message):
        reencode_all([], encoding, tmp_path, processes=1)
    assert not any(tmp_path.iterdir())


RUN = """
import sys
from pathlib import Path
from lookupvit_video.preparation.reencode import Encoding, Job, reencode_all
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    jobs = [Job(p, folder / "out" / p.name) for p in sorted((folder / "in").iterdir())]
    reencode_all(jobs, Encoding(96, gop=6), folder / "out", processes=2)
"""


def stop_when(ended, condition, process=None):
    """Wait until something holds, with the process (group, if negative; default: that of the torn file) stopped."""
    deadline = time.monotonic() + 300
    while True:
        assert not ended(), "it ended too early"
        assert time.monotonic() < deadline
        if found := condition():
            target = process or int(found[0].name.split(".")[-3])
            os.kill(target, signal.SIGSTOP)
            if found := condition():
                return found
            os.kill(target, signal.SIGCONT)
        time.sleep(0.002)


def test_a_run_that_is_killed_is_gone_on_with(tmp_path):
    count = 8
    jobs = jobs_for(tmp_path, count, frames=120, size=(192, 144))
    script = tmp_path / "run.py"
    script.write_text(RUN)
    out = tmp_path / "out"
    run = subprocess.Popen([sys.executable, str(script), str(tmp_path)], start_new_session=True)

    def in_the_middle():
        return len(list(out.glob("[0-9]*.mp4"))) > 2 and list(out.glob(".*.tmp.mp4"))

    try:
        assert stop_when(lambda: run.poll() is not None, in_the_middle, process=-run.pid)
    finally:
        os.killpg(run.pid, signal.SIGKILL)  # the command and every process it started
        run.wait(60)
    done = sorted(out.glob("[0-9]*.mp4"))
    before = {path: path.stat().st_mtime_ns for path in done}
    assert 3 <= len(done) < count
    for path in done:
        assert len(packets(path)) == 120  # what has its name is whole
    assert reencode_all(jobs, Encoding(96, gop=6), out, processes=2) == {}
    assert sorted(os.listdir(out)) == sorted([*(job.target.name for job in jobs), "encoding.json"])
    assert {path: path.stat().st_mtime_ns for path in done} == before
    for job in jobs:
        times, pictures = all_frames(job.target)
        assert [read_number(p.numpy()) for p in pictures] == list(range(120))
        np.testing.assert_allclose(times, np.arange(120) / 24, atol=1e-6)
    assert json.loads((out / "encoding.json").read_text()) == {"short_side": 96, "gop": 6, "crf": 23}


def test_a_process_that_dies_loses_its_own_video_alone(tmp_path):
    jobs, out = jobs_for(tmp_path, 4, frames=120, size=(192, 144)), tmp_path / "out"
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(reencode_all, jobs, Encoding(96, gop=6), out, processes=2)
        (torn, *_) = stop_when(run.done, lambda: sorted(out.glob(".*.tmp.mp4")))
        os.kill(int(torn.name.split(".")[-3]), signal.SIGKILL)
        failed = run.result(timeout=300)
    (target,) = failed
    assert "SIGKILL" in failed[target]
    assert {path.name for path in out.glob("[0-9]*.mp4")} == {job.target.name for job in jobs} - {target.name}
    assert reencode_all(jobs, Encoding(96, gop=6), out, processes=1) == {}
    assert sorted(os.listdir(out)) == sorted([*(job.target.name for job in jobs), "encoding.json"])
