"""Figures a class: a table, a picture, and the thresholds of classes that a video may have several of.

Shape letters: K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lookupvit_video.evaluation.metrics import decisions, indicators
from lookupvit_video.text import write_csv

SHOWN = 20  # classes of each end of the picture, where there are more than twice as many
COLUMNS = ("class", "videos", "precision", "recall", "f1", "average_precision")


def choose_thresholds(scores: np.ndarray, labels: np.ndarray, rule: str = "f1", target: float = 0.9) -> np.ndarray:
    """Return the threshold (K,) of each class that is best on some videos; 0.5 for a class that none of them has.

    Args:
        scores, labels: (videos, K).
        rule: f1: the largest F1; precision: the largest recall with at least the wanted precision; recall: the largest
            precision with at least the wanted recall. Where no threshold gives that, the one that comes nearest.
        target: the wanted precision or recall.
    """
    from sklearn.metrics import precision_recall_curve

    thresholds_K = np.full(scores.shape[1], 0.5)
    for label in np.flatnonzero(labels.any(0)):
        precision, recall, cuts = precision_recall_curve(labels[:, label], scores[:, label])
        precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
        if rule == "f1":
            gain = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        else:
            wanted, other = (precision, recall) if rule == "precision" else (recall, precision)
            gain = np.where(wanted >= target, 1 + other, wanted)
        best = int(gain.argmax())
        below = scores[scores[:, label] < cuts[best], label]
        # halfway to the next score below, so that rounding does not decide
        thresholds_K[label] = (cuts[best] + below.max()) / 2 if len(below) else cuts[best]
    return thresholds_K


def class_table(
    scores: np.ndarray, labels: np.ndarray, thresholds_K: np.ndarray | float = 0.5
) -> list[tuple[int, float, float, float, float]]:
    """Return (videos, precision, recall, F1, average precision) of each class, in percent; nan where not defined."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    true, answered = indicators(labels, scores.shape[1]), decisions(scores, labels, thresholds_K)
    precision, recall, f1, support = precision_recall_fscore_support(true, answered, average=None, zero_division=np.nan)
    ap = [average_precision_score(true[:, k], scores[:, k]) if support[k] else np.nan for k in range(scores.shape[1])]
    return [
        (int(count), 100 * float(p), 100 * float(r), 100 * float(f), 100 * float(a))
        for count, p, r, f, a in zip(support, precision, recall, f1, ap, strict=True)
    ]


def write_class_table(
    table: Sequence[tuple[int, float, float, float, float]], classes: Sequence[str], folder: Path
) -> None:
    """Write test_per_class.csv and test_per_class.png: the classes by F1, the best first."""
    rows = [
        (name, count, *(f"{value:.2f}" for value in values))
        for name, (count, *values) in zip(classes, table, strict=True)
    ]
    write_csv(folder / "test_per_class.csv", COLUMNS, rows)
    order = sorted((at for at, row in enumerate(table) if row[0]), key=lambda at: -np.nan_to_num(table[at][3]))
    if order:
        _plot_classes([(at, classes[at], table[at][0], table[at][3]) for at in order], folder / "test_per_class.png")


def _plot_classes(rows: Sequence[tuple[int, str, int, float]], path: Path) -> None:
    """Draw bars of F1 from (label, name, videos, F1); of many classes the best and the worst."""
    from lookupvit_video.drawing.figures import class_color, new_figure, plain, save_figure
    from lookupvit_video.drawing.fonts import class_label

    cut = len(rows) > 2 * SHOWN
    shown = [*rows[:SHOWN], *rows[-SHOWN:]] if cut else list(rows)
    figure = new_figure(7, 1.2 + 0.22 * len(shown))
    axes = figure.add_subplot()
    places = np.arange(len(shown)) + np.where(np.arange(len(shown)) >= SHOWN, 0.8 * cut, 0)
    values = [float(np.nan_to_num(f1)) for *_, f1 in shown]
    axes.barh(places, values, color=[class_color(label) for label, *_ in shown], height=0.75)
    for place, value, (_, _, count, _) in zip(places, values, shown, strict=True):
        axes.text(value + 1, place, f"{value:.0f} % ({count})", va="center", fontsize=7)
    axes.set_yticks(places, [plain(class_label(name, label)) for label, name, _, _ in shown], fontsize=8)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlabel("F1 in percent (videos of the class)")
    title = f"the {SHOWN} best and {SHOWN} worst of {len(rows)} classes" if cut else f"{len(rows)} classes"
    axes.set_title(title, fontsize=10)
    save_figure(figure, path)
