"""Parameter groups, optimizer, learning-rate schedule, and freezing."""

import logging
from collections.abc import Collection
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn

from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.contract import VideoModel

logger = logging.getLogger(__name__)

FUSED = ("cpu", "cuda", "mps", "xpu")  # devices for which torch has fused optimizers


def parameter_groups(model: VideoModel, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group a model's parameters by weight decay and learning-rate factor ``lr_scale``.

    ``lr_scale`` is ``layer_decay`` ** (layers above), as BEiT and MAE do: 1 for the heads, ``layer_decay`` for the
    last block, ``layer_decay`` ** (depth + 1) for the tokenizer of a model without a temporal encoder.
    """
    layers, not_decayed = model.layer_ids(), model.no_weight_decay()
    top = max(layers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layers[name]
        decaying = parameter.ndim > 1 and name not in not_decayed
        group = groups.setdefault(
            (layer if layer_decay != 1.0 else 0, decaying),
            {"params": [], "weight_decay": weight_decay if decaying else 0.0, "lr_scale": layer_decay ** (top - layer)},
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(cfg: CfgNode, model: VideoModel) -> torch.optim.Optimizer:
    """Build the optimizer of SOLVER over the groups of ``parameter_groups``, and log what it trains."""
    solver = cfg.SOLVER
    groups = parameter_groups(model, solver.WEIGHT_DECAY, solver.LAYER_DECAY)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.device.type in FUSED for parameter in parameters) or None  # None: torch chooses
    if solver.FREEZE_EPOCHS and solver.OPTIMIZING_METHOD == "sgd":
        fused = None  # torch's fused SGD takes momenta of all parameters in a group or of none
    rate = solver.BASE_LR * learning_rate_factor(cfg.TRAIN.BATCH_SIZE, solver.BASE_LR_BATCH)
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZING_METHOD == "sgd":
        momentum = solver.MOMENTUM
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=fused)
    else:
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=tuple(solver.BETAS), fused=fused)
    trained, total = sum(parameter.numel() for parameter in parameters), count_parameters(model)
    scaled = f" = {solver.BASE_LR:g} x {cfg.TRAIN.BATCH_SIZE} / {solver.BASE_LR_BATCH}" if solver.BASE_LR_BATCH else ""
    logger.info(
        "optimizer: %s%s, peak learning rate %.3g%s, trains %d of %d parameters (%.2f %%)%s",
        solver.OPTIMIZING_METHOD, ", fused" if fused else "", rate, scaled, trained, total, 100 * trained / total,
        f", the frozen ones from epoch {solver.FREEZE_EPOCHS:g} on" if solver.FREEZE_EPOCHS else "",
    )  # fmt: skip
    return optimizer


def set_trainable(model: nn.Module, names: Collection[str], trains: bool) -> None:
    """Freeze some parameters of a model, or let them train (again).

    The backward pass ends where everything below is frozen, and keeps nothing there. A frozen parameter has no
    gradient: it is in no norm, does not decay, and its moments begin when it thaws.
    """
    for name, parameter in model.named_parameters() if names else ():
        if name in names:
            parameter.requires_grad_(trains)


def learning_rate_factor(batch_size: int, written_for: int) -> float:
    """Return the factor of SOLVER's learning rates (first, peak and last): the linear scaling rule.

    See Goyal et al., arXiv 1706.02677; VideoMAE and MAE write their rates for 256 clips.

    Args:
        batch_size: clips of an optimizer step, over all processes.
        written_for: SOLVER.BASE_LR_BATCH; 0: rates are not scaled.
    """
    return batch_size / written_for if written_for else 1.0


def build_schedule(
    first: float, peak: float, last: float, *, warmup_epochs: float, epochs: float, factor: float = 1.0
) -> ParamScheduler:
    """Return the learning rate as a function of the share of training done (0 to 1): linear warm-up, then cosine."""
    first, peak, last = factor * first, factor * peak, factor * last
    ramp, cosine, warmup = LinearParamScheduler(first, peak), CosineParamScheduler(peak, last), warmup_epochs / epochs
    return CompositeParamScheduler([ramp, cosine], [warmup, 1 - warmup], ["rescaled", "rescaled"])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to ``rate`` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
