"""Pre-training that asks what moves: a model draws the moving part of a clip, small, centered and without the rest.

The idea that what moves together is an object, so that motion labels still pictures: Pathak et al., Learning Features
by Watching Objects Move (CVPR 2017, arXiv 1612.06370), who predict its mask from one frame. Here a few numbers have to
say what it looks like, wherever it is and however large: that is this project's.
Shape letters: B batch, V videos, C channels, F frames of a video, T of a clip, H W pixels, D width, R a picture's side.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.models.blocks import init_linear
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.lookupvit import HEADS, LookupViT
from lookupvit_video.models.pretexts.pretext import Pretext, mean_tokens
from lookupvit_video.models.vit import ViT

SIDE = 12  # R: enough for a pen stroke, too little for its noise
HIDDEN = 256
_MARGIN = 2.1  # deviations of the moving pixels from their center to the picture's border; those of a square: 1.7
_SMALLEST, _LARGEST = 0.05, 0.6  # deviation, of half the frame's side


@torch.no_grad()
def moving_pictures(frames_VCFHW: Tensor) -> Tensor:
    """Return a picture (V, R, R) of what moves in each video, with a norm of 1; zeros where nothing moves.

    What is seen most of the time, each pixel's median, is the background, so the camera has to stand still. Changes
    from it below one standard deviation are noise. The half of the frames with the largest changes is cut out around
    their center, as wide as they spread, and averaged.
    """
    videos, _, frames, height, width = frames_VCFHW.shape
    change_VFHW = (frames_VCFHW - frames_VCFHW.median(2, keepdim=True).values).abs().mean(1)
    change_VFHW = (change_VFHW - change_VFHW.flatten(1).std(1)[:, None, None, None]).clamp(min=0)
    best_Vf = change_VFHW.sum((2, 3)).topk(max(1, frames // 2), 1).indices
    change_nHW = change_VFHW.gather(1, best_Vf[:, :, None, None].expand(-1, -1, height, width)).flatten(0, 1)
    y_H1, x_W = _centers(height, change_nHW)[:, None], _centers(width, change_nHW)
    mass_n = change_nHW.sum((1, 2)).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        return (change_nHW * values).sum((1, 2)) / mass_n

    x_n, y_n = mean(x_W), mean(y_H1)
    distance_nHW = (x_W - x_n[:, None, None]).square() + (y_H1 - y_n[:, None, None]).square()
    reach_n = _MARGIN * (mean(distance_nHW) / 2).sqrt().clamp(_SMALLEST, _LARGEST)
    zero_n = torch.zeros_like(x_n)
    box_n23 = torch.stack([reach_n, zero_n, x_n, zero_n, reach_n, y_n], 1).view(-1, 2, 3)
    grid = F.affine_grid(box_n23, [len(x_n), 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    fine = F.avg_pool2d(F.grid_sample(change_nHW[:, None], grid, align_corners=False), 2)
    pictures_VP = fine.view(videos, -1, SIDE * SIDE).mean(1)
    return F.normalize(pictures_VP, dim=1).view(-1, SIDE, SIDE)


def _centers(pixels: int, like: Tensor) -> Tensor:
    """Return where the pixels of a side of length 2 are, from its middle."""
    return (torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5) * 2 / pixels - 1


class MovingModel(Pretext):
    """A model that draws what moves, from the mean token of each token set that a head will read."""

    def __init__(self, encoder: LookupViT | ViT):
        super().__init__(encoder)
        dim, sets = encoder.tokenizer.projection.out_channels, len(_read(encoder))
        self.decoder = nn.ModuleList(_drawing(dim) for _ in range(sets))

    def forward(self, clip_BCTHW: Tensor, budget: Budget | Sequence[int] | None = None) -> Tensor:  # type: ignore[override]
        """Return the pictures (sets, B, R, R) that each token set makes of a normalized clip (B, C, T, H, W).

        Args:
            budget: of a LookupViT.
        """
        encoder, read = self.encoder, _read(self.encoder)
        if isinstance(encoder, LookupViT):
            features = encoder.forward_features(clip_BCTHW, budget)
        else:
            features = encoder.forward_features(clip_BCTHW)
        means = mean_tokens(features)
        chosen = means if len(read) == len(means) else [means[HEADS.index(read[0])]]
        drawn_SBP = torch.stack([draw(mean_BD) for draw, mean_BD in zip(self.decoder, chosen, strict=True)])
        return drawn_SBP.view(*drawn_SBP.shape[:2], SIDE, SIDE)


def _drawing(dim: int) -> nn.Module:
    last = nn.Linear(HIDDEN, SIDE * SIDE)
    layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, HIDDEN), nn.GELU(), last)
    layers.apply(init_linear)
    nn.init.zeros_(last.weight)  # the first picture: nothing
    return layers


def _read(encoder: LookupViT | ViT) -> tuple[str, ...]:
    """Return which token sets have a head, in the order of ``mean_tokens``."""
    return tuple(name for name in HEADS if name in encoder.heads) if isinstance(encoder, LookupViT) else ("lookup",)


def moving_macs(parts: Mapping[str, int], dim: int, sets: int) -> dict[str, int]:
    """MACs of ``MovingModel`` for one clip, by part.

    Args:
        parts: of the model that is trained, see ``ModelSpec.macs``; its heads are not computed.
        dim: D.
        sets: how many token sets draw.
    """
    decoder = sets * HIDDEN * (dim + SIDE * SIDE)
    return {name: count for name, count in parts.items() if name != "heads"} | {"decoder": decoder}
