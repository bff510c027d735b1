"""Thresholds and the table a class."""

import csv
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from lookupvit_video.drawing.figures import class_color
from lookupvit_video.evaluation import report
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


def test_where_no_threshold_gives_what_is_wanted_the_nearest_is_taken():
    labels, scores = np.array([[False], [True], [True], [False]]), np.array([[0.9], [0.5], [0.4], [0.1]])
    # precision is 0, 1/2, 2/3 and 1/2, from the highest threshold down
    assert choose_thresholds(scores, labels, "precision", 0.9).tolist() == pytest.approx([0.25])


def test_the_wanted_share_is_nine_tenths_and_the_rule_f1_where_none_are_named():
    scores, labels = several_labels(3, videos=300)
    for rule in ("precision", "recall"):
        found = choose_thresholds(scores, labels, rule).tolist()
        assert found == choose_thresholds(scores, labels, rule, 0.9).tolist()
        assert found != choose_thresholds(scores, labels, rule, 0.8).tolist()
    assert choose_thresholds(scores, labels).tolist() == choose_thresholds(scores, labels, "f1").tolist()


def test_a_threshold_lies_halfway_to_the_next_score_below_or_on_the_lowest_score():
    labels = np.array([[True, True], [False, True]])
    scores = np.array([[0.8, 0.8], [0.4, 0.6]])
    assert choose_thresholds(scores, labels).tolist() == pytest.approx([0.6, 0.6])


def test_a_class_without_videos_has_a_threshold_of_a_half():
    scores, labels = several_labels()
    labels[:, 1] = False
    assert choose_thresholds(scores, labels)[1] == 0.5


def test_figures_a_class_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0]])
    table = class_table(scores, np.array([0, 1, 1, 1]))
    assert table[0] == pytest.approx((1, 50, 100, 200 / 3, 100))
    assert table[1] == pytest.approx((3, 100, 200 / 3, 80, 100))
    assert table[2][0] == 0
    assert np.isnan(table[2][1:]).all()


def drawn(monkeypatch, rows):
    """Return what a picture of (label, name, videos, F1) shows: bars (place, F1, color), texts, names, axes."""
    figures = []
    monkeypatch.setattr(
        "lookupvit_video.drawing.figures.save_figure", lambda figure, path: figures.append((figure, path))
    )
    report._plot_classes(rows, Path("x.png"))
    ((figure, path),) = figures
    assert path == Path("x.png")
    (axes,) = figure.axes
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_width(), bar.get_facecolor()[:3]) for bar in axes.patches]
    return figure, axes, bars


def test_bars_of_f1_come_with_their_class_and_videos(monkeypatch):
    rows = [(2, "run", 7, 88.4), (0, "$x$", 5, 50.0), (1, "jump", 1, np.nan)]
    figure, axes, bars = drawn(monkeypatch, rows)
    assert [bar[:2] for bar in bars] == [pytest.approx(pair) for pair in ((0, 88.4), (1, 50), (2, 0))]
    assert [bar[2] for bar in bars] == [pytest.approx(class_color(label)) for label in (2, 0, 1)]
    texts = [(text.get_text(), *text.get_position()) for text in axes.texts]
    assert texts == [("88 % (7)", 89.4, 0), ("50 % (5)", 51.0, 1), ("0 % (1)", 1.0, 2)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["run", r"\$x\$", "jump"]
    assert axes.yaxis_inverted()  # the best is on top
    assert (axes.get_title(), axes.get_xlabel()) == ("3 classes", "F1 in percent (videos of the class)")
    assert axes.get_xlim() == (0, 118)
    assert axes.get_xticks().tolist() == [0, 20, 40, 60, 80, 100]
    assert figure.get_size_inches().tolist() == pytest.approx([7, 1.2 + 0.22 * 3])


def test_of_many_classes_the_best_and_the_worst_are_shown_with_a_gap(monkeypatch):
    rows = [(label, f"c{label}", 1, 100.0 - label) for label in range(41)]
    _, axes, bars = drawn(monkeypatch, rows[:40])
    assert ([place for place, *_ in bars], axes.get_title()) == (pytest.approx(list(range(40))), "40 classes")
    _, axes, bars = drawn(monkeypatch, rows)
    assert [place for place, *_ in bars] == pytest.approx([*range(20), *(20.8 + n for n in range(20))])
    assert [width for _, width, _ in bars] == [row[3] for row in (*rows[:20], *rows[21:])]
    assert axes.get_title() == "the 20 best and 20 worst of 41 classes"


def test_the_picture_has_the_classes_with_videos_the_best_first(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(report, "_plot_classes", lambda rows, path: shown.append((rows, path)))
    table = [(2, 50, 50, 40.0, 50), (0, 0, 0, 99.0, 0), (3, 1, 1, 80.0, 1), (1, 0, 0, np.nan, 0)]
    write_class_table(table, list("abcd"), tmp_path)
    assert shown == [([(2, "c", 3, 80.0), (0, "a", 2, 40.0), (3, "d", 1, pytest.approx(np.nan, nan_ok=True))],
                      tmp_path / "test_per_class.png")]  # fmt: skip
    assert (tmp_path / "test_per_class.csv").read_text().split() == [
        "class,videos,precision,recall,f1,average_precision", "a,2,50.00,50.00,40.00,50.00", "b,0,0.00,0.00,99.00,0.00",
        "c,3,1.00,1.00,80.00,1.00", "d,1,0.00,0.00,nan,0.00",
    ]  # fmt: skip
    write_class_table(table[1:2], ["b"], tmp_path)
    assert len(shown) == 1  # no class has a video


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
