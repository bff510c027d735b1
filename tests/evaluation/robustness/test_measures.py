"""Figures by hand, and intervals that hold what they promise."""

import numpy as np
import pytest

from lookupvit_video.evaluation.metrics import expected_calibration_error
from lookupvit_video.evaluation.robustness.measures import (
    Right,
    corruption_error,
    intervals,
    mean_corrupted,
    relative,
    robustness,
)


def right_of(clean, corrupted):
    """Of one seed."""
    return Right(np.array(clean, dtype=bool)[None], np.array(corrupted, dtype=bool)[None])


HAND = right_of([1, 1, 1, 0], [[[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 0], [0, 0, 0, 0]]])


def test_mean_and_relative_accuracy_by_hand():
    assert mean_corrupted(HAND) == pytest.approx(100 * 6 / 16)
    assert relative(HAND) == pytest.approx(100 * (6 / 16) / (3 / 4))
    assert np.isnan(relative(right_of([0, 0], [[[0, 0]]])))


def test_absolute_and_relative_robustness_are_those_of_the_paper():
    assert robustness(80.0, 60.0) == pytest.approx((0.8, 0.75))


def test_corruption_error_divides_each_corruption_by_the_references():
    reference = right_of([1, 1, 1, 1], [[[1, 1, 1, 0], [1, 1, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]])
    assert corruption_error(HAND, reference) == pytest.approx(100 * 5 / 3)  # of the second the reference has no error
    assert corruption_error(HAND, HAND) == pytest.approx(100)


def test_calibration_error_by_hand():
    confidences, right = np.array([[0.95, 0.95], [0.55, 0.55]]), np.array([[1, 1], [1, 0]], dtype=bool)
    assert expected_calibration_error(confidences, right, bins=10) == pytest.approx(100 * (0.05 * 0.5 + 0.05 * 0.5))
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == pytest.approx(100)


def many(rng, accuracy, seeds=1):
    """Answers with a share of each video's own, and of the accuracy of a corruption."""
    ease = rng.random(300)
    draws = 0.7 * ease + 0.3 * rng.random((seeds, 4, 5, 300))
    return Right(draws[:, 0, 0] < accuracy + 0.1, draws < accuracy)


def test_intervals_hold_the_value_and_shrink_for_paired_differences():
    rng = np.random.default_rng(0)
    one, other = many(rng, 0.6), many(rng, 0.5)
    same = Right(other.clean_NV.copy(), other.corrupted_NCSV | (one.corrupted_NCSV & (rng.random(300) < 0.2)))
    low, high = intervals(one)["mPC"]
    assert low < mean_corrupted(one) < high
    gap = mean_corrupted(same) - mean_corrupted(other)
    low_gap, high_gap = intervals(same, other)["mPC"]
    assert low_gap < gap < high_gap
    assert high_gap - low_gap < (high - low) / 2  # the videos are the same
    assert intervals(other, other)["rPC"] == pytest.approx((0, 0))


def test_seeds_that_differ_widen_an_interval():
    rng = np.random.default_rng(0)
    even = many(rng, 0.6, seeds=3)
    table = even.corrupted_NCSV.copy()
    table[0], table[1] = False, True
    uneven = Right(even.clean_NV, table)
    widths = [np.ptp(intervals(right)["mPC"]) for right in (even, uneven)]
    assert widths[1] > 4 * widths[0]
