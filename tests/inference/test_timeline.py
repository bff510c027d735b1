"""Windows over long videos, and the segments they are merged into.

An hour of Moving Digits, with its peak of memory and its F1, runs when a checkpoint of them is named:
LOOKUPVIT_HOUR=runs/demo_motion/model.pt python -m pytest -s tests/inference/test_timeline.py -k hour
"""

import csv
import itertools
import math
import os
import random
import resource
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import read_clips
from lookupvit_video.data.manifest import Video, read_class_list
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.transforms import eval_transform, normalize
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.inference import timeline as module
from lookupvit_video.inference.annotate import open_writer
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.inference.timeline import (
    CHANGE_COST,
    SEGMENTS_WINDOW,
    Segment,
    Timeline,
    _likeliest_labels,
    find_segments,
    leading_classes,
    plan_windows,
    read_timeline,
    timeline_as_json,
    window_clips,
)
from lookupvit_video.inference.views import make_plan
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import read_number, write_video

COLORS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 200)}


def segment_f1(found, true, overlap=0.5):
    """F1 of segments (start, end, label): one is right if a true one of its label overlaps it by so much (IoU)."""
    right, free = 0, list(true)
    for start, end, label in found:
        for other in free:
            shared = min(end, other[1]) - max(start, other[0])
            if label == other[2] and shared / (max(end, other[1]) - min(start, other[0])) >= overlap:
                right += 1
                free.remove(other)
                break
    return 2 * right / (len(found) + len(true))


def merged(rows):
    """Join true segments that follow each other with the same label: nobody could see where one ends."""
    joined = []
    for start, end, label in rows:
        if joined and joined[-1][2] == label:
            start = joined.pop()[0]
        joined.append((start, end, label))
    return joined


def as_rows(segments):
    return [(segment.start, segment.end, segment.label) for segment in segments]


def timeline(labels, stride=0.5, window=2.0, sure=0.97, classes="abc"):
    """Return a timeline whose window i is sure of ``labels[i]``."""
    starts = stride * np.arange(len(labels))
    probabilities = np.full((len(labels), len(classes)), (1 - sure) / (len(classes) - 1), dtype=np.float32)
    probabilities[np.arange(len(labels)), [classes.index(label) for label in labels]] = sure
    return Timeline("x.mp4", starts[-1] + window, window, starts, probabilities, list(classes))


# Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.mp4", {"b_frames": 2, "rotation": 90}),
        ("x.webm", {"codec": "libvpx-vp9"}),
        ("x.avi", {"codec": "mpeg4", "b_frames": 2}),  # whose time stamps are those of packets, not of pictures
        ("late.mp4", {"start": -5, "b_frames": 2}),
    ],
)
def test_the_walk_gives_the_frames_that_a_reader_gives(tmp_path, name, options):
    path = write_video(tmp_path / name, frames=40, **options)
    with open_video(path) as reader, PyAVReader(path, threads=0) as forward:
        for times in (reader.times, reader.times[3::4], np.repeat(reader.times[[0, 0, 17, 39 - 5]], 2), [0.21, 99.0]):
            expected = reader.frames_at(list(times))
            walked = [torch.from_numpy(picture.copy()) for picture in forward.walk(list(times))]
            assert torch.equal(torch.stack(walked), expected)


def test_the_walk_goes_on_where_a_decode_contradicts_the_packets(tmp_path):
    path = Path(write_video(tmp_path / "x.mp4", frames=60, gop=60, b_frames=2))
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    with PyAVReader(path, threads=0) as forward:
        before = forward.times
        numbers = [read_number(picture) for picture in forward.walk(before.tolist())]
        assert forward.damage
        assert len(numbers) == len(before)
        assert numbers[:20] == list(range(20))
    times = before[1::3].tolist()  # pictures between may be spared only while it is known which they are
    with PyAVReader(path, threads=0) as forward, open_video(path) as reader:
        pictures = [torch.from_numpy(picture.copy()) for picture in forward.walk(times)]
        assert torch.equal(torch.stack(pictures)[-6:], reader.frames_at(times)[-6:])


