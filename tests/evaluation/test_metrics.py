"""Metrics by hand, and the table of them."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics

from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import Results
from lookupvit_video.evaluation.metrics import METRICS, chosen_metrics, interval, metric, rounded, text

SCORES = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 0.0]])  # the last could not be read
LABELS = np.array([0, 1, 1, 0])


def measured(name, scores=SCORES, labels=LABELS):
    return METRICS[name].function(scores, labels)


def test_values_by_hand():
    assert measured("top1") == 50
    assert measured("top5") == 75  # of three classes: all but the unreadable video
    assert measured("mean_class_accuracy") == 50
    assert measured("mean_class_accuracy", labels=np.array([0, 1, 1, 1])) == pytest.approx((100 + 100 / 3) / 2)
    logs = [math.log(0.9), math.log(0.7), math.log(0.3), math.log(1e-7)]
    assert measured("nll") == pytest.approx(-sum(logs) / 4)


def test_top_5_says_nothing_about_five_classes():
    assert [entry.name for entry in chosen_metrics(["top1", "top5"], 5)] == ["top1"]
    assert [entry.name for entry in chosen_metrics(["top1", "top5"], 6)] == ["top1", "top5"]


def test_which_value_is_better():
    for name, better, worse in (("top1", 60.0, 50.0), ("nll", 0.5, 0.6)):
        entry = METRICS[name]
        assert entry.improves(worse, None)
        assert entry.improves(better, worse)
        assert not entry.improves(worse, better)
        assert not entry.improves(worse, worse)
        assert not entry.improves(math.nan, None)
        assert not entry.improves(math.nan, worse)


def test_values_for_logs_and_files():
    values = {"top1": 100 / 3, "nll": 2 / 3}
    assert text(values) == "top-1 33.33 %, negative log-likelihood 0.6667"
    assert rounded(values, 2) == {"top1": 33.33, "nll": 0.6667}
    assert rounded(values, 3) == {"top1": 33.333, "nll": 0.66667}


def test_a_function_becomes_a_metric_and_an_unknown_name_lists_the_choices(monkeypatch):
    monkeypatch.setitem(METRICS, "worst", None)  # removed after the test

    @metric(higher_is_better=False)
    def worst(scores, labels):
        return 1.0

    (found,) = chosen_metrics(["worst"], 2)
    assert (found.name, found.label, found.function, found.higher_is_better) == ("worst", "worst", worst, False)
    with pytest.raises(UserError, match=r"^TEST.METRICS: there is no metric 'top2'; choose from top1, .*, worst$"):
        chosen_metrics(["top1", "top2"], 9)


# Against scikit-learn -------------------------------------------------------------------------------------------------


def random_problem(seed):
    """Scores with ties, and one label a video of which some classes have none."""
    rng = np.random.default_rng(seed)
    videos, classes = int(rng.integers(1, 60)), int(rng.integers(2, 9))
    scores = rng.random((videos, classes)).round(int(rng.integers(1, 4))) + 1e-3
    return rng, scores / scores.sum(1, keepdims=True), rng.integers(0, max(classes - 1, 1), videos)


@pytest.mark.parametrize("seed", range(50))
def test_metrics_of_one_label_are_scikit_learns(seed):
    _, scores, labels = random_problem(seed)
    answers = scores.argmax(1)
    for average in ("macro", "micro", "weighted"):
        expected = 100 * sklearn.metrics.f1_score(labels, answers, average=average)
        assert METRICS[f"{average}_f1"].function(scores, labels) == pytest.approx(expected, abs=1e-9)
    expected = 100 * sklearn.metrics.accuracy_score(labels, answers)
    assert METRICS["top1"].function(scores, labels) == pytest.approx(expected, abs=1e-9)
    if len(np.unique(labels)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # answers of a class without videos
            expected = 100 * sklearn.metrics.balanced_accuracy_score(labels, answers)
        assert METRICS["mean_class_accuracy"].function(scores, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(50))
def test_metrics_of_several_labels_are_scikit_learns(seed):
    rng, scores, _ = random_problem(seed)
    labels = rng.random(scores.shape) < 0.3
    labels[:, -1] = False
    answers = scores >= 0.5
    for average in ("macro", "micro", "weighted"):
        expected = 100 * sklearn.metrics.f1_score(labels, answers, average=average, zero_division=np.nan)
        assert METRICS[f"{average}_f1"].function(scores, labels) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    there = labels.any(0)
    names = {"macro": "mean_average_precision", "weighted": "weighted_average_precision",
             "micro": "micro_average_precision"}  # fmt: skip
    for average, name in names.items():
        found = METRICS[name].function(scores, labels)
        if not there.any():
            assert math.isnan(found)
            continue
        expected = sklearn.metrics.average_precision_score(labels[:, there], scores[:, there], average=average)
        assert found == pytest.approx(100 * expected, abs=1e-9)
    both = there & ~labels.all(0)
    expected = 100 * sklearn.metrics.roc_auc_score(labels[:, both], scores[:, both]) if both.any() else math.nan
    assert METRICS["roc_auc"].function(scores, labels) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_videos_that_could_not_be_read_are_wrong_for_every_class():
    labels = np.array([[True, False], [False, True], [True, True]])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.9]], dtype=np.float32)
    results = Results(labels, probabilities, [])
    assert results.measure(["macro_f1", "mean_average_precision"]) == {"macro_f1": 100, "mean_average_precision": 100}
    unread = Results(labels, probabilities, [(0, "no such file")])
    wrong = np.array([[False, True], [False, True], [True, True]])
    expected = 100 * sklearn.metrics.f1_score(labels, wrong, average="macro")
    assert unread.measure(["macro_f1"])["macro_f1"] == pytest.approx(expected)
    assert unread.measure(["mean_average_precision"])["mean_average_precision"] < 90


def test_scores_that_are_not_numbers_are_an_error():
    scores = np.array([[0.5, np.nan], [0.5, 0.5]])
    with pytest.raises(ValueError, match="NaN"):
        METRICS["mean_average_precision"].function(scores, np.array([0, 1]))


def test_interval_holds_the_figure_and_follows_from_the_seed():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    scores = np.eye(4)[np.where(rng.random(400) < 0.8, labels, (labels + 1) % 4)]
    low, high = interval(METRICS["top1"].function, scores, labels, seed=1)
    figure = METRICS["top1"].function(scores, labels)
    assert low < figure < high
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.8 * 0.2 / 400), rel=0.15)
    assert (low, high) == interval(METRICS["top1"].function, scores, labels, seed=1)
    one = interval(METRICS["roc_auc"].function, scores[:1], labels[:1])
    assert all(map(math.isnan, one))


# Calibration ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_calibration_error_written_out(seed):
    rng, scores, labels = random_problem(seed)
    several = rng.random(scores.shape) < 0.3
    pairs = [(scores.max(1), scores.argmax(1) == labels), (scores.ravel(), several.ravel())]
    for (confidence, right), truth in zip(pairs, (labels, several), strict=True):
        expected = 0.0
        for number in range(15):
            inside = (confidence >= number / 15) & (confidence < (number + 1) / 15 + (number == 14))
            if inside.any():
                expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        assert measured("calibration_error", scores, truth) == pytest.approx(100 * expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_brier_score_is_scikit_learns(seed):
    rng, scores, labels = random_problem(seed)
    several = rng.random(scores.shape) < 0.3
    expected = sklearn.metrics.brier_score_loss(several.ravel(), scores.ravel(), labels=[0, 1])
    assert measured("brier_score", scores, several) == pytest.approx(expected, abs=1e-9)
    each = [sklearn.metrics.brier_score_loss(labels == k, scores[:, k], labels=[0, 1]) for k in range(scores.shape[1])]
    assert measured("brier_score", scores, labels) == pytest.approx(sum(each), abs=1e-9)


def test_unread_videos_in_calibration():
    assert measured("calibration_error") == pytest.approx(100 * (0.1 + 0.3 + 0.6) / 4)  # no confidence, and wrong
    wrong = np.array([[2.0, 0.0]])  # of several labels: as sure as can be of what is not there
    assert measured("calibration_error", wrong, np.array([[False, True]])) == 100
    assert measured("brier_score", wrong, np.array([[False, True]])) == 1
