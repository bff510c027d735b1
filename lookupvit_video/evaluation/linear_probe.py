"""A linear probe of a frozen encoder from features that are computed once, at many learning rates in one pass.

Norm and pooling of a classifier are linear in the norm's scale and shift. So what the frozen part gives is one vector
for each clip and classifier; norm and linear layer train on these as they would through the encoder.
Gradients are written out, and classes come before clips: steps are small, and autograd took longer than the products.
Shape letters: V clips, B those of a step, D width, K classes, R learning rates.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import IGNORED, normalize
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.models.contract import VideoModel


class Cache(NamedTuple):
    """What a frozen encoder makes of the clips of a list that could be read."""

    pooled: list[Tensor]
    """Of each classifier (V, D), before the scale and shift of its norm."""
    labels_V: Tensor
    heads: list[int]
    """Which of ``model.classifiers()`` they are: those that answer."""


class Probe(NamedTuple):
    """Weights of a classifier at each learning rate."""

    scale_RD: Tensor
    shift_RD: Tensor
    weight_RKD: Tensor
    bias_RK: Tensor

    def logits(self, pooled_BD: Tensor) -> Tensor:
        """Return (R, K, B): one product for all rates, as scale and shift move into the linear layer."""
        rates, classes, dim = self.weight_RKD.shape
        weight = (self.weight_RKD * self.scale_RD[:, None]).view(rates * classes, dim)
        bias = self.bias_RK + (self.weight_RKD @ self.shift_RD[..., None]).squeeze(-1)
        return torch.addmm(bias.view(-1, 1), weight, pooled_BD.T).view(rates, classes, -1)

    def gradients(self, pooled_BD: Tensor, target_KB: Tensor) -> tuple[Tensor, ...]:
        """Return those of each rate's own cross-entropy, summed over the clips, by scale, shift, weight and bias."""
        error_RKB = self.logits(pooled_BD).softmax(1).sub_(target_KB)
        outer_RKD = (error_RKB.flatten(0, 1) @ pooled_BD).view_as(self.weight_RKD)
        bias_RK = error_RKB.sum(2)
        return (
            (outer_RKD * self.weight_RKD).sum(1),
            (bias_RK[:, None] @ self.weight_RKD).squeeze(1),
            (outer_RKD * self.scale_RD[:, None]).addcmul_(bias_RK[..., None], self.shift_RD[:, None]),
            bias_RK,
        )


@contextmanager
def _watched(model: VideoModel) -> Iterator[list[list[Tensor]]]:
    """Collect what reaches each classifier's linear layer, without the scale and shift of its norm."""
    kept: list[list[Tensor]] = []
    hooks, norms = [], []
    for head in model.classifiers():
        norm: Any = getattr(head, "norm", None)
        if not isinstance(norm, nn.LayerNorm) or hasattr(head, "attentive"):
            raise UserError("a probe from cached features needs MODEL.POOL average, average_norm or class")
        norms.append((norm, norm.weight.detach().clone(), norm.bias.detach().clone()))
        kept.append([])
        hooks.append(head.get_submodule("linear").register_forward_pre_hook(partial(_keep, kept[-1])))
    try:
        with torch.no_grad():
            for norm, _, _ in norms:
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
        yield kept
    finally:
        with torch.no_grad():
            for norm, weight, bias in norms:
                norm.weight.copy_(weight)
                norm.bias.copy_(bias)
        for hook in hooks:
            hook.remove()


def _keep(kept: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    kept.append(inputs[0].detach().float())


def cache_features(model: VideoModel, batches: Iterable[Batch], mean: Sequence[float], std: Sequence[float]) -> Cache:
    """Run a frozen model once over a list.

    Args:
        batches: of uint8 clips, each clip with the label of its video.
        mean, std: of each channel, on a scale of 0 to 1.

    Raises:
        UserError: a classifier is more than norm, pooling and a linear layer.
        RunFailure: no video could be read.
    """
    labels, device = [], next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad(), _watched(model) as kept:
        for batch in batches:
            good = batch.labels != IGNORED
            labels.append(batch.labels[good])
            if good.any():
                features = model.forward_features(normalize(batch.clips[good].to(device), mean, std))
                model.forward_head(features)
    model.train(was_training)
    heads = [i for i, part in enumerate(kept) if part]
    if not heads:
        raise RunFailure("no video could be read")
    return Cache([torch.cat(kept[i]) for i in heads], torch.cat(labels).to(device), heads)


@torch.no_grad()
def train_probes(
    model: VideoModel, cache: Cache, rates: Sequence[float], *, steps: int, batch: int, seed: int = 0
) -> list[Probe]:
    """Train the classifiers of a model at every learning rate at once, all on the same clips of each step.

    Adam with a constant rate. The loss is the mean over the classifiers, as in training.

    Returns:
        a probe for each classifier; the model stays as it is.
    """
    heads: list[Any] = [model.classifiers()[i] for i in cache.heads]
    first = [[x.float() for x in (head.norm.weight, head.norm.bias, *head.linear.parameters())] for head in heads]
    moved = [[x.new_zeros(len(rates), *x.shape) for x in part] for part in first]  # by Adam at a rate of 1
    optimizer = torch.optim.AdamW([x for part in moved for x in part], 1.0, weight_decay=0.0, fused=True)
    total, device = len(cache.labels_V), cache.labels_V.device
    rate_R = torch.as_tensor(rates, device=device)
    target_KV = F.one_hot(cache.labels_V, heads[0].linear.out_features).T.float().contiguous()
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    clips, target_KB = cache.pooled, target_KV
    for _ in range(steps):
        if batch < total:
            if len(order) < batch:
                order = torch.randperm(total, generator=generator)
            rows, order = order[:batch].to(device), order[batch:]
            clips, target_KB = [x[rows] for x in cache.pooled], target_KV[:, rows]
        share = 1 / (len(heads) * target_KB.shape[1])
        for start, part, x in zip(first, moved, clips, strict=True):
            gradients = _moved_to(start, part, rate_R).gradients(x, target_KB)
            for value, gradient in zip(part, gradients, strict=True):
                value.grad = gradient.mul_(share)
        optimizer.step()
    return [_moved_to(start, part, rate_R) for start, part in zip(first, moved, strict=True)]


def _moved_to(first: Sequence[Tensor], moved: Sequence[Tensor], rate_R: Tensor) -> Probe:
    """Return the weights at each rate: Adam's steps are proportional to it."""
    return Probe(*(torch.addcmul(x, rate_R.view(-1, *[1] * x.ndim), y) for x, y in zip(first, moved, strict=True)))


@torch.no_grad()
def accuracies(probes: Sequence[Probe], cache: Cache) -> list[float]:
    """Return top-1 in percent of the classifiers' mean logits at each learning rate."""
    logits_RKV = sum(probe.logits(x) for probe, x in zip(probes, cache.pooled, strict=True))
    assert isinstance(logits_RKV, Tensor)
    right_R = (logits_RKV.argmax(1) == cache.labels_V).float().mean(1)
    return [100 * value for value in right_R.tolist()]


@torch.no_grad()
def put_into(model: VideoModel, cache: Cache, probes: Sequence[Probe], number: int) -> None:
    """Give a model's classifiers the weights at one of the learning rates."""
    for i, probe in zip(cache.heads, probes, strict=True):
        head: Any = model.classifiers()[i]
        own = (head.norm.weight, head.norm.bias, head.linear.weight, head.linear.bias)
        for parameter, values in zip(own, probe, strict=True):
            parameter.copy_(values[number])
