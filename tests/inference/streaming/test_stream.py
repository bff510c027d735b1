"""Sources watched with one model: events as those of a file's timeline, a model that is too slow, a clean end."""

import threading
import time

import av
import numpy as np
import pytest
import torch

from lookupvit_video.drawing.figures import class_color
from lookupvit_video.errors import UserError
from lookupvit_video.inference.annotate import SMALLEST_WIDTH, AnswerPanel
from lookupvit_video.inference.streaming.frames import Window
from lookupvit_video.inference.streaming.source import Source
from lookupvit_video.inference.streaming.stream import Streamer, StreamOptions
from lookupvit_video.inference.timeline import find_segments, read_timeline
from tests.inference.streaming.servers import color_predictor, serving_files, write_colors

NAMES = ["red", "green", "blue", "red"]


def watch(predictor, *sources, stop=None, **options):
    """Return the events of some sources, and their summaries."""
    events = []
    stop = stop or threading.Event()
    sources = [Source(str(source), "http" if "://" in str(source) else "file") for source in sources]
    summaries = Streamer(predictor, sources, StreamOptions(**options), events.append, stop).run()
    return events, summaries


def ended(events, source=None):
    return [(event["label"], event["start"], event["end"]) for event in events
            if event["event"] == "end" and source in (None, event["source"])]  # fmt: skip


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("video") / "x.mp4", NAMES)


def test_the_events_of_a_file_are_the_segments_of_its_timeline(video):
    predictor = color_predictor()
    events, (summary,) = watch(predictor, video)
    segments = find_segments(read_timeline(predictor, video))
    assert [name for name, _, _ in ended(events)] == [segment.label for segment in segments] == NAMES
    for (_, start, end), segment in zip(ended(events), segments, strict=True):
        assert start == pytest.approx(segment.start, abs=0.125)
        assert end == pytest.approx(segment.end, abs=0.125)
    assert (summary["frames"], summary["dropped"], summary["skipped"], summary["events"]) == (128, 0, 0, 4)
    assert summary["decisions"] in (61, 62)
    assert summary["latency_p50_ms"] <= summary["latency_p99_ms"]
    assert events[-1] == summary


def test_classes_by_themselves_and_decisions(video):
    events, _ = watch(color_predictor(), video, enter=0.6, leave=0.5, decisions=True)
    assert [name for name, _, _ in ended(events)] == NAMES
    windows = [event for event in events if event["event"] == "window"]
    assert windows[0].keys() >= {"label", "start", "end", "probability", "latency_ms"}
    assert len(windows) > 50