def test_windows_cover_a_video_once_and_end_where_it_ends():
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "12", "DATA.TARGET_FPS", "24"])
    starts, window = plan_windows(make_plan(cfg), 9.3, None, None)
    assert window == 2.0
    assert starts[:3].tolist() == [0, 0.5, 1]
    assert starts[-1] == pytest.approx(7.3)
    assert np.diff(starts).max() <= 0.5
    assert plan_windows(make_plan(cfg), 10.0, 2.0, None)[0].tolist() == [0, 2, 4, 6, 8]
    assert plan_windows(make_plan(cfg), 1.0, None, None)[0].tolist() == [0]
    with pytest.raises(ValueError, match=r"--stride must .* from 0.01 on, got 0"):
        plan_windows(make_plan(cfg), 10.0, 0.0, None)
    with pytest.raises(ValueError, match="--window: this model sees clips of a fixed length"):
        plan_windows(make_plan(cfg), 10.0, None, 3.0)
    segments = load_config(None, [*SMALL, "DATA.SAMPLING", "segments"])
    assert plan_windows(make_plan(segments), 10.0, None, None)[1] == 4  # of a checkpoint that knows no better
    trained = load_config(None, [*SMALL, "DATA.SAMPLING", "segments", "DATA.VIDEO_SECONDS", "2.5"])
    assert plan_windows(make_plan(trained), 10.0, None, None)[1] == 2.5
    assert plan_windows(make_plan(trained), 10.0, None, 3.0)[1] == 3
    assert plan_windows(make_plan(segments), 10.0, None, 3.0)[0].tolist() == [0.75 * i for i in range(10)] + [7.0]


def test_windows_are_the_clips_of_a_data_set_and_only_one_windows_pictures_are_kept(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=240, fps=24, b_frames=2)
    crop = eval_transform(24, 32, 1)
    kept, calls = [], []

    def transform(frames_THWC):
        clip = crop(frames_THWC)[0]
        kept.append(weakref.ref(clip))
        calls.append(len(frames_THWC))
        return [clip]

    starts = np.arange(0, 8, 0.3)
    times = starts[:, None] + np.arange(8) * 0.25
    with PyAVReader(path, threads=0) as reader:
        for number, clip in enumerate(window_clips(reader, times, transform)):
            assert sum(frame() is not None for frame in kept) <= 2.0 * 24
            if number % 9 == 4:
                start = starts[number]
                video = Video(path, 0, start, start + 2.0)
                expected = read_clips(video, TimeSampler(num_frames=8, step=0.25), crop, "pyav")[0]
                assert torch.equal(clip, expected)
    assert number == len(starts) - 1
    assert sum(calls) == len(np.unique(np.floor(times * 24 + 1e-6)))  # each once


# Segments ---------------------------------------------------------------------------------------------------------


def test_windows_across_a_cut_do_not_count():
    # Four windows to a length: those at 0.5 to 1.5 s lie across the cut at 2 s, and say c.
    found = find_segments(timeline("acccbbbbb" + "ccc" + "a"), change_cost=0)
    assert as_rows(found) == [(0, 2, "a"), (2, 6.0, "b"), (6.0, 8.0, "a")]
    assert [segment.probability for segment in found] == pytest.approx([0.97] * 3)
    assert as_rows(find_segments(timeline("aaaaacacbbbbbb"))) == [(0, 4.0, "a"), (4.0, 8.5, "b")]


def test_a_single_doubtful_window_does_not_split_a_segment():
    assert as_rows(find_segments(timeline("aaaaabaaaaaa"))) == [(0, 7.5, "a")]
    of_three = [(0, 4, "a"), (4, 6, "b"), (6, 10, "a")]
    assert as_rows(find_segments(timeline("aabaa", stride=2.0), change_cost=0)) == of_three
    assert len(find_segments(timeline("aabaa", stride=2.0), change_cost=4)) == 1


def test_doubtful_segments_can_be_left_out():
    unsure = timeline("aaaaabbbbbb")
    unsure.probabilities[5:] = (0.2, 0.5, 0.3)
    assert [segment.label for segment in find_segments(unsure, change_cost=1)] == ["a", "b"]
    assert as_rows(find_segments(unsure, change_cost=1, min_probability=0.6))[0][2] == "a"
    assert len(find_segments(unsure, change_cost=1, min_probability=0.6)) == 1


