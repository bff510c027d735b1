"""The loss of drawing what moves. B batch, V videos, C channels, T frames of a clip, H W pixels, R a picture's side."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import is_valid, normalize
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.pretexts.moving import MovingModel, moving_pictures
from lookupvit_video.training.distill import mean_over_clips
from lookupvit_video.training.run import Run


def targets(clips_BCTHW: Tensor, per_video: int) -> Tensor:
    """Return the picture (B, R, R) of what moves in the video of each clip, from the frames of all its clips.

    Args:
        per_video: how many clips in a row are of one video, and of one box of its frames.
    """
    frames_VCFHW = clips_BCTHW.unflatten(0, (-1, per_video)).transpose(1, 2).flatten(2, 3)
    return moving_pictures(frames_VCFHW).repeat_interleave(per_video, 0)


def moving_loss(run: Run, batch: Batch, budget: Budget | None) -> Tensor:
    """Return the loss of a batch: the squared distance of the pictures, of which those of the targets have norm 1.

    Args:
        budget: None: the model's own.
    """
    cfg, device = run.cfg, run.world.device
    clips = normalize(batch.clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
    with autocast(device, run.dtype):
        drawn_SBRR = run.state.model(clips, **({"budget": budget} if budget else {}))
    error_SBRR = (drawn_SBRR.float() - targets(clips, cfg.AUG.NUM_SAMPLE)).square()
    return mean_over_clips(error_SBRR.sum((2, 3)).mean(0), is_valid(batch.labels.to(device, non_blocking=True)))


def shown_pictures(
    model: MovingModel, clips_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return normalized clips, and such clips that show what the model draws of each from black to white.

    Args:
        mean, std: by which the clips are normalized.
    """
    drawn_B1RR = model(clips_BCTHW).float().mean(0)[:, None]
    large_B1HW = F.interpolate(drawn_B1RR, size=clips_BCTHW.shape[-2:], mode="nearest")
    low, high = (bound.view(-1, 1, 1, 1) for bound in torch.aminmax(large_B1HW.flatten(1), dim=1))
    gray_BCTHW = ((large_B1HW - low) / (high - low + 1e-6))[:, :, None].expand_as(clips_BCTHW)
    mean_C111, std_C111 = (gray_BCTHW.new_tensor(values).view(-1, 1, 1, 1) for values in (mean, std))
    return clips_BCTHW, (gray_BCTHW - mean_C111) / std_C111
