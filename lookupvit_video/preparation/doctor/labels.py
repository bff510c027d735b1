"""Likely label errors, and classes that look alike, by answers to videos that the answering model was not trained on.

Confident learning (Northcutt et al., "Confident learning: estimating uncertainty in dataset labels", JAIR 2021) in its
simplest form; cleanlab, the authors' library, is under the AGPL.

Shape letters: N videos, D features, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lookupvit_video.errors import UserError


class Suspect(NamedTuple):
    """A video whose label is probably wrong."""

    row: int
    """Its number, from 0."""
    given: int
    likely: int
    """The class that the answers name."""
    margin: float
    """How much more probable that class is than the given one; the larger, the more likely an error."""


def out_of_fold(features_ND: np.ndarray, labels_N: np.ndarray, groups: Sequence[str], folds: int = 5) -> np.ndarray:
    """Return the probabilities (N, K) of a linear classifier for each video, trained on the other folds.

    Args:
        groups: videos of a group are in one fold.
        folds: fewer, where every class has fewer videos than that.

    Raises:
        UserError: there are too few videos.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(labels_N, return_counts=True)
    if len(set(groups)) < 2 * folds or len(classes) < 2 or counts.max() < 2:
        raise UserError(f"--model: label errors need at least two classes and {2 * folds} videos or groups of videos")
    folds = min(folds, int(counts.max()))
    found = np.zeros((len(labels_N), int(classes.max()) + 1))
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(features_ND, labels_N, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(features_ND[train], labels_N[train])
        found[np.ix_(test, model.classes_)] = model.predict_proba(features_ND[test])
    return found


def likely_errors(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> list[Suspect]:
    """Return the videos whose label is probably wrong, the likeliest errors first.

    A class counts as confidently answered where its probability is at least its mean over the videos labelled so.
    """
    sure_K = np.array([
        probabilities_NK[labels_N == k, k].mean() if (labels_N == k).any() else np.inf
        for k in range(probabilities_NK.shape[1])
    ])  # fmt: skip
    confident_NK = np.where(probabilities_NK >= sure_K, probabilities_NK, -1)
    margins_N = label_margins(probabilities_NK, labels_N)
    suspects = [
        Suspect(i, int(labels_N[i]), int(best), float(margins_N[i]))
        for i, best in enumerate(confident_NK.argmax(1))
        if confident_NK[i, best] > 0 and best != labels_N[i]
    ]
    return sorted(suspects, key=lambda each: -each.margin)


def label_margins(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return how much more probable the likeliest other class of each video is than the given one, (N,)."""
    others_NK = probabilities_NK.copy()
    others_NK[np.arange(len(labels_N)), labels_N] = -1
    found: np.ndarray = others_NK.max(1) - probabilities_NK[np.arange(len(labels_N)), labels_N]
    return found


def alike_classes(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> list[tuple[int, int, float]]:
    """Return (class, class, share of their videos that is answered as the other) of classes confused, most first."""
    counts, answers = Counter(labels_N.tolist()), probabilities_NK.argmax(1)
    mixed = Counter((min(a, b), max(a, b)) for a, b in zip(labels_N.tolist(), answers.tolist(), strict=True) if a != b)
    pairs = [(a, b, number / (counts[a] + counts[b])) for (a, b), number in mixed.items()]
    return sorted(pairs, key=lambda pair: -pair[2])
