"""The loss of masked pre-training. B batch, N lookup tokens, k masked ones, C channels, P values of a tubelet."""

from typing import NamedTuple

import torch
from torch import Tensor

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import is_valid, normalize
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.pretexts.masked import MaskedModel, Prediction
from lookupvit_video.models.tokenizer import TubeletTokenizer, chosen_rows
from lookupvit_video.training.distill import mean_over_clips
from lookupvit_video.training.run import Run


def changes(tokenizer: TubeletTokenizer, clips_BCTHW: Tensor) -> Tensor:
    """Return what is predicted of each tubelet (B, N, P): its pixels minus the first frame's at the same place."""
    return tokenizer.fold(clips_BCTHW - clips_BCTHW[:, :, :1])


def masked_error(predicted: Prediction, changes_BNP: Tensor) -> Tensor:
    """Return the mean squared error (B,) over the masked tubelets of each clip."""
    error_BkP = predicted.changes.float() - chosen_rows(changes_BNP, predicted.masked)
    return error_BkP.square().mean((1, 2))


def masked_loss(run: Run, batch: Batch, budget: Budget | None) -> Tensor:
    """Return the loss of a batch.

    Args:
        budget: None: the model's own.
    """
    cfg, device, model = run.cfg, run.world.device, run.model
    assert isinstance(model, MaskedModel)
    clips = normalize(batch.clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
    with autocast(device, run.dtype):
        predicted = run.state.model(clips, budget)
    error_B = masked_error(predicted, changes(model.encoder.tokenizer, clips))
    return mean_over_clips(error_B, is_valid(batch.labels.to(device, non_blocking=True)))


class Shown(NamedTuple):
    """Clips (B, C, T, H, W): as they are, with the masked tubelets gray, and with these predicted."""

    clips: Tensor
    hidden: Tensor
    predicted: Tensor


def shown_prediction(model: MaskedModel, clips_BCTHW: Tensor) -> Shown:
    """Return what a model predicts of some normalized clips, behind masks that are always the same ones."""
    tokenizer = model.encoder.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predicted = model(clips_BCTHW)
    still_BNP, pixels_BNP = (
        tokenizer.fold(clips) for clips in (clips_BCTHW[:, :, :1].expand_as(clips_BCTHW), clips_BCTHW)
    )
    rows_BkP = predicted.masked[..., None].expand(-1, -1, pixels_BNP.shape[-1])
    guess_BkP = chosen_rows(still_BNP, predicted.masked) + predicted.changes.to(still_BNP)
    parts = pixels_BNP.scatter(1, rows_BkP, 0.0), pixels_BNP.scatter(1, rows_BkP, guess_BkP)
    return Shown(clips_BCTHW, *(tokenizer.unfold(part) for part in parts))
