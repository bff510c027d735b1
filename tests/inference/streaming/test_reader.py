"""The thread that reads a source: pace, interruptions, what it passes on."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch

from lookupvit_video.inference.streaming import reader as module
from lookupvit_video.inference.streaming.frames import CUT, FrameQueue, WindowBuilder, WindowGrid
from lookupvit_video.inference.streaming.reader import ReaderOptions, SourceReader
from lookupvit_video.inference.streaming.source import Source
from lookupvit_video.inference.timeline import open_windows, window_offsets
from tests.inference.streaming.servers import (
    color_predictor,
    serving_files,
    serving_pieces,
    serving_rtsp,
    write_colors,
)
from tests.videos import write_video

GRID = WindowGrid(0.125, np.arange(4) * 0.125)


def read(source, grid=GRID, **options):
    """Read a source to its end; return the reader and its frames."""
    queue, stop = FrameQueue(1e9, threading.Condition(), drops=False), threading.Event()
    options = {"size": 32, "short_side": 32, "first_wait": 0.05, **options}
    thread = SourceReader(source, grid, queue, ReaderOptions(**options), stop)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert thread.bug is None
    assert queue.is_closed
    return thread, queue.take()


@pytest.mark.parametrize(("name", "options"), [
    ("x.mp4", {"b_frames": 2, "rotation": 90}), ("x.webm", {"codec": "libvpx-vp9"}),
    ("x.mp4", {"times": [0, 0.1, 0.15, 0.2, 0.6, 0.65, 0.7, 1.2, 1.25, 1.3]}),
])  # fmt: skip
def test_windows_have_the_pixels_of_those_of_a_file(tmp_path, name, options):
    options = {"frames": 40, **options}
    options["frames"] = len(options.get("times", range(40)))
    path = write_video(tmp_path / name, **options)
    plan = color_predictor().plan
    grid = WindowGrid(0.125, window_offsets(plan, plan.clip_seconds))
    thread, frames = read(Source(path, "file"), grid, size=plan.size, short_side=plan.short_side)
    builder = WindowBuilder(grid)
    found = {window.start: window.clip for frame in frames for window in builder.add(frame)}
    assert thread.frames == options["frames"]
    with open_windows(path, plan, 0.125, None) as expected:
        pairs = list(zip(expected.starts.tolist(), expected.clips, strict=True))
    assert len(found) >= len(pairs) - 1
    assert all(torch.equal(found[start], clip) for start, clip in pairs[:-1])
    assert thread.seconds == pytest.approx(expected.duration, abs=0.3)


def test_a_cut_connection_is_made_again(tmp_path):
    data = [(tmp_path / f"{i}.ts") for i in range(2)]
    for path in data:
        write_colors(path, ["red"], seconds=1)
    with serving_pieces([path.read_bytes() for path in data]) as address:
        thread, frames = read(Source(f"{address}/live", "http"), retries=2)
    assert (thread.cuts, thread.frames) == (1, 32)
    assert "404 Not Found" in thread.error
    (cut,) = [frame for frame in frames if frame.gap]
    assert cut.gap == CUT
    assert cut.start > frames[frames.index(cut) - 1].start
    assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(frames))


def test_a_camera_of_the_network_is_cut_off(tmp_path):
    write_colors(tmp_path / "x.ts", ["red"], seconds=1)
    with serving_rtsp((tmp_path / "x.ts").read_bytes()) as address:
        queue, stop = FrameQueue(1e9, threading.Condition(), drops=True), threading.Event()
        options = ReaderOptions(32, 32, first_wait=0.05)
        thread = SourceReader(Source(address, "rtsp"), GRID, queue, options, stop)
        thread.start()
        deadline = time.monotonic() + 30
        while thread.cuts < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        thread.join(10)
    assert thread.cuts >= 1
    assert thread.frames > 15
    assert not thread.error
    assert any(frame.gap == CUT for frame in queue.take())


def test_a_source_that_is_not_there_is_an_error_after_the_retries():
    with serving_pieces([]) as address:
        thread, frames = read(Source(f"{address}/live", "http"), retries=1)
    assert (thread.frames, frames, thread.cuts) == (0, [], 0)
    assert thread.error.startswith("cannot be opened (")


def test_what_has_an_end_is_not_repeated(tmp_path):
    """A playlist that is complete begins at its beginning again, after an interruption too."""
    write_colors(tmp_path / "x.ts", ["red", "green"], seconds=0.5)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:{},\nx.ts\n#EXT-X-ENDLIST\n"
    for length in (1, 9):
        (tmp_path / "x.m3u8").write_text(playlist.format(length))
        with serving_files(tmp_path) as address:
            thread, frames = read(Source(f"{address}/x.m3u8", "http"), retries=5)
        assert (thread.frames, thread.error, thread.cuts) == (16, "", 0)
        assert not any(frame.gap for frame in frames)


def test_a_file_at_its_own_speed(tmp_path):
    path = write_colors(tmp_path / "x.mp4", ["red"], seconds=0.75)
    start = time.monotonic()
    _, frames = read(Source(path, "file"), realtime=True)
    assert time.monotonic() - start >= 0.65
    lags = [frame.arrived - frame.start for frame in frames]
    assert min(lags) >= frames[0].arrived - 1e-3


def test_a_bug_does_not_go_unnoticed(tmp_path, monkeypatch):
    path = write_colors(tmp_path / "x.mp4", ["red"], seconds=0.5)
    monkeypatch.setattr(module.RgbConverter, "convert", lambda *_: 1 / 0)
    queue = FrameQueue(9, threading.Condition(), drops=False)
    thread = SourceReader(Source(path, "file"), GRID, queue, ReaderOptions(32, 32), threading.Event())
    thread.start()
    thread.join(30)
    assert isinstance(thread.bug, ZeroDivisionError)
    assert queue.is_closed
