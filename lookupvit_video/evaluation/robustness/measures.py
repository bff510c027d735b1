"""Figures of robustness, from which answers are right.

mPC and rPC: Michaelis et al. (arXiv 1907.07484), as Mini Kinetics-C uses them. Absolute and relative robustness:
Schiappa et al. (CVPR 2023). mCE: Hendrycks and Dietterich (arXiv 1903.12261), without its division by AlexNet: here any
named reference. Intervals: percentile bootstrap over the videos, the same ones for both sides of a difference, and over
the seeds where a side has several checkpoints.

Shape letters: C corruptions, S severities, V videos, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from lookupvit_video.evaluation.metrics import middle_95

RESAMPLES = 1000


@dataclass(frozen=True)
class Right:
    """Which answers of one model (or of several seeds of it) are right."""

    clean_NV: np.ndarray
    """(N, V) bool, N the seeds: on the videos as they are."""
    corrupted_NCSV: np.ndarray
    """(N, C, S, V) bool."""


def mean_corrupted(right: Right) -> float:
    """Return mPC in percent: accuracy averaged over corruptions and severities."""
    return 100 * float(right.corrupted_NCSV.mean())


def relative(right: Right) -> float:
    """Return rPC in percent: mPC divided by the accuracy on clean videos."""
    return _ratio(mean_corrupted(right), 100 * float(right.clean_NV.mean()))


def _ratio(part: float, of: float) -> float:
    return 100 * part / of if of else float("nan")


def robustness(clean: float, corrupted: float) -> tuple[float, float]:
    """Return absolute and relative robustness, 1 at best, from accuracies in percent."""
    return 1 - (clean - corrupted) / 100, 1 - (clean - corrupted) / clean if clean else float("nan")


def corruption_error(right: Right, reference: Right) -> float:
    """Return mCE in percent: the errors of a corruption divided by those of a reference, averaged over corruptions.

    A corruption under which the reference makes no error is left out.
    """
    own_C, other_C = ((~model.corrupted_NCSV).mean((0, 2, 3)) for model in (right, reference))
    known = other_C > 0
    return 100 * float((own_C[known] / other_C[known]).mean()) if known.any() else float("nan")


def intervals(
    right: Right, reference: Right | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of clean accuracy, mPC and rPC in percent; with a reference, those of the differences.

    Args:
        reference: on the same videos.
        resamples: R, of the videos with replacement; of several seeds those of each side too.
    """
    rng, count = np.random.default_rng(seed), right.clean_NV.shape[1]
    chosen_RV = rng.integers(count, size=(resamples, count))
    weights_RV = np.stack([np.bincount(chosen, minlength=count) for chosen in chosen_RV]) / count
    found = _resampled(right, weights_RV, rng)
    if reference is not None:
        other = _resampled(reference, weights_RV, rng)
        found = {name: values - other[name] for name, values in found.items()}
    return {name: middle_95(values) for name, values in found.items()}


def _resampled(right: Right, weights_RV: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return clean accuracy, mPC and rPC (R,) of resampled videos and seeds."""
    seeds = len(right.clean_NV)
    means = [right.clean_NV.astype(np.float64), right.corrupted_NCSV.mean((1, 2))]
    tables_RN = [weights_RV @ table_NV.T for table_NV in means]
    drawn_RN = rng.integers(seeds, size=(len(weights_RV), seeds))
    clean, corrupted = (100 * np.take_along_axis(table, drawn_RN, 1).mean(1) for table in tables_RN)
    shares = np.divide(100 * corrupted, clean, out=np.full_like(clean, np.nan), where=clean > 0)
    return {"clean": clean, "mPC": corrupted, "rPC": shares}
