"""What validation and test measure. To add a metric, write one function with ``@metric``.

TEST.METRICS names those that are measured, TRAIN.BEST_METRIC the one that chooses best.pt; logs, curves and results
follow. A function takes

* scores (videos, K): mean softmax over the views; all zeros for a video that could not be read, which counts as wrong,
* labels (videos,),

and returns a number. Shape letters: K classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far (None: there is none); nan never is."""
        if best is None:
            return not math.isnan(value)
        return value > best if self.higher_is_better else value < best


METRICS: dict[str, Metric] = {}


def metric(
    label: str = "", *, higher_is_better: bool = True, percent: bool = True, min_classes: int = 1
) -> Callable[[Function], Function]:
    """Register the decorated function as the metric of its own name.

    Args:
        label: what logs call it; default: its name.
        min_classes: with fewer classes the metric says nothing and is left out.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        METRICS[name] = Metric(name, function, label or name, higher_is_better, percent, min_classes)
        return function

    return register


def chosen_metrics(names: Sequence[str], num_classes: int) -> list[Metric]:
    """Return the metrics of TEST.METRICS, without those that say nothing about so few classes.

    Raises:
        UserError: one of them does not exist; lists the choices.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"TEST.METRICS: there is no metric {name!r}; choose from {', '.join(METRICS)}")
    return [METRICS[name] for name in names if num_classes >= METRICS[name].min_classes]


def rounded(values: Mapping[str, float], digits: int) -> dict[str, float]:
    """Return values by metric name, rounded for a file: percentages to some digits, others to two more."""
    return {name: round(float(value), digits + 2 * (not METRICS[name].percent)) for name, value in values.items()}


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


@metric("negative log-likelihood", higher_is_better=False, percent=False)
def nll(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the cross-entropy of the mean softmax, in nats; a probability below 1e-7 counts as 1e-7."""
    return float(-np.log(np.clip(scores[np.arange(len(labels)), labels], 1e-7, None)).mean())
