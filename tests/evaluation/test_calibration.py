"""Temperatures, and which answers are held back."""

import math

import numpy as np
import pytest
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.calibration import (
    Calibration,
    Reject,
    calibration_of,
    fit_temperature,
    probabilities,
    read_calibration,
)
from lookupvit_video.evaluation.metrics import calibration_error


def confident(seed=0, videos=3000, classes=5, factor=3.0, views=2, spread=2.0):
    """Return logits (videos, views, K) that are ``factor`` times too large, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    right = spread * rng.normal(size=(videos, classes))
    shares = np.exp(right) / np.exp(right).sum(1, keepdims=True)
    labels = (shares.cumsum(1) < rng.random((videos, 1))).sum(1).clip(max=classes - 1)
    return factor * np.repeat(right[:, None], views, 1), labels


def test_probabilities_are_those_of_torch():
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)) * 30
    scaled = torch.from_numpy(logits)
    expected = (scaled / 1.7).softmax(-1).mean(1).numpy()
    np.testing.assert_allclose(probabilities(logits, [1.7], multi_label=False), expected, atol=1e-12)
    each = [0.5, 1, 2, 3, 4]
    expected = (scaled / torch.tensor(each)).sigmoid().mean(1).numpy()
    np.testing.assert_allclose(probabilities(logits, each, multi_label=True), expected, atol=1e-12)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_is_found(factor):
    logits, labels = confident(factor=factor)
    (found,) = fit_temperature(logits, labels)
    assert found == pytest.approx(factor, rel=0.08)
    before = calibration_error(probabilities(logits, [], multi_label=False), labels)
    after = calibration_error(probabilities(logits, [found], multi_label=False), labels)
    assert before > 5
    assert after < 2


def test_a_temperature_for_each_class():
    rng = np.random.default_rng(0)
    right = 2 * rng.normal(size=(4000, 4))
    labels = rng.random(right.shape) < 1 / (1 + np.exp(-right))
    labels[:, 2], labels[:, 3] = False, True
    found = fit_temperature((right * [4, 0.5, 4, 4])[:, None], labels)
    assert found[:2] == pytest.approx([4, 0.5], rel=0.15)
    assert found[2:] == [1, 1]  # nothing can be learned from them


def test_a_temperature_that_does_not_help_is_1():
    logits = np.tile([[[4.0, 0.0]]], (10, 1, 1))
    assert fit_temperature(logits, np.repeat([0, 1], [10, 0])) != [1]
    # Less negative log-likelihood with another, but confidence farther from accuracy.
    rng = np.random.default_rng(126)
    logits, labels = rng.normal(size=(20, 1, 2)).round(1) * 3, rng.integers(2, size=20)
    assert fit_temperature(logits, labels) == [1]


def test_many_videos_are_sampled(monkeypatch):
    logits, labels = confident()
    monkeypatch.setattr("lookupvit_video.evaluation.calibration._ENOUGH", 1000 * 10)
    assert fit_temperature(logits, labels) == fit_temperature(logits, labels)
    assert fit_temperature(logits, labels)[0] == pytest.approx(3, rel=0.15)


# Rejection ------------------------------------------------------------------------------------------------------------


def calibration(confidences, right, unknown=()):
    count = len(confidences)
    scores = {"lac": [0.0] * count, "aps": [0.0] * count}
    return Calibration([], "1x1", [0] * count, list(confidences), list(right), scores, list(unknown))


def test_errors_among_accepted_answers_are_counted():
    confidences = np.linspace(1, 0.01, 100)
    right = np.ones(100, dtype=bool)
    right[[42, 71, 72, 73, 74, 75, 76]] = False
    found = calibration(confidences, right)
    # No error in 40 answers: 1 - 0.005^(1/40) at most, 0.124; one in 70: 0.101; none in 35: 0.141.
    assert found.least_confidence(Reject("error", 0.11)) == pytest.approx(confidences[69], rel=2e-6)
    assert found.least_confidence(Reject("error", 0.19)) == pytest.approx(confidences[99], rel=2e-6)
    with pytest.raises(UserError, match=r"so few errors, from 100 calibration videos .* promised is 0\.101"):
        found.least_confidence(Reject("error", 0.05))
    assert calibration([0.6] * 200, [True] * 200).least_confidence(Reject("error", 0.05)) == pytest.approx(
        0.6, rel=2e-6
    )
    with pytest.raises(UserError, match="promised is 1"):
        calibration([0.6] * 200, [False] * 200).least_confidence(Reject("error", 0.05))


def test_equal_confidences_are_accepted_together():
    found = calibration([0.9] * 60 + [0.5] * 60, [True] * 110 + [False] * 10)
    assert found.least_confidence(Reject("error", 0.1)) == pytest.approx(0.9, rel=2e-6)  # not some of the second sixty
    assert not found.selection(2, Reject("error", 0.1)).rejects(np.array([0.9, 0.1]))
    assert found.selection(2, Reject("error", 0.1)).rejects(np.array([0.89, 0.11]))


@pytest.mark.parametrize("wanted", [0.05, 0.1, 0.2])
def test_the_rate_of_errors_holds_on_other_videos(wanted):
    logits, labels = confident(videos=8000, factor=1, spread=6.0)
    scores = probabilities(logits, [], multi_label=False)
    reached = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(8000)
        first, second = order[:1000], order[1000:]
        found = calibration_of(scores[first], labels[first], np.zeros(1000), [], "1x1")
        try:
            accepted = scores[second].max(1) >= found.least_confidence(Reject("error", wanted))
        except UserError:
            continue
        reached.append((scores[second].argmax(1) != labels[second])[accepted].mean())
    assert len(reached) > 5
    assert sum(np.array(reached) > wanted) <= 2  # of 20


def test_unknown_videos_are_accepted_at_the_wanted_rate():
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(300):
        known = calibration([0.5], [True], rng.random(99))
        least = known.least_confidence(Reject("unknown", 0.05))
        reached.append((rng.random(1000) >= least).mean())
    assert 0.035 < np.mean(reached) <= 0.052
    few = calibration([0.5], [True], [0.1] * 18)
    with pytest.raises(UserError, match=r"18 videos of unknown classes are too few .* at least 19"):
        few.least_confidence(Reject("unknown", 0.05))
    none = calibration([0.5], [True])
    with pytest.raises(UserError, match="--unknown-list"):
        none.least_confidence(Reject("unknown", 0.05))
    equal = calibration([0.5], [True], [0.3] * 99)
    assert equal.least_confidence(Reject("unknown", 0.05)) > 0.3  # all or none
    assert calibration([0.5], [True], [0.3]).least_confidence(Reject("unknown", 0.999)) > 0.3


@pytest.mark.parametrize(("wish", "found"), [
    (0.05, Reject("error", 0.05)), ("0.05", Reject("error", 0.05)), ("error=0.1", Reject("error", 0.1)),
    ("unknown=0.2", Reject("unknown", 0.2)), (Reject("unknown", 0.2), Reject("unknown", 0.2)),
])  # fmt: skip
def test_wishes(wish, found):
    assert Reject.parse(wish) == found
    assert Reject.parse(str(Reject.parse(wish))) == found


@pytest.mark.parametrize("wish", [0, 1, -0.1, "5 %", "errors=0.1", "unknown", "", "=0.1", math.nan, "error=nan"])
def test_what_is_no_wish(wish):
    with pytest.raises(UserError, match="give the largest rate of errors"):
        Reject.parse(wish)


@pytest.mark.parametrize(("coverage", "kind", "message"), [
    (0.0, "lac", "between 0 and 1"), (1.0, "lac", "between 0 and 1"), (90, "lac", "between 0 and 1"),
    (math.nan, "lac", "between 0 and 1"), (0.9, "raps", "choose from lac, aps, class"),
])  # fmt: skip
def test_what_is_no_set(coverage, kind, message):
    with pytest.raises(UserError, match=message):
        calibration([0.5], [True]).selection(2, None, coverage, kind)


def test_members_are_in_order_and_may_be_none():
    shares, labels = np.array([[0.7, 0.1, 0.2]] * 20), np.array([0] * 14 + [2] * 4 + [1] * 2)
    found = calibration_of(shares, labels, np.full(20, 0.5), [], "1x1")
    assert found.selection(3, None, 0.8, "lac").members(shares[0], 0.5) == [0, 2]
    assert found.selection(3, None, 0.99, "lac").members(shares[0], 0.5) == [0, 2, 1]  # too few videos: all
    assert found.selection(3, None, 0.5, "lac").members(np.array([0.4, 0.3, 0.3]), 0.5) == []


def test_files_hold_a_calibration():
    logits, labels = confident(videos=50)
    scores = probabilities(logits, [2.0], multi_label=False)
    found = calibration_of(scores, labels, np.linspace(0, 1, 50), [2.0], "1x3", [0.25, 0.5])
    content = found.as_dict()
    assert read_calibration(content, 5, multi_label=False) == found
    for wrong in (
        {"temperature": [1.0, 2.0]}, {"temperature": [-1.0]}, {"temperature": ["x"]}, {"labels": [5] * 50},
        {"labels": [0] * 49}, {"confidences": [0.5]}, {"scores": {"lac": [0.1] * 50}}, {"temperature": [math.nan]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"not a calibration of this model|could not convert"):
            read_calibration({**content, **wrong}, 5, multi_label=False)
    with pytest.raises(TypeError, match="not a calibration"):
        read_calibration([], 5, multi_label=False)
