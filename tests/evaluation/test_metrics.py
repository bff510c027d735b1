"""Metrics by hand, and the table of them."""

import math

import numpy as np
import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.metrics import METRICS, chosen_metrics, metric, rounded, text

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