def test_the_labels_are_those_of_the_best_path():
    draw = np.random.default_rng(5)
    for _ in range(20):
        scores = np.log(draw.dirichlet([0.3] * 3, size=7)).astype(np.float32).clip(-4)
        before = np.maximum(np.arange(7) - draw.integers(1, 4), -1)
        cost = draw.uniform(0, 3)
        labels = _likeliest_labels(scores, before, cost)
        assert _worth(labels, scores, before, cost) == pytest.approx(
            max(_worth(path, scores, before, cost) for path in itertools.product((-1, 0, 1, 2), repeat=7)), abs=1e-4
        )


def _worth(path, scores, before, cost):
    """The sum that is maximized, of a path with -1 for windows left out; -inf where a change comes too soon."""
    total, last = 0.0, None
    if path[-1] < 0:
        return -np.inf
    for row, label in enumerate(path):
        if label < 0:
            continue
        if last is None and row > 0:
            return -np.inf  # windows are left out at changes only
        if last is not None and last != (row - 1, label):
            if last[0] != before[row]:
                return -np.inf
            total -= cost
        total += scores[row, label]
        last = (row, label)
    return total


def test_the_json_has_times_segments_and_classes():
    facts = timeline_as_json(timeline("aab"), [Segment(0, 3, "a", 0.97)], topk=2)
    assert facts["segments"] == [{"start": 0, "end": 3, "label": "a", "probability": 0.97}]
    assert facts["duration"] == 3
    assert [window["start"] for window in facts["windows"]] == [0, 0.5, 1]
    assert facts["windows"][2]["end"] == 3
    assert list(facts["windows"][2]["classes"]) == ["b", "a"]


# Small things ---------------------------------------------------------------------------------------------------------


def test_lengths_that_the_documentation_names():
    assert SEGMENTS_WINDOW == 4.0
    assert CHANGE_COST == 2.0
    assert module.SMALLEST == 0.01


def test_a_window_speaks_for_the_time_that_its_center_is_nearest_to():
    found = Timeline("x", 5.0, 2.0, np.array([0.0, 1.0, 3.0]), np.zeros((3, 2)), ["a", "b"])
    assert found.centers.tolist() == [1.0, 2.0, 4.0]
    assert found.borders.tolist() == [0.0, 1.5, 3.0, 5.0]
    assert [found.at(seconds) for seconds in (-1.0, 0.0, 1.49, 1.5, 2.99, 3.0, 4.9, 5.0, 9.0)] == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        2,
        2,
    ]
    short = Timeline("x", 0.5, 2.0, np.array([0.0]), np.zeros((1, 2)), ["a", "b"])
    assert (short.centers.tolist(), short.borders.tolist(), short.at(0.4)) == ([0.5], [0.0, 0.5], 0)


