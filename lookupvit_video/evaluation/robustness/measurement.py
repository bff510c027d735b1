"""A measurement of robustness: checkpoints answer corrupted videos, within each of their budgets, and are compared."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lookupvit_video.checkpoints.checkpoint import fingerprint
from lookupvit_video.config import with_settings
from lookupvit_video.corruptions.table import Corruption
from lookupvit_video.data.loader import Loader
from lookupvit_video.data.manifest import Video, load_split
from lookupvit_video.distributed.world import World
from lookupvit_video.evaluation.adaptation import (
    TokenStatistics,
    adapted,
    load_statistics,
    measure_tokens,
    save_statistics,
    statistics_path,
)
from lookupvit_video.evaluation.evaluate import CompressedGrid, eval_loader
from lookupvit_video.evaluation.robustness.answers import (
    CLEAN,
    Answering,
    answer_corrupted,
    open_folder,
    read_answers,
)
from lookupvit_video.evaluation.robustness.attack import Attack, attack_clips
from lookupvit_video.evaluation.robustness.report import Side, rows_of, summaries_of
from lookupvit_video.evaluation.robustness.temperature import tempered
from lookupvit_video.models.budget import as_budget
from lookupvit_video.progress import progress
from lookupvit_video.provenance import measured_with

logger = logging.getLogger(__name__)
STATISTICS_OF = 512  # videos at most: more change the mean by little


class Subject(Protocol):
    """A loaded checkpoint, such as a ``Predictor``."""

    model: nn.Module
    cfg: Any
    classes: list[str]
    source: Path | None
    device: torch.device

    def predict_clips(self, clips_BCTHW: Tensor, grid: CompressedGrid = None) -> Tensor:
        """Return probabilities (B, K) on the CPU of uint8 clips."""

    def inputs(self, clips_BCTHW: Tensor) -> Tensor:
        """Return uint8 clips as the model takes them."""

    def macs_a_view(self, grid: Any = None) -> int:
        """Return the multiply-accumulates of a view."""


class Entry(NamedTuple):
    """A checkpoint that is measured, the budgets that it answers within ([None]: its own), and where answers go."""

    subject: Subject
    budgets: Sequence[CompressedGrid]
    folder: Path


def name_of(budget: CompressedGrid) -> str:
    """Return a budget as text; "": the model's own."""
    return as_budget(budget).name if budget else ""


