"""Conformal prediction sets: class sets that hold the true class in a share of videos that the user names.

Split conformal prediction: each labeled video of a calibration list gets a score of how badly its true class fits. A
set has each class whose score is at most a quantile of these. Where new videos are like those of the list, it holds the
true class with at least the wanted probability, and at most 1 / (videos + 1) above (Angelopoulos and Bates,
2107.07511). Kinds:

* ``lac``: least ambiguous sets (Sadinle et al., 1609.00451), the smallest on average. The score is 1 - probability.
* ``aps``: adaptive prediction sets (Romano et al., 2006.02544), larger for hard videos. The score is the probability of
  all likelier classes and a random share of the class's own; without that share sets would be too large.
* ``class``: lac with a quantile a class, so that each class has the coverage, not only their mean.

A set may be empty: where the wanted coverage is below the model's accuracy, some videos must go without.
Shape letters: K classes.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

KINDS = ("lac", "aps", "class")


def pseudo_random(data: bytes) -> float:
    """Return a number from 0 to 1 that follows from data alone, as if drawn uniformly: the same at every call."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def class_scores(probabilities_NK: np.ndarray, uniform_N: Sequence[float] | np.ndarray, kind: str) -> np.ndarray:
    """Return how badly each class fits each video, (videos, K): the higher, the worse.

    Args:
        uniform_N: a number from 0 to 1 for each video, the share of a class's own probability that ``aps`` counts.
    """
    shares = probabilities_NK.astype(np.float64)
    if kind != "aps":
        return 1 - shares
    order = np.argsort(-shares, axis=1, kind="stable")
    in_order = np.take_along_axis(shares, order, 1)
    summed = np.cumsum(in_order, 1) - in_order + np.asarray(uniform_N)[:, None] * in_order
    scores = np.empty_like(shares)
    np.put_along_axis(scores, order, summed, 1)
    return scores


def quantile(scores: np.ndarray, coverage: float) -> float:
    """Return the score that a new video's true class exceeds with a probability of at most 1 - ``coverage``.

    Infinite where there are too few scores: a set then has every class.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return math.inf if rank > len(scores) else float(np.sort(scores)[max(rank, 1) - 1])


def enough_for(coverage: float) -> int:
    """Return how many videos give a quantile that is not infinite."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def quantiles(scores: np.ndarray, labels: np.ndarray, num_classes: int, coverage: float, kind: str) -> np.ndarray:
    """Return the largest score (K,) with which each class is in a set.

    Args:
        scores: (videos,), of the true classes.
        labels: (videos,).
        kind: "class": of each class by itself, or of all together where it has too few videos.
    """
    found_K = np.full(num_classes, quantile(scores, coverage))
    if kind == "class":
        for label in range(num_classes):
            own = scores[labels == label]
            if len(own) >= enough_for(coverage):
                found_K[label] = quantile(own, coverage)
    return found_K


def coverage_over_splits(
    scores_NK: np.ndarray, labels: np.ndarray, coverage: float, kind: str, splits: int = 200, seed: int = 0
) -> float:
    """Return the mean coverage where one random half of some videos gives the quantiles and the other is covered.

    Each halving is used both ways, which takes most of the chance out of the mean.

    Args:
        scores_NK: of ``class_scores``.
    """
    rng, count = np.random.default_rng(seed), len(labels)
    of_true, reached = scores_NK[np.arange(count), labels], []
    for _ in range(splits // 2):
        halves = np.array_split(rng.permutation(count), 2)
        for first, second in (halves, halves[::-1]):
            cuts_K = quantiles(of_true[first], labels[first], scores_NK.shape[1], coverage, kind)
            reached.append(float((of_true[second] <= cuts_K[labels[second]]).mean()))
    return float(np.mean(reached))
