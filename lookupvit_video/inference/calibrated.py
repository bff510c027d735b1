"""Calibrated answers to lists of videos, and what a calibration reaches there."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lookupvit_video.evaluation.calibration import Calibration, calibration_of, fit_temperature, probabilities
from lookupvit_video.evaluation.calibration_report import quality, reject_reached, sets_reached
from lookupvit_video.evaluation.evaluate import CompressedGrid
from lookupvit_video.evaluation.view_logits import ViewLogits
from lookupvit_video.inference.budget import Cascade, cascade_answers

Way = CompressedGrid | Cascade
"""A compressed grid or budget, a cascade over them, or None for a model without."""


class CalibratedAnswers:
    """Calibrated answers by list and budget.

    Args:
        lists: logits by name: "calibration", on which temperatures are fitted, and perhaps "check", "unknown" and
            "check_unknown" (videos of none of the classes).
    """

    def __init__(self, lists: Mapping[str, ViewLogits], multi_label: bool):
        first = lists["calibration"]
        self.lists = lists
        self.temperatures: dict[Way, list[float]] = {
            grid: fit_temperature(table, first.labels) for grid, table in first.logits.items()
        }

        def answers(temperatures: Mapping[Any, list[float]]) -> dict[str, dict[Any, np.ndarray]]:
            return {
                name: {
                    grid: probabilities(table, temperatures.get(grid, []), multi_label=multi_label)
                    for grid, table in found.logits.items()
                }
                for name, found in lists.items()
            }  # fmt: skip

        self.before, self.after = answers({}), answers(self.temperatures)

    def add_cascade(self, cascade: Cascade) -> None:
        """Add the answers of a cascade, as if it were one more grid; its grids have their temperatures already."""
        self.temperatures[cascade] = []
        for tables in (self.before, self.after):
            for name in tables:
                tables[name][cascade] = cascade_answers(cascade, self.after[name])

    def calibration(self, budget: Way, views: str) -> Calibration:
        """Return what the checkpoint keeps for a budget."""
        first, unknown = self.lists["calibration"], self.after.get("unknown")
        return calibration_of(
            self.after["calibration"][budget], first.labels, first.uniform, self.temperatures[budget], views,
            unknown[budget].max(1).tolist() if unknown else (),
        )  # fmt: skip

    def facts(self, budget: Way, calibration: Calibration) -> dict[str, Any]:
        """Return what was found for a budget, and what it reaches on each list of labelled videos."""
        found: dict[str, Any] = {"temperature": [round(value, 4) for value in calibration.temperature]}
        for name in ("calibration", "check"):
            if name not in self.lists:
                continue
            labels, after = self.lists[name].labels, self.after[name][budget]
            found[name] = {
                "videos": len(labels), "before": quality(self.before[name][budget], labels),
                "after": quality(after, labels),
            }  # fmt: skip
            if labels.ndim == 1:
                others = self.after.get("check_unknown" if name == "check" else "unknown", {})
                unknown = others[budget].max(1).tolist() if budget in others else ()
                found[name]["reject"] = reject_reached(calibration, after, labels, unknown)
                if name == "check":
                    found[name]["sets"] = sets_reached(calibration, after, labels, self.lists[name].uniform)
        return found
