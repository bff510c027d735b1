"""Thresholds and the table a class."""

import csv

import numpy as np
import pytest
import sklearn.metrics

from lookupvit_video.evaluation.report import choose_thresholds, class_table, write_class_table


def several_labels(seed=0, videos=200, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.random((videos, classes)) < np.linspace(0.1, 0.6, classes)
    return np.clip(0.35 * labels + 0.5 * rng.random(labels.shape), 0, 1), labels


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_give_the_largest_f1(seed):
    scores, labels = several_labels(seed)
    chosen = choose_thresholds(scores, labels)
    for label, cut in enumerate(chosen):
        found = sklearn.metrics.f1_score(labels[:, label], scores[:, label] >= cut)
        others = [sklearn.metrics.f1_score(labels[:, label], scores[:, label] >= other) for other in scores[:, label]]
        assert found == pytest.approx(max(others))
        assert cut not in scores[:, label]  # rounding of a score decides nothing


@pytest.mark.parametrize("rule", ["precision", "recall"])
def test_thresholds_give_the_wanted_precision_or_recall(rule):
    scores, labels = several_labels()
    measure = {"precision": sklearn.metrics.precision_score, "recall": sklearn.metrics.recall_score}
    other = measure["recall" if rule == "precision" else "precision"]
    for label, cut in enumerate(choose_thresholds(scores, labels, rule, 0.8)):
        true, share = labels[:, label], scores[:, label]
        assert measure[rule](true, share >= cut) >= 0.8
        best = max(other(true, share >= at) for at in share if measure[rule](true, share >= at) >= 0.8)
        assert other(true, share >= cut) == pytest.approx(best)


def test_a_class_without_videos_has_a_threshold_of_a_half():
    scores, labels = several_labels()
    labels[:, 1] = False
    assert choose_thresholds(scores, labels)[1] == 0.5


def test_table_and_picture(tmp_path):
    scores, labels = several_labels(classes=50)
    labels[:, 3] = False
    table = class_table(scores, labels, choose_thresholds(scores, labels))
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, scores >= choose_thresholds(scores, labels), average=None, zero_division=np.nan
    )
    assert np.array(table)[:, :4] == pytest.approx(
        np.stack([support, 100 * precision, 100 * recall, 100 * f1], 1), nan_ok=True
    )
    assert np.isnan(table[3][4])
    write_class_table(table, [f"class {n}" for n in range(50)], tmp_path)
    rows = list(csv.DictReader((tmp_path / "test_per_class.csv").open()))
    assert rows[0]["videos"] == str(labels[:, 0].sum())
    assert (tmp_path / "test_per_class.png").stat().st_size > 10_000
