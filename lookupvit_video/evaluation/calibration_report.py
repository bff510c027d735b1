"""What a calibration reaches, as figures and as a picture: reliability, and errors against accepted answers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookupvit_video.drawing.figures import new_figure, save_figure
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.calibration import Calibration, Reject
from lookupvit_video.evaluation.conformal import KINDS, class_scores, coverage_over_splits
from lookupvit_video.evaluation.metrics import METRICS, judged, reliability

logger = logging.getLogger(__name__)
COVERAGE, RATE = 0.9, 0.05  # that a report shows; users name theirs at prediction
_SINGLE, _SEVERAL = ("top1", "nll", "brier_score", "calibration_error"), (
    "mean_average_precision", "nll", "brier_score", "calibration_error"
)  # fmt: skip


def quality(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy and how far the probabilities (videos, K) are from the truth, by the name of the metric."""
    names = _SEVERAL if labels.ndim == 2 else _SINGLE
    return {name: round(METRICS[name].function(scores, labels), 4) for name in names}


def sets_reached(
    calibration: Calibration, scores: np.ndarray, labels: np.ndarray, uniform: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return coverage, mean size and share of empty sets, by their kind, for a wanted coverage of ``COVERAGE``.

    ``over_200_splits`` is the mean coverage where a random half of these videos is calibrated on: one list alone has
    the luck of the draw.
    """
    found = {}
    for kind in KINDS:
        by_class = class_scores(scores, uniform, kind)
        selection = calibration.selection(scores.shape[1], None, COVERAGE, kind)
        sets = [selection.members(row, share) for row, share in zip(scores, uniform, strict=True)]
        sizes = np.array([len(members) for members in sets])
        covered = np.mean([label in members for label, members in zip(labels, sets, strict=True)])
        found[kind] = {
            "coverage": round(float(covered), 4), "mean_size": round(float(sizes.mean()), 3),
            "empty": round(float((sizes == 0).mean()), 4),
            "over_200_splits": round(coverage_over_splits(by_class, labels, COVERAGE, kind), 4),
        }  # fmt: skip
    return found


def reject_reached(
    calibration: Calibration, scores: np.ndarray, labels: np.ndarray, unknown: Sequence[float]
) -> dict[str, Any]:
    """Return what ``reject`` does at a rate of ``RATE``, of errors and, with ``unknown``, of unknown classes.

    Args:
        unknown: confidences for videos of none of the classes.
    """
    from sklearn.metrics import roc_auc_score

    confidence, right = judged(scores, labels)
    found: dict[str, Any] = {}
    for of in ("error", *(["unknown"] if len(unknown) else [])):
        try:
            least = calibration.least_confidence(Reject(of, RATE))
        except UserError as error:
            found[of] = {"not_possible": str(error)}
            continue
        accepted = confidence >= least
        found[of] = {
            "least_confidence": round(least, 6), "accepted": round(float(accepted.mean()), 4),
            "error_of_accepted": round(float((~right[accepted]).mean()), 4) if accepted.any() else None,
        }  # fmt: skip
        if of == "unknown":
            known = np.r_[np.ones(len(confidence)), np.zeros(len(unknown))]
            found[of] |= {
                "unknown_accepted": round(float((np.asarray(unknown) >= least).mean()), 4),
                "auroc": round(float(roc_auc_score(known, np.r_[confidence, unknown])), 4),
            }
    return found


def draw_calibration(before: np.ndarray, after: np.ndarray, labels: np.ndarray, title: str, path: Path) -> None:
    """Write a PNG: accuracy over confidence, before and after; and, of one label a video, errors over accepted answers.

    Args:
        before, after: probabilities (videos, K).
    """
    several = labels.ndim == 2
    figure = new_figure(5 if several else 9.4, 4.4)
    axes = figure.subplots(1, 1 if several else 2, squeeze=False)[0]
    _draw_reliability(axes[0], {"before": before, "after": after}, labels)
    if not several:
        _draw_risk(axes[1], after, labels)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=150)


def _draw_reliability(axis: Any, answers: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    axis.plot((0, 100), (0, 100), color="0.6", linestyle="--", linewidth=1, label="as confident as right")
    for (name, scores), color, marker in zip(answers.items(), ("tab:orange", "tab:blue"), "so", strict=True):
        count, confidence, right = reliability(scores, labels).T
        error = METRICS["calibration_error"].function(scores, labels)
        some = count > 0
        axis.scatter(100 * confidence[some], 100 * right[some], s=8 + 140 * count[some] / count.sum(), color=color,
                     marker=marker, zorder=3)  # fmt: skip
        axis.plot([], [], color=color, linewidth=0, marker=marker, markersize=5,
                  label=f"{name}: calibration error {error:.1f} %")  # fmt: skip
    what = "share of pairs with the label, %" if labels.ndim == 2 else "accuracy, %"
    axis.set(xlabel="confidence, % (larger marks: more videos)", ylabel=what, xlim=(-2, 102), ylim=(-2, 102))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")


def _draw_risk(axis: Any, scores: np.ndarray, labels: np.ndarray) -> None:
    confidence, right = judged(scores, labels)
    errors = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    count = np.arange(1, len(right) + 1)
    axis.plot(100 * count / len(right), 100 * errors / count, color="tab:blue", label="the most confident answers")
    axis.axhline(100 * float((~right).mean()), color="0.6", linestyle="--", linewidth=1, label="all answers")
    axis.set(xlabel="accepted answers, %", ylabel="errors among them, %", xlim=(0, 101))
    axis.set_ylim(0, 1.25 * max(float((100 * errors / count).max()), 1.0))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")


def log_facts(name: str, facts: Mapping[str, Any]) -> None:
    """Log what calibration reaches for a budget, on the held-out list where there is one."""
    where = "check" if "check" in facts else "calibration"
    before, after = facts[where]["before"], facts[where]["after"]
    logger.info(
        "%s%d videos for %s: calibration error %.2f %% before, %.2f %% after; Brier score %.4f, %.4f",
        f"{name}: " if name else "", facts[where]["videos"], where, before["calibration_error"],
        after["calibration_error"], before["brier_score"], after["brier_score"],
    )  # fmt: skip
    for kind, reached in facts[where].get("sets", {}).items():
        logger.info(
            "  sets %-5s coverage %.1f %% (%.1f %% over 200 splits), mean size %.2f",
            kind,
            100 * reached["coverage"],
            100 * reached["over_200_splits"],
            reached["mean_size"],
        )
    for of, reached in facts[where].get("reject", {}).items():
        if "not_possible" in reached:
            logger.info("  %s", reached["not_possible"])
            continue
        more = (
            f"; of unknown classes {100 * reached['unknown_accepted']:.1f} %, AUROC {reached['auroc']:.3f}"
            if "auroc" in reached else ""
        )  # fmt: skip
        logger.info("  reject %s=%g: %.1f %% accepted%s", of, RATE, 100 * reached["accepted"], more)
