"""Times of clips: inside the video, as far apart as asked for, spread evenly where they are fixed."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.sampling import TimeSampler, _samplers, build_time_sampler
from tests.small import run_command

T, STEP, DURATION = 8, 0.1, 10.0
LENGTH = T * STEP


def draw(sampler, duration=DURATION, seed=0):
    random.seed(seed)
    return sampler(duration)


@pytest.mark.parametrize("mode", ["clip", "segments"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("single_frame", [False, True])
@pytest.mark.parametrize("duration", [0.01, 0.5, 10.0, 1 / 3])
def test_shape_and_start_of_every_kind(mode, training, single_frame, duration):
    sampler = TimeSampler(T, STEP, mode, 3, training, single_frame)
    for seed in range(5):
        times = draw(sampler, duration, seed)
        assert times.shape == (3, T)
        assert times.dtype == np.float64
        assert (times >= 0).all()
        assert (np.diff(times, axis=1) >= 0).all()


@pytest.mark.parametrize("single_frame", [False, True])
@pytest.mark.parametrize("mode", ["clip", "segments"])
def test_random_times_follow_from_the_seed_alone(mode, single_frame):
    sampler = TimeSampler(T, STEP, mode, 2, training=True, single_frame=single_frame)
    first = draw(sampler, seed=1)
    draw(sampler, seed=2)  # whatever was drawn before
    assert np.array_equal(draw(sampler, seed=1), first)
    assert not np.array_equal(draw(sampler, seed=2), first)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("mode", ["clip", "segments"])
def test_fixed_times_draw_nothing(mode):
    sampler = TimeSampler(T, STEP, mode, 3, training=False, single_frame=True)
    state = random.getstate()
    first = sampler(DURATION)
    assert np.array_equal(sampler(DURATION), first)
    assert random.getstate() == state


# Clips ------------------------------------------------------------------------------------------------------------


def test_random_clips_lie_inside_with_frames_step_apart():
    sampler = TimeSampler(T, STEP, training=True)
    times = np.concatenate([draw(sampler, seed=seed) for seed in range(300)])
    assert np.allclose(np.diff(times, axis=1), STEP)
    starts = times[:, 0]
    assert starts.min() >= 0
    assert starts.max() <= DURATION - LENGTH
    assert starts.min() < 0.05 * DURATION  # all of the video is reached
    assert starts.max() > 0.95 * (DURATION - LENGTH)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("duration", [0.05, 0.7, LENGTH])
def test_clips_of_a_short_video_start_at_its_beginning(training, duration):
    times = draw(TimeSampler(T, STEP, num_clips=3, training=training), duration)
    assert np.allclose(times, np.arange(T) * STEP)


def test_one_view_is_the_centre():
    (times,) = TimeSampler(T, STEP)(DURATION)
    assert times[0] == pytest.approx((DURATION - LENGTH) / 2)
    assert np.allclose(np.diff(times), STEP)


@pytest.mark.parametrize("views", [1, 2, 3, 10])
def test_views_are_the_centres_of_equal_parts(views):
    starts = TimeSampler(T, STEP, num_clips=views)(DURATION)[:, 0]
    assert np.allclose(starts, (np.arange(views) + 0.5) / views * (DURATION - LENGTH))
    assert np.allclose(starts + starts[::-1], DURATION - LENGTH)  # the same distance from both ends


# Segments ---------------------------------------------------------------------------------------------------------


def segment_of(times, duration):
    return np.floor(times / (duration / T) + 1e-9)


@pytest.mark.parametrize("duration", [DURATION, 0.3, 1 / 3])
@pytest.mark.parametrize("views", [1, 2, 5])
def test_fixed_segments_have_one_time_each_and_views_differ(duration, views):
    times = TimeSampler(T, STEP, "segments", views)(duration)
    assert (segment_of(times, duration) == np.arange(T)).all()
    inside = times * T / duration - np.arange(T)
    assert np.allclose(inside, ((np.arange(views) + 0.5) / views)[:, None])


def test_random_segments_stay_in_their_own():
    sampler = TimeSampler(T, STEP, "segments", training=True)
    times = np.concatenate([draw(sampler, seed=seed) for seed in range(200)])
    assert (segment_of(times, DURATION) == np.arange(T)).all()
    inside = times * T / DURATION - np.arange(T)
    assert (inside.min(axis=0) < 0.1).all()  # each is drawn over all of its segment,
    assert (inside.max(axis=0) > 0.9).all()
    assert np.abs(np.corrcoef(inside.T) - np.eye(T)).max() < 0.4  # and by itself


# One frame only ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["clip", "segments"])
@pytest.mark.parametrize("training", [False, True])
def test_single_frame_repeats_one_time(mode, training):
    sampler = TimeSampler(T, STEP, mode, 3, training, single_frame=True)
    times = draw(sampler)
    assert (times == times[:, :1]).all()
    assert len(set(times[:, 0])) == 3  # views still differ


@pytest.mark.parametrize("mode", ["clip", "segments"])
def test_single_frame_is_one_of_the_clips_own(mode):
    plain = TimeSampler(T, STEP, mode, 2)(DURATION)
    assert np.array_equal(TimeSampler(T, STEP, mode, 2, single_frame=True)(DURATION)[:, 0], plain[:, T // 2])
    sampler = TimeSampler(T, STEP, mode, training=True, single_frame=True)
    segments = {float(segment_of(draw(sampler, seed=seed), DURATION)[0, 0]) for seed in range(200)}
    assert mode == "clip" or segments == set(range(T))


# Config -----------------------------------------------------------------------------------------------------------


def test_config_says_which():
    overrides = ["DATA.NUM_FRAMES", "8", "DATA.SAMPLING_RATE", "6", "DATA.TARGET_FPS", "24"]
    cfg = load_config(None, [*overrides, "DATA.SAMPLING", "segments", "DATA.SINGLE_FRAME", "True"])
    assert build_time_sampler(cfg, training=True, num_clips=3) == TimeSampler(8, 0.25, "segments", 3, True, True)
    assert build_time_sampler(load_config(), training=False, num_clips=1) == TimeSampler(16, 4 / 30)


def test_a_sampler_draws_one_fixed_clip_unless_told():
    assert TimeSampler(T, STEP) == TimeSampler(
        num_frames=T, step=STEP, mode="clip", num_clips=1, training=False, single_frame=False
    )


@pytest.mark.parametrize("mode", ["clip", "segments"])
def test_the_frame_that_is_repeated_is_drawn_from_all_of_the_clip(mode, monkeypatch):
    sampler = TimeSampler(T, STEP, mode, 2, training=True, single_frame=True)
    plain = TimeSampler(T, STEP, mode, 2, training=True)
    asked = []
    for column in (0, T - 1):
        monkeypatch.setattr(random, "randrange", lambda count, column=column: asked.append(count) or column)
        assert np.array_equal(draw(sampler, seed=4)[:, 0], draw(plain, seed=4)[:, column])
    assert asked == [T, T]


def test_the_samplers_are_pytorchvideos_without_its_package():
    """Whose import takes seconds; it is imported in this process only if some test needs it."""
    from pytorchvideo.data import clip_sampling

    alone = _samplers()
    assert Path(alone.__file__) == Path(clip_sampling.__file__)
    code = "import sys; from lookupvit_video.data.sampling import TimeSampler; TimeSampler(4, 0.1)(3.0); " \
        "print({'pytorchvideo.data', 'torchvision', 'torch'} & sys.modules.keys())"  # fmt: skip
    assert run_command([sys.executable, "-c", code]).stdout == "set()\n"
