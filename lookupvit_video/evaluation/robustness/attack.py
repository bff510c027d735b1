"""An adversarial tubelet: the pixels of one token's place, optimised against the model (white box).

A patch attack on video: the place is the tubelet whose pixels have the largest gradient, its pixels are free, the rest
of the clip stays. Projected gradient ascent with signs (Madry et al., arXiv 1706.06083) on the cross-entropy.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import IGNORED, normalize


class Attack(NamedTuple):
    """What an attack reached, in counts of clips."""

    clips: int
    right: int
    """Before the attack."""
    fooled: int
    """Of those, wrong after it."""

    @property
    def success(self) -> float:
        """Share of the right answers that the attack turned, in percent."""
        return 100 * self.fooled / self.right if self.right else float("nan")


def attack_clips(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    tubelet: tuple[int, int, int],
    count: int = 1,
    steps: int = 10,
) -> Attack:
    """Attack each readable clip of some batches.

    Args:
        model: in eval mode; its parameters stay.
        tubelet: frames, height and width of a token.
        count: tubelets that are free.
        steps: of the optimisation, each of a quarter of the range of a pixel at first, falling to a fortieth.
    """
    right = fooled = clips = 0
    for batch in batches:
        labels_B = batch.labels.to(device)
        kept = labels_B != IGNORED
        labels_B = labels_B[kept]
        clean = normalize(batch.clips.to(device)[kept], mean, std)
        attacked = adversarial(model, clean, labels_B, mean=mean, std=std, tubelet=tubelet, count=count,
                               steps=steps)  # fmt: skip
        with torch.inference_mode():
            was_right, is_right = (model(inputs).argmax(-1) == labels_B for inputs in (clean, attacked))
        clips, right = clips + len(labels_B), right + int(was_right.sum())
        fooled += int((was_right & ~is_right).sum())
    return Attack(clips, right, fooled)


def adversarial(
    model: nn.Module,
    inputs_BCTHW: Tensor,
    labels_B: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    tubelet: tuple[int, int, int],
    count: int = 1,
    steps: int = 10,
) -> Tensor:
    """Return normalized clips (B, C, T, H, W) with adversarial pixels in ``count`` tubelets of each."""
    low, high = (
        torch.tensor([(edge - m) / s for m, s in zip(mean, std, strict=True)], device=inputs_BCTHW.device)
        .view(1, -1, 1, 1, 1) for edge in (0.0, 1.0)
    )  # fmt: skip
    free = _most_sensitive(_gradient(model, inputs_BCTHW, labels_B), tubelet, count)
    attacked = torch.where(free, (low + high) / 2, inputs_BCTHW)
    for step in range(steps):
        size = (high - low) / 4 * 0.1 ** (step / max(steps - 1, 1))
        moved = attacked + size * _gradient(model, attacked, labels_B).sign()
        attacked = torch.where(free, torch.minimum(torch.maximum(moved, low), high), inputs_BCTHW)
    return attacked


def _gradient(model: nn.Module, inputs_BCTHW: Tensor, labels_B: Tensor) -> Tensor:
    """Return the gradient (B, C, T, H, W) of the cross-entropy by the pixels."""
    with torch.enable_grad():
        inputs = inputs_BCTHW.detach().requires_grad_()
        loss = F.cross_entropy(model(inputs).float(), labels_B, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
    return gradient


def _most_sensitive(gradient_BCTHW: Tensor, tubelet: tuple[int, int, int], count: int) -> Tensor:
    """Return a mask (B, 1, T, H, W) of the tubelets with the largest gradients."""
    size_B1thw = F.avg_pool3d(gradient_BCTHW.abs().sum(1, keepdim=True), tubelet)
    flat_BN = size_B1thw.flatten(1)
    chosen_BN = torch.zeros_like(flat_BN).scatter_(1, flat_BN.topk(count).indices, 1.0)
    mask = chosen_BN.view_as(size_B1thw)
    for axis, side in enumerate(tubelet, start=2):
        mask = mask.repeat_interleave(side, axis)
    return mask.bool()
