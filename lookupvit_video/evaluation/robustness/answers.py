"""A model's answers to corrupted videos, kept in a folder, so that a stopped measurement resumes.

Shape letters: S severities, G compressed grids, V videos, K classes.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson
import torch

from lookupvit_video.corruptions.table import SEVERITIES, Corruption
from lookupvit_video.data.dataset import Batch, VideoDataset, damage_refused
from lookupvit_video.data.loader import Loader, report_worker_failures
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import CompressedGrid
from lookupvit_video.evaluation.robustness.reading import CorruptedVideos
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.progress import progress

Predict = Callable[[torch.Tensor, CompressedGrid], torch.Tensor]
"""uint8 clips (B, C, T, H, W) and a compressed grid -> probabilities (B, K) on the CPU."""


def _unchanged(frames: np.ndarray, _strength: Any, _rng: np.random.Generator) -> np.ndarray:
    return frames


CLEAN = Corruption("clean", _unchanged, (), ())
"""It has severity 0 only."""


@dataclass(frozen=True)
class Answers:
    """The answers to one corruption of all videos."""

    predictions: np.ndarray
    """(S, G, V) int32: the likeliest class; -1 where a video could not be read."""
    confidences: np.ndarray
    """(S, G, V) float32: its probability."""

    def right(self, labels: np.ndarray) -> np.ndarray:
        """Return which answers (S, G, V) bool are right; a video that could not be read counts as wrong."""
        right: np.ndarray = self.predictions == labels
        return right


def passes_of(corruptions: Sequence[Corruption], severities: Sequence[int]) -> list[tuple[Corruption, Sequence[int]]]:
    """Return the passes over the videos: first as they are, then one for each corruption."""
    return [(CLEAN, (0,)), *((corruption, severities) for corruption in corruptions)]


def open_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Make the folder of the answers, or check that those in it belong to the same measurement.

    Args:
        facts: what the answers depend on: weights, videos, views, grids, severities.

    Raises:
        UserError: it holds answers of another measurement; names what differs.
    """
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, facts)
        return
    try:
        before = simplejson.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {folder}") from None
    now = simplejson.loads(simplejson.dumps(facts))
    if differing := [name for name in now if before.get(name) != now[name]]:
        raise UserError(f"{folder}: holds answers with other {', '.join(differing)}; choose another --out or remove it")


def read_answers(folder: Path, corruption: Corruption) -> Answers | None:
    """Return the answers that are kept for a corruption; None: there are none yet."""
    path = folder / f"{corruption.name}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as kept:
        return Answers(kept["predictions"], kept["confidences"])


class Answering(NamedTuple):
    """A model that answers, and the folder where its answers are kept, see ``open_folder``."""

    predict: Predict
    folder: Path
    grids: Sequence[CompressedGrid] = (None,)


def answer_corrupted(
    models: Sequence[Answering],
    plain: Loader,
    corruptions: Sequence[Corruption],
    *,
    batch_size: int,
    severities: Sequence[int] = SEVERITIES,
    refuse_damaged: bool = False,
) -> list[tuple[int, str]]:
    """Let models answer all videos, as they are and under each corruption; answers that are kept are not repeated.

    A corrupted video is made once for all models.

    Args:
        plain: loader of the test of these videos, see ``eval_loader``; its data set, workers and so on are used.
        batch_size: videos in one step.
        refuse_damaged: whether a damaged video stops the measurement.

    Returns:
        (row, reason) of videos that could not be read in what was answered now.

    Raises:
        RunFailure: a damaged video is refused, or a reading process failed.
    """
    videos = plain.dataset
    assert isinstance(videos, VideoDataset)
    lacking = {
        one.name: [model for model in models if read_answers(model.folder, one) is None]
        for one, _ in passes_of(corruptions, severities)
    }
    passes = [one for one in passes_of(corruptions, severities) if lacking[one[0].name]]
    rows = [list(range(first, min(first + batch_size, len(videos)))) for first in range(0, len(videos), batch_size)]
    keys: list[Any] = [[(number, row) for row in part] for number in range(len(passes)) for part in rows]
    loader = Loader(
        CorruptedVideos(videos, passes), keys, workers=plain.num_workers, prefetch=plain.prefetch_factor or 2,
        timeout=plain.timeout, pin_memory=plain.pin_memory,
    )  # fmt: skip
    bad: dict[int, str] = {}
    with report_worker_failures(), closing(_shown(loader, len(keys) * batch_size, batch_size)) as batches:
        for corruption, chosen in passes:
            answering = lacking[corruption.name]
            found = _answer(answering, islice(batches, len(rows)), len(chosen), len(videos))
            bad |= dict(found.bad)
            if refuse_damaged and found.damaged:
                row, damage = found.damaged[0]
                raise damage_refused(videos.videos[row].path, damage, "DATA.DAMAGED_TEST")
            for model, answers in zip(answering, found.answers, strict=True):
                with atomic_write(model.folder / f"{corruption.name}.npz") as temporary:
                    np.savez(temporary, predictions=answers.predictions, confidences=answers.confidences)
    return sorted(bad.items())


def _shown(loader: Iterable[Batch], total: int, batch_size: int) -> Generator[Batch, None, None]:
    yield from progress(loader, total=total, label="robustness", unit="videos", step=batch_size)


class _Pass(NamedTuple):
    """The answers of each model to one corruption, and (row, reason) of its unread and damaged videos."""

    answers: list[Answers]
    bad: list[tuple[int, str]]
    damaged: list[tuple[int, str]]


def _answer(models: Sequence[Answering], batches: Iterable[Batch], num_severities: int, num_videos: int) -> _Pass:
    shapes = [(num_severities, len(model.grids), num_videos) for model in models]
    found = _Pass([Answers(np.full(shape, -1, np.int32), np.zeros(shape, np.float32)) for shape in shapes], [], [])
    for batch in batches:
        rows = batch.indices.numpy()
        clips_BSV = batch.clips.unflatten(0, (len(rows), num_severities, -1))
        for severity in range(num_severities):
            clips = clips_BSV[:, severity].flatten(0, 1)
            for model, answers in zip(models, found.answers, strict=True):
                for place, grid in enumerate(model.grids):
                    best = model.predict(clips, grid).unflatten(0, (len(rows), -1)).mean(1).max(-1)
                    answers.predictions[severity, place, rows] = best.indices.numpy()
                    answers.confidences[severity, place, rows] = best.values.numpy()
        found.bad.extend(batch.errors)
        found.damaged.extend(batch.damaged)
    unread = [row for row, _ in found.bad]
    for answers in found.answers:
        answers.predictions[..., unread], answers.confidences[..., unread] = -1, 0
    return found
