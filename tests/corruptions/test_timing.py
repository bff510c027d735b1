"""Orders of frames, by hand."""

import itertools

import numpy as np
import pytest

from lookupvit_video.corruptions import timing

TEN = np.arange(10)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_sampling_holds_each_frame_and_reverse_sampling_turns_around():
    assert timing.sampling(TEN, 4, rng()).tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert timing.reverse_sampling(TEN, 4, rng()).tolist() == [8, 8, 4, 4, 4, 4, 0, 0, 0, 0]


def test_jumbling_shuffles_within_segments_or_the_segments():
    inside = timing.jumble(TEN, 4, rng(1))
    assert [sorted(part) for part in (inside[:4], inside[4:8], inside[8:])] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert inside.tolist() != TEN.tolist()
    boxes = timing.box_jumble(TEN, 4, rng(1))
    assert sorted(boxes.tolist()) == TEN.tolist()
    assert sum(after - before == 1 for before, after in itertools.pairwise(boxes)) >= 7
    assert timing.box_jumble(TEN, 16, rng(1)).tolist() == TEN.tolist()  # one segment


@pytest.mark.parametrize(("kept", "count"), [((0.4, 1), 4), ((0.05, 2), 2), ((0, 1), 1)])
def test_a_frozen_video_shows_some_frames_until_the_next(kept, count):
    order = timing.freeze(TEN, kept, rng())
    assert len(np.unique(order)) == count
    assert (np.diff(order) >= 0).all()


def test_dropped_frames_are_filled_with_the_one_before():
    order = timing.drop_frames(TEN, 0.5, rng())
    assert len(np.unique(order)) < 10
    assert (order[1:] <= TEN[1:]).all()
    assert timing.drop_frames(TEN, 1.0, rng()).tolist() == [0] * 10


@pytest.mark.parametrize(("rates", "expected"), [
    ((6, 12), [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]), ((8, 12), [0, 0, 2, 3, 3, 5, 6, 6, 8, 9]),
    ((20, 20), list(range(10))),
])  # fmt: skip
def test_a_lower_rate_shows_frames_at_even_distances(rates, expected):
    assert timing.frame_rate(TEN, rates, rng()).tolist() == expected
