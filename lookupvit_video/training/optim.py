"""Parameter groups, optimiser, learning-rate schedule, and what is frozen for a while."""

import logging
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

from lookupvit_video.models.build import model_spec
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.contract import VideoModel

logger = logging.getLogger(__name__)

FUSED = ("cpu", "cuda", "mps", "xpu")  # devices for which torch has fused optimisers


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
            {
                "params": [],
                "weight_decay": weight_decay if decaying else 0.0,
                "lr_scale": layer_decay ** (top - layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(cfg: CfgNode, model: VideoModel) -> torch.optim.Optimizer:
    """Make the optimiser of SOLVER over the groups of ``parameter_groups``, and log what it trains."""
    solver = cfg.SOLVER
    groups = parameter_groups(model, solver.WEIGHT_DECAY, solver.LAYER_DECAY)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.device.type in FUSED for parameter in parameters) or None  # None: torch chooses
    if solver.FREEZE_EPOCHS and solver.OPTIMIZING_METHOD == "sgd":
        fused = None  # torch's fused SGD takes momenta of all parameters in a group or of none
    rate = solver.BASE_LR * learning_rate_factor(cfg)
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


def freeze_or_thaw(cfg: CfgNode, model: nn.Module, epoch: float) -> None:
    """Freeze a model's parameters as long as SOLVER.FREEZE_EPOCHS last, and thaw them after; call it before each step.

    The backward pass ends where everything below is frozen, and nothing is kept for it there. A frozen parameter has no
    gradient: it is in no norm, does not decay, and its moments begin when it thaws.

    Args:
        epoch: of the step about to be made: optimiser steps done / steps of an epoch. Nothing else is remembered.
    """
    if cfg.SOLVER.FREEZE_EPOCHS:
        spec = model_spec(cfg)
        for name, parameter in model.named_parameters():
            if spec.is_frozen(name):
                parameter.requires_grad_(epoch >= cfg.SOLVER.FREEZE_EPOCHS)


def learning_rate_factor(cfg: CfgNode) -> float:
    """Return what SOLVER's learning rates (peak, first and last) are multiplied with: the linear scaling rule.

    TRAIN.BATCH_SIZE / BASE_LR_BATCH, in clips of an optimiser step over all processes (Goyal et al., arXiv 1706.02677;
    VideoMAE and MAE write their rates for 256); 1 where BASE_LR_BATCH is 0.
    """
    return cfg.TRAIN.BATCH_SIZE / cfg.SOLVER.BASE_LR_BATCH if cfg.SOLVER.BASE_LR_BATCH else 1.0


def build_schedule(cfg: CfgNode) -> ParamScheduler:
    """Return the learning rate as a function of the share of training done (0 to 1): linear warm-up, then cosine."""
    factor = learning_rate_factor(cfg)
    start, peak, end = (
        factor * rate for rate in (cfg.SOLVER.WARMUP_START_LR, cfg.SOLVER.BASE_LR, cfg.SOLVER.COSINE_END_LR)
    )
    cosine = CosineParamScheduler(peak, end)
    warmup = cfg.SOLVER.WARMUP_EPOCHS / cfg.SOLVER.MAX_EPOCH
    if warmup == 0:
        return cosine
    ramp = LinearParamScheduler(start, peak)
    return CompositeParamScheduler([ramp, cosine], [warmup, 1 - warmup], ["rescaled", "rescaled"])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group ``rate`` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
