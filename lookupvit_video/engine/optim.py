"""Parameter groups, optimiser and learning-rate schedule."""

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


def layer_of(name: str, depth: int) -> int:
    """Return the layer a parameter belongs to: 0 the tokenizer, 1 to ``depth`` the blocks, ``depth`` + 1 the heads."""
    if name.startswith("tokenizer."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group a model's parameters by weight decay and learning-rate factor ``lr_scale``.

    No decay on norms, biases and positions. ``lr_scale`` is ``layer_decay`` ** (layers above), as BEiT and MAE do.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth)
        decays = parameter.ndim > 1 and not name.endswith("positions")
        group = groups.setdefault(
            (layer if layer_decay != 1.0 else 0, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of SOLVER over the groups of ``parameter_groups``."""
    groups = parameter_groups(model, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.LAYER_DECAY)
    if cfg.SOLVER.OPTIMIZING_METHOD == "sgd":
        return torch.optim.SGD(
            groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.MOMENTUM > 0, fused=True
        )
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, betas=tuple(cfg.SOLVER.BETAS), fused=True)


def build_schedule(cfg: CfgNode) -> ParamScheduler:
    """Return the learning rate as a function of the share of training done (0 to 1): linear warm-up, then cosine."""
    cosine = CosineParamScheduler(cfg.SOLVER.BASE_LR, cfg.SOLVER.COSINE_END_LR)
    warmup = cfg.SOLVER.WARMUP_EPOCHS / cfg.SOLVER.MAX_EPOCH
    if warmup == 0:
        return cosine
    ramp = LinearParamScheduler(cfg.SOLVER.WARMUP_START_LR, cfg.SOLVER.BASE_LR)
    return CompositeParamScheduler([ramp, cosine], [warmup, 1 - warmup], ["rescaled", "rescaled"])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group ``rate`` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
