"""What a pre-training measures on the validation list: its features, and a picture of what it predicts."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import normalize
from lookupvit_video.distributed.parallel import gathered
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.distributed.world import gather_objects
from lookupvit_video.drawing.reconstruction import plot_reconstruction
from lookupvit_video.models.pretexts.masked import MaskedModel
from lookupvit_video.models.pretexts.moving import MovingModel
from lookupvit_video.models.pretexts.pretext import Pretext
from lookupvit_video.training.pretraining.frozen_features import (
    COLLAPSED,
    effective_rank,
    neighbor_accuracy,
    pooled,
    probe_accuracy,
)
from lookupvit_video.training.pretraining.masked import shown_prediction
from lookupvit_video.training.pretraining.moving import shown_pictures
from lookupvit_video.training.run import Run

logger = logging.getLogger(__name__)
CURVES: dict[str, Any] = {
    "percentages": ["knn", "probe"], "others": ["rank"], "best": ("knn", True), "loss": "mean squared error",
}  # fmt: skip
"""What ``plot_curves`` draws."""


def collect_features(run: Run, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return pooled features (R, D) and labels (R,) of the videos that can be read; all processes call it.

    The averaged weights are used, if any. The main process draws OUTPUT_DIR/reconstruction.png.
    """
    cfg, device, model = run.cfg, run.world.device, run.model
    assert isinstance(model, Pretext)
    own: list[tuple[int, Tensor]] = []
    model.eval()
    with run.state.averaged(), gathered(run.state.model):
        for number, batch in enumerate(batches):
            clips = normalize(batch.clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
            with torch.no_grad(), autocast(device, run.dtype):
                features = pooled(model.encoder.forward_features(clips)).cpu()
                if number == 0 and run.world.is_main:
                    _draw(run, model, clips[:4])
            unread = {row for row, _ in batch.errors}
            own += [pair for pair in zip(batch.indices.tolist(), features, strict=True) if pair[0] not in unread]
    model.train()
    rows = dict(sorted(pair for share in gather_objects(own, run.world) for pair in share))
    labels = torch.tensor([run.val_videos[row].label for row in rows])
    return torch.stack(list(rows.values())), labels


def _draw(run: Run, model: Pretext, clips_BCTHW: Tensor) -> None:
    """Draw what a model predicts of some normalized clips into OUTPUT_DIR/reconstruction.png."""
    shown: dict[str, Tensor] = {}
    mean, std = run.cfg.DATA.MEAN, run.cfg.DATA.STD
    if isinstance(model, MaskedModel):
        shown = dict(zip(("clip", "visible", "predicted"), shown_prediction(model, clips_BCTHW), strict=True))
    elif isinstance(model, MovingModel):
        shown = dict(zip(("clip", "what moves"), shown_pictures(model, clips_BCTHW, mean, std), strict=True))
    plot_reconstruction(shown, mean, std, run.folder / "reconstruction.png")


def report_features(run: Run, epoch: int, features_RD: Tensor, labels_R: Tensor) -> None:
    """Log how well neighbors and a linear probe classify the features, and their rank; warn where they collapsed."""
    rank, step = effective_rank(features_RD), run.state.step
    knn, probe = (measure(features_RD, labels_R) for measure in (neighbor_accuracy, probe_accuracy))
    run.journal.write(
        "val", step, epoch=epoch, knn=round(knn, 3), probe=round(probe, 3), rank=round(rank, 3), videos=len(labels_R)
    )
    logger.info(
        "epoch %d features of %d videos: nearest neighbors %.2f %%, linear probe %.2f %%, effective rank %.1f of %d",
        epoch, len(labels_R), knn, probe, rank, min(features_RD.shape),
    )  # fmt: skip
    if rank < COLLAPSED and run.world.is_main:
        logger.warning(
            "the features have collapsed: their effective rank is %.2f, so all videos look nearly alike to the model; "
            "lower SOLVER.BASE_LR, or stop this run", rank,
        )  # fmt: skip
