"""Parameter groups, optimiser and learning-rate schedule."""

import re
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

# What is neither a norm nor a bias and does not decay either: positions and learned tokens.
NO_DECAY = ("positions", "class_token", "attentive.query", "positional_encoding")


def layer_of(name: str, depth: int, temporal_depth: int = 0) -> int:
    """Return the layer a parameter belongs to, from the input upwards.

    0 is the tokenizer (with the class token), 1 to ``depth`` are the blocks, then come those of a temporal encoder,
    and one more for the heads.
    """
    block = re.search(r"(temporal\.)?\bblocks\.(\d+)\.", name)
    if block:
        return int(block[2]) + 1 + (depth if block[1] else 0)
    if name.startswith("temporal."):
        return depth + 1  # its positions, with its first block
    if re.search(r"tokenizer\.|class_token|patch_embed|cls_positional_encoding", name):
        return 0
    return depth + temporal_depth + 1


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to norms, biases, layer scales, positions and learned tokens."""
    return parameter.ndim > 1 and not any(part in name for part in NO_DECAY)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group a model's parameters by weight decay and learning-rate factor ``lr_scale``.

    ``lr_scale`` is ``layer_decay`` ** (layers above), as BEiT and MAE do.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    temporal = getattr(model, "temporal", None)
    temporal_depth = len(temporal.blocks) if temporal is not None else 0
    top = depth + temporal_depth + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth, temporal_depth)
        decaying = decays(name, parameter)
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
