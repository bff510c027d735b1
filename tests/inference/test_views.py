"""Videos and frames in memory -> clips: which frames, which limits; without a model."""

import io
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.decoding.backends import DecodeError
from lookupvit_video.errors import UserError
from lookupvit_video.inference import views
from lookupvit_video.inference.views import Failure, Plan, Views, make_plan, read_file, read_views, views_of_frames
from tests.models.test_models import SMALL

T = 4


class Times:
    """Stands for a `TimeSampler`: the same times whatever the duration."""

    def __init__(self, *rows):
        self.rows, self.num_frames, self.num_clips = np.array(rows, dtype=float), len(rows[0]), len(rows)
        self.durations = []

    def __call__(self, duration):
        self.durations.append(duration)
        return self.rows


def plan_of(*rows, num_crops=1, fps=10.0, **changes):
    settings = {"size": 8, "short_side": 8, "backend": "pyav", "timeout": 5.0}
    return Plan(Times(*rows), num_crops=num_crops, fps=fps, **settings | changes)


def flat_frames(count, height=8, width=8):
    """Frames (T, H, W, 3), the i-th full of i."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, height, width, 3).clone()


def shown(found):
    """The numbers of the frames of each clip of `flat_frames`."""
    return found.clips[:, 0, :, 0, 0].tolist()


# Plans ------------------------------------------------------------------------------------------------------------


def test_limits_are_those_of_the_documentation():
    assert views.MAX_BYTES == 2 * 2**30
    assert views._USUAL_BYTES == 2**28


def test_a_plan_is_that_of_the_checkpoints_test_unless_told():
    overrides = "TEST.NUM_ENSEMBLE_VIEWS 5 TEST.NUM_SPATIAL_CROPS 3 DATA.TEST_SHORT_SIDE 40 DATA.DECODE_TIMEOUT 12"
    cfg = load_config(None, [*SMALL, *overrides.split(), "DATA.TARGET_FPS", "24", "DATA.SAMPLING_RATE", "3"])
    plan = make_plan(cfg)
    assert plan == Plan(TimeSampler(T, 0.125, num_clips=5), 32, 40, 3, "pyav", 12.0, 24, clip_seconds=0.5)
    assert plan.num_views == 15
    other = make_plan(cfg).changed(2, 1, "pyav", 0)
    assert (other.times.num_clips, other.num_crops, other.num_views, other.timeout) == (2, 1, 2, 0)
    assert make_plan(load_config(None, SMALL)).short_side == 32  # the crop's own size


@pytest.mark.parametrize(("num_views", "num_crops"), [(0, 1), (-1, 3), (1, 0), (1, 2), (1, 4)])
def test_views_that_there_are_not(num_views, num_crops):
    with pytest.raises(ValueError, match=rf"{num_views} x {num_crops} views: there must be at least 1 in time"):
        make_plan(load_config(None, SMALL)).changed(num_views, num_crops)


def test_a_plan_must_fit_into_memory(monkeypatch):
    needed = 2 * 3 * 3 * T * 32 * 32  # views, crops, channels, frames, pixels: a byte each
    monkeypatch.setattr(views, "MAX_BYTES", needed)
    cfg = load_config(None, SMALL)
    assert make_plan(cfg).changed(2, 3).num_views == 6
    monkeypatch.setattr(views, "MAX_BYTES", needed - 1)
    with pytest.raises(ValueError, match="2 x 3 views of 4 frames of 32 x 32 pixels take more than 0 GiB"):
        make_plan(cfg).changed(2, 3)
    monkeypatch.setattr(views, "MAX_BYTES", 2 << 30)
    with pytest.raises(ValueError, match="take more than 2 GiB; use fewer views"):
        make_plan(cfg).changed(10**6, 3)


# Frames in memory ---------------------------------------------------------------------------------------------------


def test_a_tensor_with_a_rate_is_sampled_as_a_file_is():
    """The frame shown at a time is the last one that has begun, not the nearest."""
    plan = plan_of([0.0, 0.06, 0.149, 0.15], [0.2, 0.39999999, 0.9, 7.0])
    found = views_of_frames(flat_frames(20), plan, fps=20)
    assert shown(found) == [[0, 1, 2, 3], [4, 8, 18, 19]]
    assert plan.times.durations == [1.0]
    assert found.times == [(0.0, 0.15), (0.2, 1.0)]
    assert [(row[0], row[-1]) for row in found.seconds] == found.times
    assert (found.name, found.note) == ("tensor", "shorter (1.00 s) than the clip (0.15 s): its last frame is repeated")


def test_a_time_may_fall_a_millionth_of_a_frame_short():
    plan = plan_of([0.0, 1 - 0.9e-6, 2 - 1.5e-6])
    assert shown(views_of_frames(flat_frames(4), plan, fps=1)) == [[0, 1, 1]]
    assert shown(views_of_frames(flat_frames(4), plan_of([-3.0, 0.0]), fps=1)) == [[0, 0]]


def test_a_tensor_and_a_file_of_the_same_frames_give_the_same_clips(tmp_path):
    from lookupvit_video.decoding.backends import open_video
    from tests.videos import write_video

    path = write_video(tmp_path / "x.mp4", frames=30, fps=25)
    with open_video(path) as reader:
        frames = reader.frames_at(reader.times.tolist())
    for step in (1 / 30, 0.05, 0.13):
        plan = Plan(TimeSampler(T, step, num_clips=3), 32, 32, 1, "pyav", 5.0, 30)
        from_file, from_memory = read_views(path, plan), read_views(frames, plan, fps=25)
        np.testing.assert_array_equal(from_file.clips, from_memory.clips)
        np.testing.assert_allclose(from_file.times, from_memory.times)


def test_a_tensor_without_a_rate_is_one_clip():
    plan = plan_of([0.0] * T, [1.0] * T, fps=10.0)  # of however many views
    for frames in (flat_frames(T), flat_frames(T).numpy(), flat_frames(T).permute(3, 0, 1, 2)):
        found = read_views(frames, plan)
        assert shown(found) == [[0, 1, 2, 3]]
        assert found.times == [(0.0, pytest.approx(0.3))]
        assert found.note == ""
    assert plan.times.durations == []
    for count in (T - 1, T + 1):
        with pytest.raises(ValueError, match=rf"the model takes 4 frames, got {count}; set fps= to sample"):
            read_views(flat_frames(count), plan)


def test_channels_are_last_where_both_ends_could_be():
    frames = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    frames[1] = 1
    assert shown(views_of_frames(frames, plan_of([0.0] * 3))) == [[0, 1, 0]]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(4, 8, 8, 3), torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(1, 4, 8, 8, 3).byte(),
        torch.zeros(4, 8, 8, 4).byte(), torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4, 8, 0, 3).byte(),
        torch.zeros(0, 8, 8, 3).byte(), torch.zeros(4, 8, 8, 3, dtype=torch.int64),
    ],
)  # fmt: skip
def test_frames_of_a_wrong_shape_or_type(wrong):
    with pytest.raises(
        ValueError, match=r"frames must be uint8 RGB of shape \(T, H, W, 3\) or \(3, T, H, W\).*got torch"
    ):
        read_views(wrong, plan_of([0.0] * T), fps=1)


@pytest.mark.parametrize("fps", [0, -1.0, float("inf"), float("nan")])
def test_a_rate_must_be_a_rate(fps):
    with pytest.raises(ValueError, match=rf"fps={fps}: frames a second must be above 0"):
        views_of_frames(flat_frames(T), plan_of([0.0] * T), fps)


def test_crops_of_a_time_follow_each_other():
    frames = torch.arange(20, dtype=torch.uint8).view(1, 1, -1, 1).expand(2, 8, -1, 3)  # a pixel is its column
    found = views_of_frames(frames, plan_of([0.0, 0.0], [1.0, 1.0], num_crops=3), fps=1)
    assert found.clips.shape == (6, 3, 2, 8, 8)
    assert found.clips[:, 0, 0, 0, 0].tolist() == [0, 6, 12] * 2
    assert len(found.times) == 2


# Files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """A fake video of ten seconds, 12 x 8 pixels, 10 frames a second; what it is asked for, and how it is opened."""
    record = types.SimpleNamespace(asked=[], options=[], size=(8, 12))

    class Reader:
        duration, damage = 10.0, ()

        @property
        def info(self):
            return types.SimpleNamespace(width=record.size[1], height=record.size[0])

        def frames_at(self, seconds):
            record.asked.append(list(seconds))
            numbers = torch.tensor([int(second * 10) for second in seconds], dtype=torch.uint8)
            return numbers.view(-1, 1, 1, 1).expand(-1, *record.size, 3)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(views, "open_video", lambda *given, **options: record.options.append((given, options)) or
                        Reader())  # fmt: skip
    return record


def test_a_file_is_opened_as_the_plan_says(opened):
    found = read_views(Path("a.mp4"), plan_of([0.0, 1.0], timeout=7.5, backend="decord"))
    assert opened.options == [(("a.mp4", "decord"), {"timeout": 7.5, "frame_rate": 0.0})]
    assert (found.name, found.times, found.note) == ("a.mp4", [(0.0, 1.0)], "")
    assert shown(found) == [[0, 10]]


def test_times_past_the_end_are_those_of_the_last_frame(opened):
    found = read_views("a.mp4", plan_of([8.0, 9.0, 10.0, 12.0]))
    assert opened.asked == [pytest.approx([8.0, 9.0, 9.9999, 9.9999], abs=1e-9)]
    assert found.times == [(8.0, 10.0)]
    assert found.note == "shorter (10.00 s) than the clip (4.00 s): its last frame is repeated"
    assert read_views("a.mp4", plan_of([8.0, 9.99])).note == ""
    assert read_views("a.mp4", plan_of([8.0, 10.0])).note != ""  # the end itself is past the last frame


def test_views_are_read_one_after_the_other_where_they_are_large(opened, monkeypatch):
    rows = [[float(view), view + 0.5] for view in range(5)]
    expected = read_views("a.mp4", plan_of(*rows))
    assert len(opened.asked) == 1
    for limit, calls in ((2 * 3 * 12 * 8 * 2, [4, 4, 2]), (2 * 3 * 12 * 8, [2] * 5), (1, [2] * 5)):
        opened.asked.clear()
        monkeypatch.setattr(views, "_USUAL_BYTES", limit)
        found = read_views("a.mp4", plan_of(*rows))
        assert [len(seconds) for seconds in opened.asked] == calls
        np.testing.assert_array_equal(found.clips, expected.clips)
    assert shown(found) == [[10 * view, 10 * view + 5] for view in range(5)]


def test_frames_that_are_too_large_are_told(opened, monkeypatch):
    needed = 3 * 12 * 8 * 2
    monkeypatch.setattr(views, "MAX_BYTES", needed)
    assert len(read_views("a.mp4", plan_of([0.0, 1.0])).clips) == 1
    monkeypatch.setattr(views, "MAX_BYTES", needed - 1)
    with pytest.raises(DecodeError, match=r"a.mp4: its frames of 12 x 8 pixels are too large: a clip of 2 takes"):
        read_views("a.mp4", plan_of([0.0, 1.0]))
    monkeypatch.setattr(views, "MAX_BYTES", 2 << 30)
    opened.size = (32768, 32768)
    with pytest.raises(DecodeError, match=r"a clip of 2 takes 6\.0 GiB \(limit 2\); make it smaller"):
        read_file("a.mp4", plan_of([0.0, 1.0]))


def test_what_a_library_says_of_a_path_becomes_the_reason(monkeypatch):
    def broken(error):
        monkeypatch.setattr(views, "open_video", lambda *_, **__: (_ for _ in ()).throw(error))
        read_file("a.mp4", plan_of([0.0]))

    with pytest.raises(DecodeError) as raised:
        broken(OverflowError("too large"))
    assert (raised.value.path, raised.value.reason) == ("a.mp4", "too large")
    with pytest.raises(ValueError, match="zip") as bug:  # keeps its type and traceback
        broken(ValueError("zip() argument 2 is shorter than argument 1"))
    assert not isinstance(bug.value, UserError)


def test_a_null_character_in_a_name_is_a_reason():
    with pytest.raises(DecodeError, match="embedded null"):
        read_file("a\0.mp4", plan_of([0.0]))


# Open files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(monkeypatch):
    """In place of decoding: the name and the content of the file that would be decoded."""
    seen = []

    def note(path, plan):
        seen.append((path, Path(path).read_bytes()))
        return Views(path, np.zeros(0), [])

    monkeypatch.setattr(views, "read_file", note)
    return seen


def test_an_open_file_is_copied_from_where_it_stands(copied, tmp_path):
    (tmp_path / "a.webm").write_bytes(b"0123456789")
    with open(tmp_path / "a.webm", "rb") as file:
        file.seek(3)
        found = read_views(file, plan_of([0.0]))
    (path, content), name = copied[0], str(tmp_path / "a.webm")
    assert (found.name, content) == (name, b"3456789")
    assert Path(path).name == "video.webm"
    assert not os.path.exists(path)
    assert read_views(io.BytesIO(b"x"), plan_of([0.0])).name == "open file"
    assert Path(copied[1][0]).name == "video"
    long = io.BytesIO(b"x")
    long.name = "a.suffix_without_end"
    assert read_views(long, plan_of([0.0])).name == "a.suffix_without_end"
    assert Path(copied[2][0]).suffix == ".suffix_"  # of 8 letters: a name must not be too long for the disk


def test_an_open_file_that_cannot_be_read_names_itself(monkeypatch):
    def fail(path, plan):
        raise DecodeError(path, "is text")

    monkeypatch.setattr(views, "read_file", fail)
    with pytest.raises(DecodeError) as raised:
        read_views(io.BytesIO(b"x"), plan_of([0.0]))
    assert (raised.value.path, raised.value.reason) == ("open file", "is text")
    text = io.StringIO("x")
    with pytest.raises(ValueError, match="open file: open this file with mode 'rb'"):
        read_views(text, plan_of([0.0]))
    with pytest.raises(ValueError, match="or a uint8 tensor of frames; got int"):
        read_views(5, plan_of([0.0]))


def test_a_failure_is_a_path_and_an_error():
    assert Failure("a.mp4", "is text").as_dict() == {"path": "a.mp4", "error": "is text"}