def test_windows_have_the_models_length_or_one_of_their_own():
    clip = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "3", "DATA.TARGET_FPS", "24"])
    segments = load_config(None, [*SMALL, "DATA.SAMPLING", "segments"])
    assert plan_windows(make_plan(clip), 0.9, 0.125, None)[1] == 0.5
    assert plan_windows(make_plan(clip), 0.9, None, None)[0].tolist() == pytest.approx([0, 0.125, 0.25, 0.375, 0.4])
    assert plan_windows(make_plan(clip), 0.5008, 0.25, None)[0].tolist() == [0]  # less than a frame is no window more
    assert plan_windows(make_plan(clip), 0.502, 0.25, None)[0].tolist() == pytest.approx([0, 0.002])
    assert plan_windows(make_plan(clip), 0.75 - 1e-7, 0.25, None)[0].tolist() == [
        0,
        0.25,
    ]  # a rounding error is no window less
    assert plan_windows(make_plan(segments), 0.02, 0.01, 0.01)[1] == 0.01
    for stride, window in ((0.01, 0.01), (None, 0.04)):
        assert plan_windows(make_plan(segments), 1.0, stride, window)[0][1] == pytest.approx(0.01)
    for stride, window, name in ((None, 0.009, "--window"), (0.009, None, "--stride"), (float("inf"), None, "--stride"),
                                 (None, float("inf"), "--window"), (float("nan"), 1.0, "--stride")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must be a number of seconds from 0.01 on"):
            plan_windows(make_plan(segments), 10.0, stride, window)


def test_how_long_a_video_may_take(monkeypatch):
    opened = []
    monkeypatch.setattr(module, "PyAVReader", lambda *given, **options: opened.append((given, options)))
    for usual, timeout, limit in (
        (6, math.inf, 60.0),
        (6, 7.0, 7.0),
        (6, 90.0, 60.0),
        (0, math.inf, 0.0),
        (0, 7.0, 7.0),
    ):
        cfg = load_config(None, [*SMALL, "DATA.DECODE_TIMEOUT", str(usual), "DATA.INDEX_CACHE", "index"])
        module.open_forward("x.mp4", make_plan(cfg), timeout)
        assert opened.pop() == (("x.mp4",), {"timeout": limit, "index_cache": "index", "threads": 0})
    module.open_forward("x.mp4", make_plan(cfg))
    assert opened.pop()[1]["timeout"] == 0.0


def test_a_single_reader_decodes_on_more_than_one_thread(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=4)
    with PyAVReader(path, threads=0) as forward, open_video(path) as reader:
        assert [decoder_of(each).thread_type.name == "NONE" for each in (forward, reader)] == [False, True]


def decoder_of(reader):
    return reader.file.decoder


def test_no_window_rules_a_class_out():
    """One window that gives a class nothing costs it ln(100) at most, less than two changes of 2.5 gain."""
    doubtful = timeline("aaaaaaaaaaaaa", stride=2.0, sure=0.5)
    doubtful.probabilities[6] = (0.0, 1.0, 0.0)
    assert len(find_segments(doubtful, change_cost=2.5)) == 1
    assert len(find_segments(doubtful, change_cost=2.25)) == 3


def test_a_segment_as_probable_as_asked_is_kept():
    found = timeline("aaaaa", sure=0.5)
    assert find_segments(found, min_probability=0.5) == [Segment(0.0, 4.0, "a", 0.5)]
    assert find_segments(found, min_probability=0.500001) == []
    assert len(find_segments(found)) == 1


def test_the_leading_classes_have_the_largest_share_of_all_windows():
    found = timeline("aabcc", classes="abcd", sure=0.7)
    assert leading_classes(found, 9) == [0, 2, 1, 3]  # of equals the first
    assert leading_classes(found, 2) == [0, 2]


def test_the_json_is_rounded_and_holds_five_classes():
    starts = np.array([0.0, 1.23456])
    probabilities = np.array([[0.1, 0.123456, 0.3, 0.05, 0.2, 0.2, 0.02654]] * 2)
    found = Timeline("x.mp4", 3.14159, 2.00049, starts, probabilities, list("abcdefg"))
    facts = timeline_as_json(found, [Segment(0.12345, 3.14159, "b", 0.98765)])
    assert facts == {
        "path": "x.mp4", "duration": 3.142, "window": 2.0,
        "segments": [{"start": 0.123, "end": 3.142, "label": "b", "probability": 0.9877}],
        "windows": [
            {"start": start, "end": end, "classes": {"c": 0.3, "e": 0.2, "f": 0.2, "b": 0.1235, "a": 0.1}}
            for start, end in ((0.0, 2.0), (1.235, 3.142))
        ],
    }  # fmt: skip
    assert [list(window["classes"]) for window in facts["windows"]] == [list("cefba")] * 2
    assert list(timeline_as_json(found, [], topk=1)["windows"][0]["classes"]) == ["c"]


class Answers:
    """Stands for a `Predictor`: says how many windows it was given at once."""

    is_streaming = False
    classes = ["a", "b"]
    thresholds = ()

    def __init__(self, *overrides):
        self.cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "4", "DATA.TARGET_FPS", "8", *overrides])
        self.window_plan = make_plan(self.cfg)
        self.batches = []

    def predict_clips(self, clips, grid):
        self.batches.append(len(clips))
        assert clips.shape[1:] == (3, 4, 32, 32)
        return torch.tensor([[0.25, 0.75]]).repeat(len(clips), 1)


