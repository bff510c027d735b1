"""The answers of one or several checkpoints as figures, tables and JSON.

Shape letters: N checkpoints (seeds) of one side, C corruptions, S severities, G grids, V videos.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookupvit_video.corruptions.table import SUITES, Corruption, suite
from lookupvit_video.evaluation.metrics import expected_calibration_error
from lookupvit_video.evaluation.robustness.answers import Answers
from lookupvit_video.evaluation.robustness.measures import (
    Right,
    corruption_error,
    intervals,
    mean_corrupted,
    relative,
    robustness,
)
from lookupvit_video.text import aligned_table

CSV_COLUMNS = ("grid", "corruption", "severity", "top1", "absolute", "relative", "calibration_error")


@dataclass(frozen=True)
class Side:
    """All answers of the checkpoints on one side of a comparison, on one compressed grid."""

    clean: Sequence[Answers]
    """Of each checkpoint."""
    corrupted: Sequence[Sequence[Answers]]
    """Of each checkpoint, for each corruption."""
    grid: int = 0
    """Which of the grids of the answers."""

    def right(self, labels: np.ndarray, chosen: Sequence[int]) -> Right:
        """Return which answers are right, of some of the corruptions."""
        return Right(
            np.stack([answers.right(labels)[0, self.grid] for answers in self.clean]),
            np.stack([[of[at].right(labels)[:, self.grid] for at in chosen] for of in self.corrupted]),
        )

    def calibration(self, labels: np.ndarray, at: int | None = None) -> list[float]:
        """Return the calibration error at each severity of a corruption, averaged over the checkpoints."""
        parts = self.clean if at is None else [of[at] for of in self.corrupted]
        errors = [
            [expected_calibration_error(confidences, right) for confidences, right in
             zip(answers.confidences[:, self.grid], answers.right(labels)[:, self.grid], strict=True)]
            for answers in parts
        ]  # fmt: skip
        return [float(value) for value in np.mean(errors, axis=0)]


def rows_of(side: Side, corruptions: Sequence[Corruption], labels: np.ndarray) -> list[dict[str, Any]]:
    """Return a row for each corruption: accuracy, robustness and calibration error at each severity, in percent."""
    right = side.right(labels, range(len(corruptions)))
    clean = 100 * float(right.clean_NV.mean())
    rows = []
    for at, corruption in enumerate(corruptions):
        accuracies = [100 * float(value) for value in right.corrupted_NCSV[:, at].mean((0, 2))]
        pairs = [robustness(clean, accuracy) for accuracy in accuracies]
        rows.append({
            "corruption": corruption.name,
            "suites": list(corruption.suites),
            "top1": _rounded(accuracies),
            "mean": round(float(np.mean(accuracies)), 2),
            "absolute": _rounded([absolute for absolute, _ in pairs], 4),
            "relative": _rounded([share for _, share in pairs], 4),
            "calibration_error": _rounded(side.calibration(labels, at)),
        })  # fmt: skip
    return rows


def summaries_of(
    side: Side, corruptions: Sequence[Corruption], labels: np.ndarray, reference: Side | None = None
) -> list[dict[str, Any]]:
    """Return figures over each suite that is complete, and over all corruptions: clean accuracy, mPC, rPC, ECE.

    Args:
        reference: mCE and differences (this side minus the reference) are added.
    """
    found = []
    for name, chosen in _groups(corruptions):
        right = side.right(labels, chosen)
        own = intervals(right)
        summary: dict[str, Any] = {
            "suite": name,
            "corruptions": len(chosen),
            "clean": _with_interval(100 * float(right.clean_NV.mean()), own["clean"]),
            "mPC": _with_interval(mean_corrupted(right), own["mPC"]),
            "rPC": _with_interval(relative(right), own["rPC"]),
            "calibration_error_clean": _rounded(side.calibration(labels))[0],
            "calibration_error": round(float(np.mean([side.calibration(labels, at) for at in chosen])), 2),
        }
        if reference is not None:
            other = reference.right(labels, chosen)
            between = intervals(right, other)
            summary["mCE"] = _rounded([corruption_error(right, other)])[0]
            gaps = {
                "clean": 100 * float(right.clean_NV.mean() - other.clean_NV.mean()),
                "mPC": mean_corrupted(right) - mean_corrupted(other),
                "rPC": relative(right) - relative(other),
            }
            summary["difference"] = {key: _with_interval(gap, between[key]) for key, gap in gaps.items()}
        found.append(summary)
    return found


def _groups(corruptions: Sequence[Corruption]) -> list[tuple[str, list[int]]]:
    """Return (name, places of its corruptions) of each suite that is complete, and of all together."""
    groups: list[tuple[str, list[int]]] = []
    for name in (*SUITES, "together"):
        members = {one.name for one in suite("all") if name in one.suites}
        places = [at for at, one in enumerate(corruptions) if name == "together" or one.name in members]
        if len(places) >= len(members) and places not in [others for _, others in groups]:
            groups.append((name, places))
    return groups


def _with_interval(value: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"value": _rounded([value])[0], "interval_95": _rounded(interval)}


def _rounded(values: Sequence[float], digits: int = 2) -> list[float | None]:
    """Round numbers for JSON, which has no nan: None, where nothing is right on clean videos."""
    return [round(value, digits) if math.isfinite(value) else None for value in values]


def report_text(report: dict[str, Any]) -> str:
    """Return a report as text: for each budget a line for each corruption, and one for each suite; then the attacks."""
    severities, parts = report["severities"], []
    for of in report["grids"]:
        parts += [f"grid {of['grid']}" if of["grid"] else f"{report['videos']} videos"]
        head = ["corruption", *(f"severity {severity}" for severity in severities), "mean"]
        lines = [[row["corruption"], *(f"{value:.1f}" for value in (*row["top1"], row["mean"]))]
                 for row in of["corruptions"]]  # fmt: skip
        parts += [
            aligned_table([head, *lines]).rstrip(),
            *(summary_text(one, of["compared_with"]) for one in of["summaries"]),
        ]
    parts += [
        f"{of['checkpoint']}: attack on {of['tubelets']} tubelets, {of['steps']} steps: {of['fooled']} of "
        f"{of['right']} right answers turned, {of['success']:.1f} %"
        for of in report["attacks"]
    ]
    return "\n".join(parts)


def summary_text(summary: dict[str, Any], compared_with: str) -> str:
    """Return the figures of a suite on one line."""
    parts = [f"{key} {_shown(summary[key])}" for key in ("clean", "mPC", "rPC")]
    parts.append(
        f"calibration error {summary['calibration_error_clean']:.1f} % clean, {summary['calibration_error']:.1f} %"
    )
    if "mCE" in summary:
        gaps = summary["difference"]
        parts.append(f"mCE {_figure(summary['mCE'])} %")
        parts.append(f"difference to {compared_with}: " + ", ".join(f"{key} {_shown(gaps[key])}" for key in gaps))
    return f"{summary['suite']} ({summary['corruptions']} corruptions): " + "; ".join(parts)


def _shown(value: dict[str, Any]) -> str:
    low, high = map(_figure, value["interval_95"])
    return f"{_figure(value['value'])} ({low} to {high})"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1f}"


def csv_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row of ``CSV_COLUMNS`` for each budget, corruption and severity."""
    return [
        (of["grid"], row["corruption"], severity, *(row[name][at] for name in CSV_COLUMNS[3:]))
        for of in report["grids"] for row in of["corruptions"] for at, severity in enumerate(report["severities"])
    ]  # fmt: skip
