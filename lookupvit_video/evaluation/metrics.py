"""What validation and test measure. To add a metric, write one function with ``@metric``.

TEST.METRICS names those that are measured, TRAIN.BEST_METRIC the one that chooses best.pt; logs, curves and results
follow. A function takes

* scores (videos, K): mean softmax over the views; all zeros for a video that could not be read, which counts as wrong,
* labels (videos,),

and returns a number. Of several labels a video (MODEL.TASK multi_label) scores are mean sigmoids and labels (videos, K)
bool; an unread video scores 0 where a label is and 2 elsewhere, which is wrong everywhere. Shape letters: K classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lookupvit_video.errors import UserError

Function = Callable[[np.ndarray, np.ndarray], float]


class Metric(NamedTuple):
    """A figure of merit over a list of videos."""

    name: str
    function: Function
    label: str
    """What logs call it."""
    higher_is_better: bool
    percent: bool
    min_classes: int = 1
    """With fewer it says nothing and is left out."""
    multi_label: bool = False
    """Whether it is also of several labels a video."""

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far (None: there is none); nan never is."""
        if best is None:
            return not math.isnan(value)
        return value > best if self.higher_is_better else value < best


METRICS: dict[str, Metric] = {}


def metric(
    label: str = "",
    *,
    higher_is_better: bool = True,
    percent: bool = True,
    min_classes: int = 1,
    multi_label: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function as the metric of its own name.

    Args:
        label: what logs call it; default: its name.
        min_classes: with fewer classes the metric says nothing and is left out.
        multi_label: whether it is also of several labels a video.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        METRICS[name] = Metric(name, function, label or name, higher_is_better, percent, min_classes, multi_label)
        return function

    return register


def chosen_metrics(names: Sequence[str], num_classes: int, *, multi_label: bool = False) -> list[Metric]:
    """Return the metrics of TEST.METRICS, without those that say nothing about this number of classes.

    Raises:
        UserError: one of them does not exist, or is not of several labels a video; lists the choices.
    """
    choices = [name for name, metric in METRICS.items() if metric.multi_label or not multi_label]
    for name in names:
        if name not in choices:
            task = " for MODEL.TASK multi_label" if name in METRICS else ""
            raise UserError(f"TEST.METRICS: there is no metric {name!r}{task}; choose from {', '.join(choices)}")
    return [METRICS[name] for name in names if num_classes >= METRICS[name].min_classes]


def rounded(values: Mapping[str, float], digits: int) -> dict[str, float]:
    """Return values by metric name, rounded for a file: percentages to some digits, others to two more."""
    return {name: round(float(value), digits + 2 * (not METRICS[name].percent)) for name, value in values.items()}


def main_metric(result: Mapping[str, Any]) -> str:
    """Return the metric by which the results of runs are compared: top-1, or mAP of several labels a video."""
    return "top1" if "top1" in result else "mean_average_precision"


def text(values: Mapping[str, float], separator: str = ", ") -> str:
    """Return those of some values that are metrics, by name, for a log: "top-1 71.25 %, top-5 90.00 %"."""
    return separator.join(
        METRICS[name].label + (f" {value:.2f} %" if METRICS[name].percent else f" {value:.4f}")
        for name, value in values.items() if name in METRICS
    )  # fmt: skip


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the share of videos, in percent, whose label is among the k likeliest classes; of equal ones, the first.

    Where k > K, all classes.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return 100 * float(np.mean((best == labels[:, None]).any(1) & scores.any(1)))


@metric("top-1")
def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of videos, in percent, whose label is the likeliest class."""
    return top_k(scores, labels, 1)


@metric("top-5", min_classes=6)  # of five, all are among the five likeliest
def top5(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of videos, in percent, whose label is among the five likeliest classes."""
    return top_k(scores, labels, 5)


@metric("mean class accuracy")
def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return top-1, in percent, averaged over the classes that have videos: each class weighs the same."""
    right = (scores.argmax(1) == labels) & scores.any(1)
    return 100 * float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


@metric("negative log-likelihood", higher_is_better=False, percent=False, multi_label=True)
def nll(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the cross-entropy of the mean softmax, in nats; a probability below 1e-7 counts as 1e-7.

    Of several labels a video the binary cross-entropy of the mean sigmoid, averaged over the classes.
    """
    if labels.ndim == 2:
        return float(-np.log(np.clip(np.where(labels, scores, 1 - scores), 1e-7, None)).mean())
    return float(-np.log(np.clip(scores[np.arange(len(labels)), labels], 1e-7, None)).mean())


# Of each class against the rest, by scikit-learn. Classes for which a figure is not defined are left out of its mean:
# F1 of a class that neither occurs nor is answered, AP of one that does not occur, ROC AUC of one that all or no videos
# have.


def indicators(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return which classes (videos, K) bool each video has, from one label a video (videos,) or several."""
    return labels.astype(bool) if labels.ndim == 2 else np.eye(num_classes, dtype=bool)[labels]


def decisions(scores: np.ndarray, labels: np.ndarray, thresholds_K: np.ndarray | float = 0.5) -> np.ndarray:
    """Return which classes (videos, K) bool are answered: the likeliest, or of several labels all above a threshold."""
    if labels.ndim == 2:
        above: np.ndarray = np.greater_equal(scores, thresholds_K)
        return above
    answered: np.ndarray = indicators(scores.argmax(1), scores.shape[1])
    answered[~scores.any(1)] = False
    return answered


def _f1(scores: np.ndarray, labels: np.ndarray, average: str) -> float:
    from sklearn.metrics import f1_score

    true, answered = indicators(labels, scores.shape[1]), decisions(scores, labels)
    return 100 * float(f1_score(true, answered, average=average, zero_division=np.nan))


@metric("macro F1", multi_label=True)
def macro_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of F1 over the classes, in percent."""
    return _f1(scores, labels, "macro")


@metric("micro F1", multi_label=True)
def micro_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return F1 of all answers together, in percent."""
    return _f1(scores, labels, "micro")


@metric("weighted F1", multi_label=True)
def weighted_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of F1 over the classes, in percent, weighted by their number of videos."""
    return _f1(scores, labels, "weighted")


def _average_precision(scores: np.ndarray, labels: np.ndarray, average: str) -> float:
    from sklearn.metrics import average_precision_score

    true = indicators(labels, scores.shape[1])
    occurs_K = true.any(0)
    if not occurs_K.any():
        return math.nan
    return 100 * float(average_precision_score(true[:, occurs_K], scores[:, occurs_K], average=average))


@metric("mAP", multi_label=True)
def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return average precision, in percent, averaged over the classes that have videos."""
    return _average_precision(scores, labels, "macro")


@metric("weighted mAP", multi_label=True)
def weighted_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return average precision, in percent, averaged over the classes with their number of videos as weight."""
    return _average_precision(scores, labels, "weighted")


@metric("micro AP", multi_label=True)
def micro_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return average precision, in percent, over all pairs of a video and a class that has videos."""
    return _average_precision(scores, labels, "micro")


@metric("ROC AUC", multi_label=True)
def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve, in percent, averaged over the classes; nan where it is defined for none."""
    from sklearn.metrics import roc_auc_score

    true = indicators(labels, scores.shape[1])
    defined_K = true.any(0) & ~true.all(0)
    if not defined_K.any():
        return math.nan
    return 100 * float(roc_auc_score(true[:, defined_K], scores[:, defined_K], average="macro"))


# How far probabilities are from the truth ---------------------------------------------------------------------------


def judged(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and whether each is right: of the likeliest class, or of each pair of a video and a class."""
    if labels.ndim == 2:
        return np.clip(scores, 0, 1).ravel(), labels.astype(bool).ravel()
    return scores.max(1), (scores.argmax(1) == labels) & scores.any(1)


def reliability(scores: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """Return (count, mean confidence, share right), (bins, 3), of equally wide bins of the confidence; nan if empty."""
    confidence, right = judged(scores, labels)
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=bins) / count for values in (confidence, right)]
    return np.stack([count, *means], axis=1)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error in percent, with bins of equal width; nan without answers.

    Args:
        confidence, right: of any shape, the same for both.
    """
    if not confidence.size:
        return math.nan
    place = np.clip((confidence.ravel() * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(place, confidence.ravel() - right.ravel(), bins)
    return 100 * float(np.abs(gaps).sum() / confidence.size)


@metric("calibration error", higher_is_better=False, multi_label=True)
def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error of 15 bins, in percent: how far confidence is from accuracy (1706.04599).

    Of several labels a video over all pairs of a video and a class.
    """
    return expected_calibration_error(*judged(scores, labels))


@metric("Brier score", higher_is_better=False, percent=False, multi_label=True)
def brier_score(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the squared distance of probabilities and truth, summed over the classes, averaged over the videos.

    Of several labels a video averaged over the classes too.
    """
    squares = (np.clip(scores, 0, 1) - indicators(labels, scores.shape[1])) ** 2
    return float(squares.mean() if labels.ndim == 2 else squares.sum(1).mean())


def interval(
    function: Function, scores: np.ndarray, labels: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (percentile method) of a metric over the videos.

    Args:
        resamples: of the videos, with replacement; fewer, but at least 100, of tables that would take long.
    """
    count = max(min(resamples, 10**8 // scores.size), 100)
    draws = np.random.default_rng(seed).integers(len(labels), size=(count, len(labels)))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.array([function(scores[rows], labels[rows]) for rows in draws])
    return middle_95(values)


def middle_95(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of a resampled figure, nan left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (math.nan, math.nan)
    return float(low), float(high)