def test_windows_are_answered_in_batches_of_the_asked_size(tmp_path, monkeypatch):
    path = write_video(tmp_path / "x.mp4", frames=40, fps=8)  # 5 s: 7 windows
    model = Answers()
    found = read_timeline(model, path, batch_size=3)
    assert model.batches == [3, 3, 1]
    assert (found.path, found.window, found.classes) == (path, 2.0, ["a", "b"])
    assert found.probabilities.tolist() == [[0.25, 0.75]] * 7
    read_timeline(model, path, stride=0.25)
    assert model.batches[3:] == [8, 5]
    monkeypatch.setattr(module, "monotonic", iter(range(100)).__next__)
    assert len(read_timeline(model, path, batch_size=1, timeout=7).starts) == 7  # as long as it may take, not longer


def test_windows_are_cropped_as_in_the_test(tmp_path):
    path, seen = write_video(tmp_path / "x.mp4", frames=16, fps=8), []
    for overrides in ((), ("DATA.TEST_SHORT_SIDE", "40")):
        model = Answers(*overrides)
        model.predict_clips = lambda clips, grid: seen.append(clips) or torch.zeros(len(clips), 2)
        read_timeline(model, path)
        size = 40 if overrides else 32
        with open_video(path) as reader:
            frames = reader.frames_at([0.0, 0.5, 1.0, 1.5])
        assert torch.equal(seen[-1][0], eval_transform(32, size, 1)(frames)[0])


# Whole ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def color_model(tmp_path_factory):
    """A model that has learned to tell three colors, from clips as a camera would see them."""
    cfg = load_config(None, [*SMALL, "MODEL.NUM_CLASSES", "3", "DATA.SAMPLING_RATE", "4", "DATA.TARGET_FPS", "8"])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    paints = torch.tensor(list(COLORS.values()), dtype=torch.float32)
    for _ in range(40):
        labels = torch.arange(12) % 3
        clips = paints[labels].view(12, 3, 1, 1, 1) + 30 * torch.randn(12, 3, 4, 32, 32)
        logits = model(normalize(clips.clamp(0, 255).to(torch.uint8), cfg.DATA.MEAN, cfg.DATA.STD))
        loss = sum(torch.nn.functional.cross_entropy(part, labels) for part in logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, cfg=cfg, classes=list(COLORS), model=model)
    return load_model(path, "cpu")


def test_a_minute_of_colors(color_model, tmp_path):
    draw, fps, true, at = random.Random(1), 8, [], 0
    noise = np.random.default_rng(0)
    path = tmp_path / "minute.mp4"
    with open_writer(path, width=64, height=48, fps=fps) as writer:
        while at < 60 * fps:
            name = draw.choice([name for name in COLORS if not true or name != true[-1][2]])
            end = min(at + draw.randrange(2 * fps + 1, 7 * fps), 60 * fps)
            true.append((at / fps, end / fps, name))
            for frame in range(at, end):
                picture = np.array(COLORS[name]) + noise.normal(0, 30, (48, 64, 3))
                writer.write(picture.clip(0, 255).astype(np.uint8), frame / fps)
            at = end
    found = read_timeline(color_model, path, batch_size=7)
    assert found.duration == pytest.approx(60, abs=0.01)
    assert found.probabilities.shape == (len(found.starts), 3)
    assert found.probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    segments = as_rows(find_segments(found))
    assert segment_f1(segments, true) >= 0.9
    assert segments[0][0] == 0
    assert segments[-1][1] == pytest.approx(60, abs=0.01)


def test_what_a_window_is_told_is_what_the_predictor_says(color_model, tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=16, fps=8)  # as long as the clip
    found = read_timeline(color_model, path)
    answer = color_model.predict(path, topk=3, num_views=1, num_crops=1)
    for name, share in zip(answer.labels, answer.probabilities, strict=True):
        assert found.probabilities[0, found.classes.index(name)] == pytest.approx(share, abs=1e-6)