def test_the_video_of_a_source_has_the_answer_of_the_time(video, tmp_path):
    path = tmp_path / "annotated.mp4"
    watch(color_predictor(), video, realtime=True, annotate=str(path))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(video)) as container:
        originals = list(container.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([frame.time for frame in originals], abs=1e-3)
    enlarged = originals[0].width * -(-SMALLEST_WIDTH // originals[0].width)
    pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in frames]
    assert pictures[0].shape[1] == enlarged
    height = pictures[0].shape[0] - AnswerPanel(["red"], enlarged).height
    assert abs(pictures[60][:height].mean((0, 1)) - originals[60].to_ndarray(format="rgb24").mean((0, 1))).max() < 4
    bar = height + round(40 * AnswerPanel(["red"], enlarged).scale)
    for index, name in ((28, 0), (60, 1), (90, 2)):  # late in each second: windows of a second and less have answered
        assert abs(pictures[index][bar, 12] - 255 * np.array(class_color(name))).max() < 24
    assert pictures[0][height:].std() < pictures[60][height:].std()  # nothing is known at first


def test_one_source_has_one_video(video):
    with pytest.raises(UserError, match="writes the video of one source; there are 2"):
        watch(color_predictor(), video, str(video) + "2", annotate="x.mp4")


def test_several_sources_share_passes_of_the_model(video, tmp_path):
    predictor, sizes = color_predictor(), []
    answer = predictor.predict_clips
    predictor.predict_clips = lambda clips, grid=None: [sizes.append(len(clips)), answer(clips)][1]
    other = write_colors(tmp_path / "y.mp4", ["blue", "green"])
    events, summaries = watch(predictor, video, other, batch_size=8)
    assert [name for name, _, _ in ended(events, video)] == NAMES
    assert [name for name, _, _ in ended(events, other)] == ["blue", "green"]
    assert max(sizes) <= 8
    assert len(sizes) < sum(summary["decisions"] for summary in summaries) / 2
    alone, _ = watch(color_predictor(), video)
    assert ended(events, video) == ended(alone)


def test_a_model_that_is_too_slow_stays_current(tmp_path):
    """A window takes 0.25 s, twice as long as a stride; the video lasts 4 s."""
    video, start = write_colors(tmp_path / "x.mp4", NAMES, seconds=1), time.monotonic()
    _, (summary,) = watch(color_predictor(0.25), video, realtime=True, buffer=0.6)
    assert time.monotonic() - start < 8
    assert summary["frames"] == 64
    assert summary["dropped"] + summary["skipped"] > 0
    assert 4 < summary["decisions"] < 28
    assert summary["latency_p99_ms"] < 3000  # a second late, a pass of a second, and what waits meanwhile


def test_late_windows_are_skipped_the_oldest_first():
    streamer = Streamer(color_predictor(), [Source("rtsp://h/x", "rtsp")], StreamOptions(), print, threading.Event())
    (watched,), now = streamer.watches, time.monotonic()

    def choose(ages, cost):
        streamer._cost = cost
        watched.waiting.clear()
        clip = torch.zeros(3, 1, 8, 8)
        watched.waiting += [Window(float(i), clip, now - age, i == 0) for i, age in enumerate(ages)]
        return [(window.start, window.after_cut) for _, window in streamer._next_batch()]

    assert choose([0.9, 0.5, 0.1], 0.9) == [(0, True)]  # not late yet
    assert choose([5, 4, 3, 2], 0.3) == [(1, True), (2, False), (3, False)]  # of an interruption the first one tells
    assert choose([5, 4, 3, 2], 60.0) == [(3, True)]
    assert choose([5, 4, 3, 2], 0.0) == [(0, True), (1, False), (2, False), (3, False)]
    assert watched.skipped == 1 + 3
    watched.is_live = False
    assert len(choose([50] * 9, 60.0)) == 8
    assert watched.skipped == 1 + 3


def test_a_file_without_realtime_waits_for_the_model(video):
    _, (summary,) = watch(color_predictor(0.005), video, buffer=0.6)
    assert (summary["dropped"], summary["skipped"]) == (0, 0)
    assert summary["decisions"] in (61, 62)


def test_a_live_playlist_that_grows(tmp_path):
    """Segments of a second appear one by one."""
    options = {"hls_time": "0.5", "hls_list_size": "0", "hls_flags": "split_by_time"}
    write_colors(tmp_path / "x.m3u8", ["red", "green", "blue"], 1.0, container_format="hls", options=options)
    lines = (tmp_path / "x.m3u8").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("#EXTINF"))
    with serving_files(tmp_path) as address:

        def grow():
            for count in range(2, 7):
                (tmp_path / "new").write_text("\n".join(lines[: first + 2 * count]) + "\n")
                (tmp_path / "new").rename(tmp_path / "live.m3u8")
                time.sleep(0.2)
            (tmp_path / "live.m3u8").write_text("\n".join(lines) + "\n")

        thread = threading.Thread(target=grow)
        thread.start()
        time.sleep(0.1)
        events, (summary,) = watch(color_predictor(), f"{address}/live.m3u8", retries=3)
        thread.join()
    assert [name for name, _, _ in ended(events)] == ["red", "green", "blue"]
    assert (summary["frames"], summary["dropped"], summary["cuts"]) == (48, 0, 0)
    for (_, start, end), expected in zip(ended(events), ((0, 1), (1, 2), (2, 3)), strict=True):
        assert (start, end) == pytest.approx(expected, abs=0.2)


def test_a_stop_ends_what_is_open(video):
    stop, events = threading.Event(), []
    timer = threading.Timer(1.5, stop.set)
    timer.start()
    start = time.monotonic()
    events, (summary,) = watch(color_predictor(), video, stop=stop, realtime=True)
    timer.join()
    assert time.monotonic() - start < 5
    assert ended(events)[-1][0] == "red"
    assert 0 < summary["seconds"] < 8
    assert events[-1] == summary


def test_a_source_that_fails_does_not_end_the_others(video, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"\x00" * 1000)
    events, summaries = watch(color_predictor(), video, tmp_path / "bad.mp4")
    assert [name for name, _, _ in ended(events)] == NAMES
    assert "error" not in summaries[0]
    assert "not a video" in summaries[1]["error"]
    assert summaries[1]["latency_p50_ms"] is None


def test_a_bug_in_a_source_is_raised(video, monkeypatch):
    monkeypatch.setattr("lookupvit_video.inference.streaming.reader.RgbConverter.convert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watch(color_predictor(), video)
