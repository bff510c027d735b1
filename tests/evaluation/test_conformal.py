"""Prediction sets: coverage as promised, on data whose probabilities are right, wrong, or tied."""

import math

import numpy as np
import pytest

from lookupvit_video.evaluation.calibration import calibration_of
from lookupvit_video.evaluation.conformal import (
    KINDS,
    class_scores,
    coverage_over_splits,
    enough_for,
    pseudo_random,
    quantile,
    quantiles,
)


def answers(seed=0, videos=2000, classes=6, sharpness=2.0):
    """Return probabilities and labels of a model that is often, but not always, right, and too confident."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=videos)
    logits = rng.normal(size=(videos, classes)) + sharpness * np.eye(classes)[labels] * rng.random((videos, 1))
    shares = np.exp(3 * logits)
    return shares / shares.sum(1, keepdims=True), labels, rng.random(videos)


def test_scores_of_aps_written_out():
    shares = np.array([[0.2, 0.5, 0.3]])
    (found,) = class_scores(shares, [0.25], "aps")
    assert found == pytest.approx([0.5 + 0.3 + 0.25 * 0.2, 0.25 * 0.5, 0.5 + 0.25 * 0.3])
    (found,) = class_scores(shares, [0.25], "lac")
    assert found == pytest.approx([0.8, 0.5, 0.7])


def test_quantile_is_that_of_split_conformal_prediction():
    scores = np.array([0.4, 0.1, 0.3, 0.2])
    assert quantile(scores, 0.5) == 0.3  # the third of four: ceil(5 x 0.5)
    assert quantile(scores, 0.8) == 0.4
    assert quantile(scores, 0.81) == math.inf
    assert quantile(np.zeros(0), 0.5) == math.inf
    assert quantile(np.arange(1, 10) / 10, 0.9) == 0.9  # 10 x 0.9 is 9, whatever its rounding


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_enough_for_a_finite_quantile(coverage):
    least = enough_for(coverage)
    assert quantile(np.zeros(least), coverage) == 0
    assert quantile(np.zeros(least - 1), coverage) == math.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharpness", [1.0, 8.0])  # 46 and 91 % accurate
@pytest.mark.parametrize("wanted", [0.8, 0.9])
def test_coverage_over_splits(kind, sharpness, wanted):
    shares, labels, uniform = answers(sharpness=sharpness)
    rng, reached, count = np.random.default_rng(1), [], 400
    for _ in range(200):
        order = rng.permutation(len(labels))
        first, second = order[:count], order[count:]
        calibration = calibration_of(shares[first], labels[first], uniform[first], [], "1x1")
        cuts = np.array(calibration.selection(6, None, wanted, kind).quantiles_K)
        inside = class_scores(shares[second], uniform[second], kind) <= cuts
        reached.append(inside[np.arange(len(second)), labels[second]].mean())
    assert wanted - 0.002 < np.mean(reached) < wanted + 1 / (1 + count / (6 if kind == "class" else 1)) + 0.005


def test_class_conditional_sets_cover_each_class():
    rng = np.random.default_rng(0)
    shares, labels, uniform = answers(seed=2, videos=6000, sharpness=20.0)
    shares[labels == 3] = rng.dirichlet(np.ones(6), (labels == 3).sum())  # of which the model knows nothing
    half = np.arange(6000) < 3000
    calibration = calibration_of(shares[half], labels[half], uniform[half], [], "1x1")
    for kind, expected in (("lac", False), ("class", True)):
        cuts = np.array(calibration.selection(6, None, 0.9, kind).quantiles_K)
        inside = class_scores(shares[~half], uniform[~half], kind) <= cuts
        hits = inside[np.arange(3000), labels[~half]]
        assert (hits[labels[~half] == 3].mean() > 0.86) == expected


def test_a_class_with_too_few_videos_takes_the_quantile_of_all():
    scores, labels = np.linspace(0, 1, 109), np.repeat([0, 1], [100, 9])
    found = quantiles(scores, labels, 3, 0.9, "class")
    assert found[1] == quantile(scores[100:], 0.9)
    assert found[2] == quantile(scores, 0.9)
    assert quantiles(scores[:108], labels[:108], 3, 0.9, "class")[1] == quantile(scores[:108], 0.9)


def test_pseudo_random_numbers_are_fixed_and_uniform():
    found = np.array([pseudo_random(number.to_bytes(4, "big")) for number in range(4000)])
    assert found[7] == pseudo_random((7).to_bytes(4, "big"))
    assert abs(found.mean() - 0.5) < 0.02
    assert abs(np.quantile(found, 0.9) - 0.9) < 0.02
    assert found.min() >= 0
    assert found.max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_mean_coverage_over_splits(kind):
    shares, labels, uniform = answers(sharpness=8.0, videos=1440)
    found = coverage_over_splits(class_scores(shares, uniform, kind), labels, 0.9, kind)
    assert 0.9 - 5e-4 < found < 0.9 + 1 / (1 + 720 / (6 if kind == "class" else 1)) + 5e-4
