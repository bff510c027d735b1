"""A linear probe of a frozen encoder from features that are computed once, at many learning rates in one pass.

Norm and pooling of a classifier are linear in the norm's scale and shift. So what the frozen part gives is one vector
for each clip and classifier; norm and linear layer train on these as they would through the encoder.
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

BETAS, EPS = (0.9, 0.999), 1e-8


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
        """Return (R, B, K): one product for all rates, as scale and shift move into the linear layer."""
        rates, classes, dim = self.weight_RKD.shape
        weight = (self.weight_RKD * self.scale_RD[:, None]).view(rates * classes, dim)
        bias = (self.bias_RK + (self.weight_RKD @ self.shift_RD[..., None]).squeeze(-1)).view(-1)
        logits_RBK: Tensor = F.linear(pooled_BD, weight, bias).unflatten(1, (rates, classes)).transpose(0, 1)
        return logits_RBK


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


def train_probes(
    model: VideoModel,
    cache: Cache,
    rates: Sequence[float],
    *,
    steps: int,
    batch: int,
    weight_decay: float = 0.0,
    smoothing: float = 0.0,
    seed: int = 0,
) -> list[Probe]:
    """Train the classifiers of a model at every learning rate at once, all on the same clips of each step.

    AdamW with a constant rate; norm and biases do not decay. The loss is the mean over the classifiers, as in training.

    Returns:
        a probe for each classifier; the model stays as it is.
    """
    count = torch.as_tensor(rates, device=cache.labels_V.device)
    heads: list[Any] = [model.classifiers()[i] for i in cache.heads]
    first = [(head.norm.weight, head.norm.bias, head.linear.weight, head.linear.bias) for head in heads]
    values = [x.detach().float().expand(len(rates), *x.shape).clone().requires_grad_() for part in first for x in part]
    probes = [Probe(*values[4 * i : 4 * i + 4]) for i in range(len(heads))]
    moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in values]
    generator, order, total = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), len(cache.labels_V)
    for step in range(1, steps + 1):
        if len(order) < min(batch, total):
            order = torch.randperm(total, generator=generator)
        rows, order = order[:batch], order[batch:]
        labels = cache.labels_V[rows].expand(len(rates), -1).flatten()
        losses = [
            F.cross_entropy(probe.logits(x[rows]).flatten(0, 1), labels, label_smoothing=smoothing)
            for probe, x in zip(probes, cache.pooled, strict=True)
        ]
        gradients = torch.autograd.grad(torch.stack(losses).mean() * len(rates), values)  # each rate by itself
        with torch.no_grad():
            for x, gradient, (mean, square) in zip(values, gradients, moments, strict=True):
                mean.lerp_(gradient, 1 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                rate = count.view(-1, *[1] * (x.ndim - 1))
                if x.ndim == 3:
                    x.mul_(1 - rate * weight_decay)
                size = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
                x.sub_(rate * (mean / (1 - BETAS[0] ** step)) / size)
    return [Probe(*(x.detach() for x in probe)) for probe in probes]


@torch.no_grad()
def accuracies(probes: Sequence[Probe], cache: Cache) -> list[float]:
    """Return top-1 in percent of the classifiers' mean logits at each learning rate."""
    logits_RVK = sum(probe.logits(x) for probe, x in zip(probes, cache.pooled, strict=True))
    assert isinstance(logits_RVK, Tensor)
    right_R = (logits_RVK.argmax(-1) == cache.labels_V).float().mean(1)
    return [100 * value for value in right_R.tolist()]


@torch.no_grad()
def put_into(model: VideoModel, cache: Cache, probes: Sequence[Probe], number: int) -> None:
    """Give a model's classifiers the weights at one of the learning rates."""
    for i, probe in zip(cache.heads, probes, strict=True):
        head: Any = model.classifiers()[i]
        own = (head.norm.weight, head.norm.bias, head.linear.weight, head.linear.bias)
        for parameter, values in zip(own, probe, strict=True):
            parameter.copy_(values[number])