def test_windows_are_answered_on_the_grid_asked_for(tmp_path):
    grids = "MODEL.COMPRESSED_GRIDS [[1,2,2],[2,4,4]] DATA.SAMPLING_RATE 4 DATA.TARGET_FPS 8".split()
    cfg = load_config(None, [*SMALL, *grids])
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.pt", cfg=cfg, classes=list("abcde"), model=build_model(cfg))
    model = load_model(tmp_path / "model.pt", "cpu")
    path = write_video(tmp_path / "x.mp4", frames=16, fps=8)
    told = {grid: read_timeline(model, path, grid=grid).probabilities[0] for grid in (None, (1, 2, 2), (2, 4, 4))}
    clip = model.predict(path, num_views=1, num_crops=1).clip[None]
    for grid, shares in told.items():
        assert shares == pytest.approx(model.predict_clips(clip, grid)[0].numpy(), abs=1e-6)
    assert np.abs(told[None] - told[2, 4, 4]).max() > 1e-5


def test_a_time_line_that_takes_too_long_is_a_clear_error(color_model, tmp_path, monkeypatch):
    path = write_video(tmp_path / "x.mp4", frames=40, fps=8)
    monkeypatch.setattr("lookupvit_video.inference.timeline.monotonic", iter(range(100)).__next__)
    assert len(read_timeline(color_model, path, batch_size=1).starts) == 7
    with pytest.raises(DecodeError, match=r"x.mp4: a timeline of 5 s took longer than 3.5 s"):
        read_timeline(color_model, path, batch_size=1, timeout=3.5)


def test_a_file_that_is_no_video_is_a_clear_error(color_model, tmp_path):
    (tmp_path / "x.mp4").write_text("no video\n")
    with pytest.raises(DecodeError, match="is text, not a video"):
        read_timeline(color_model, tmp_path / "x.mp4")


@pytest.mark.skipif("LOOKUPVIT_HOUR" not in os.environ, reason="LOOKUPVIT_HOUR names a checkpoint of Moving Digits")
def test_an_hour_of_moving_digits(tmp_path):
    model = load_model(os.environ["LOOKUPVIT_HOUR"], "cpu")
    minute, hour = tmp_path / "minute.mp4", tmp_path / "hour.mp4"
    join_videos(model.cfg, minute, 30)
    true = join_videos(model.cfg, hour, 1800)
    read_timeline(model, minute)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_timeline(model, hour)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    segments = find_segments(found, change_cost=0)  # two seconds each, as long as the model's clip
    score = segment_f1(as_rows(segments), merged(true))
    print(f"\n{found.duration:.0f} s of video: peak memory {growth:.1f} MiB above that of a minute; {len(segments)} ")
    print(f"segments found, {len(merged(true))} true, F1 at an overlap of 0.5: {score:.3f}")
    assert found.duration == pytest.approx(3600, abs=1)
    assert growth < 50
    assert score >= 0.9


def join_videos(cfg, path, count):
    """Write test videos end to end, without decoding them; returns (start, end, label) of each."""
    folder = Path(cfg.DATA.PATH_TO_DATA_DIR)
    classes = read_class_list(folder / "classes.txt")
    with (folder / "test.csv").open(newline="") as file:
        rows = random.Random(0).choices(list(csv.DictReader(file)), k=count)
    true, stream, at = [], None, 0
    with av.open(str(path), "w") as joined:
        for row in rows:
            with av.open(str(folder / row["path"])) as video:
                source, first = video.streams.video[0], at
                stream = stream or joined.add_stream_from_template(source)
                for packet in video.demux(source):
                    if packet.dts is not None:
                        at = max(at, first + packet.pts + packet.duration)
                        packet.pts, packet.dts, packet.stream = packet.pts + first, packet.dts + first, stream
                        joined.mux(packet)
            seconds = [float(stamp * source.time_base) for stamp in (first, at)]
            true.append((*seconds, classes[int(row["label"])]))
    return true


def test_stretches_above_the_threshold_of_each_class():
    shares = np.array([[0.9, 0.1], [0.8, 0.6], [0.2, 0.7], [0.6, 0.1]], dtype=np.float32)
    found = find_segments(Timeline("a.mp4", 5.0, 2.0, np.arange(4.0), shares, ["a", "b"], [0.6, 0.5]))
    assert [(s.start, s.end, s.label) for s in found] == [(0.0, 2.5, "a"), (1.5, 3.5, "b"), (3.5, 5.0, "a")]
    assert [s.probability for s in found] == pytest.approx([0.85, 0.65, 0.6])
    assert find_segments(Timeline("a.mp4", 5.0, 2.0, np.arange(4.0), shares, ["a", "b"], [0.95, 0.95])) == []