@dataclass(frozen=True)
class Measurement:
    """What is measured, and how."""

    videos: Sequence[Video]
    corruptions: Sequence[Corruption]
    severities: Sequence[int]
    workers: int
    views: int | None = None
    """Clips in time; None: as the checkpoint's test."""
    crops: int | None = None
    """In space; the same."""
    temperature: float = 1.0
    """Of the gather, see ``tempered``."""
    adapt: bool = False
    """Whether to adapt at test time, see ``adapted``."""
    attack: int = 0
    """Adversarial tubelets a clip; 0: no attack."""
    attack_steps: int = 10

    def report(self, own: Sequence[Entry], reference: Sequence[Entry] = ()) -> dict[str, Any]:
        """Measure checkpoints and return all figures, as JSON holds them.

        Args:
            own: seeds of one model, with the same budgets.
            reference: seeds of another model, answering on their own budget. Without them, each budget is compared with
                the dearest one.
        """
        first, budgets, entries = own[0].subject, own[0].budgets, [*own, *reference]
        with ExitStack() as stack:
            for subject in (entry.subject for entry in entries):
                stack.enter_context(tempered(subject.model, self.temperature))
                stack.enter_context(adapted(subject.model, self._statistics(subject) if self.adapt else None))
            bad = self._answer(entries)
            attacks = [self._attack(entry.subject) for entry in entries] if self.attack else []
        return {
            "checkpoint": [str(entry.subject.source) for entry in own],
            "reference": [str(entry.subject.source) for entry in reference],
            "videos": len(self.videos), "measured_with": measured_with(first.device),
            "precision": first.cfg.TRAIN.PRECISION, "severities": list(self.severities),
            "temperature": self.temperature, "adapt": self.adapt,
            "grids": self._figures(first, budgets, _sides(own, self.corruptions), _sides(reference, self.corruptions)),
            "attacks": [
                {"checkpoint": str(entry.subject.source), "tubelets": self.attack, "steps": self.attack_steps,
                 **found._asdict(), "success": round(found.success, 2)}
                for entry, found in zip(entries, attacks, strict=False)
            ],
            "bad_videos": [{"path": self.videos[row].path, "reason": reason} for row, reason in sorted(bad.items())],
        }  # fmt: skip

    def _figures(
        self, subject: Subject, budgets: Sequence[CompressedGrid], sides: Sequence[Side], others: Sequence[Side]
    ) -> list[dict[str, Any]]:
        labels, macs = np.array([video.label for video in self.videos]), [subject.macs_a_view(one) for one in budgets]
        dearest = int(np.argmax(macs))
        found = []
        for number, (budget, side) in enumerate(zip(budgets, sides, strict=True)):
            reference = others[0] if others else sides[dearest] if number != dearest else None
            found.append({
                "grid": name_of(budget), "gmacs_per_view": float(f"{macs[number] / 1e9:.4g}"),
                "compared_with": "reference" if others else name_of(budgets[dearest]) if reference else "",
                "corruptions": rows_of(side, self.corruptions, labels),
                "summaries": summaries_of(side, self.corruptions, labels, reference),
            })  # fmt: skip
        return found

    def _settings(self, subject: Subject) -> Any:
        test = subject.cfg.TEST
        return with_settings(subject.cfg, {
            "DATA_LOADER.NUM_WORKERS": self.workers,
            "TEST.NUM_ENSEMBLE_VIEWS": self.views or test.NUM_ENSEMBLE_VIEWS,
            "TEST.NUM_SPATIAL_CROPS": self.crops or test.NUM_SPATIAL_CROPS,
        })  # fmt: skip

    def _loader(self, subject: Subject, videos: Sequence[Video], views: int = 1, crops: int = 1) -> Loader:
        return eval_loader(self._settings(subject), videos, World(0, 1, subject.device), views, crops)

    def _answer(self, entries: Sequence[Entry]) -> dict[int, str]:
        """Let every checkpoint answer; return (row, reason) of the videos that could not be read.

        Checkpoints that read videos in the same way answer together, so that each corrupted video is made once.
        """
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            cfg = self._settings(entry.subject)
            open_folder(entry.folder, {
                "weights": fingerprint(entry.subject.model), "severities": list(self.severities),
                "temperature": self.temperature, "adapt": self.adapt,
                "views": f"{cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}",
                "grids": [name_of(budget) for budget in entry.budgets],
                "videos": [[video.path, video.label, video.start, video.end] for video in self.videos],
            })  # fmt: skip
            groups.setdefault(f"{cfg.DATA} {cfg.TEST}", []).append(entry)
        bad: dict[int, str] = {}
        for group in groups.values():
            subject = group[0].subject
            cfg = self._settings(subject)
            bad |= dict(answer_corrupted(
                [Answering(entry.subject.predict_clips, entry.folder, entry.budgets) for entry in group],
                self._loader(subject, self.videos, cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS),
                self.corruptions, batch_size=cfg.TEST.BATCH_SIZE, severities=self.severities,
                refuse_damaged=cfg.DATA.DAMAGED_TEST == "refuse",
            ))  # fmt: skip
        return bad

    def _statistics(self, subject: Subject) -> TokenStatistics:
        """Return what the tokens of clean videos look like; measured once, on the videos of validation."""
        path = statistics_path(str(subject.source))
        if not path.exists():
            videos = load_split(subject.cfg, "val", subject.classes)[:STATISTICS_OF]
            batches = self._loader(subject, videos, crops=subject.cfg.TEST.NUM_SPATIAL_CROPS)
            clips = (subject.inputs(batch.clips) for batch in batches if not batch.errors)
            save_statistics(path, measure_tokens(subject.model, clips), subject.model)
            logger.info("wrote %s, of %d videos", path, len(videos))
        return load_statistics(path, subject.model)

    def _attack(self, subject: Subject) -> Attack:
        """Attack one clip of each video."""
        cfg = subject.cfg
        batches = progress(self._loader(subject, self.videos), total=len(self.videos), label="attack", unit="videos",
                           step=cfg.TEST.BATCH_SIZE)  # fmt: skip
        return attack_clips(subject.model, batches, subject.device, mean=cfg.DATA.MEAN, std=cfg.DATA.STD,
                            tubelet=tuple(cfg.MODEL.TUBELET), count=self.attack, steps=self.attack_steps)  # fmt: skip


def _sides(entries: Sequence[Entry], corruptions: Sequence[Corruption]) -> list[Side]:
    """Return the answers of the seeds of a model within each of their budgets; none of no seeds."""
    kept = [[read_answers(entry.folder, one) for one in (CLEAN, *corruptions)] for entry in entries]
    complete = [[answers for answers in of if answers is not None] for of in kept]
    count = len(entries[0].budgets) if entries else 0
    return [Side([of[0] for of in complete], [of[1:] for of in complete], place) for place in range(count)]
