"""The one place where a config becomes a model's plain arguments."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from lookupvit_video.config import token_grid
from lookupvit_video.models.adapters import WIDTHS, add_adapters, is_adapter
from lookupvit_video.models.blocks import BlockOptions, TemporalEncoder, TransformerBlock
from lookupvit_video.models.complexity import Shape, lookupvit_macs, tokens_within, vit_macs
from lookupvit_video.models.lookupvit import VARIANTS, LookupViT
from lookupvit_video.models.vit import ViT

logger = logging.getLogger(__name__)


def model_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments that LookupViT and ViT have in common, from the config."""
    dim, depth, num_heads = VARIANTS[cfg.MODEL.VARIANT]
    return {
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "num_frames": cfg.DATA.NUM_FRAMES,
        "size": cfg.DATA.TRAIN_CROP_SIZE,
        "tubelet": tuple(cfg.MODEL.TUBELET),
        "compressed_grid": tuple(cfg.MODEL.COMPRESSED_GRID),
        "resize": cfg.MODEL.RESIZE,
        "encoder": cfg.MODEL.ENCODER,
        "temporal_depth": cfg.MODEL.TEMPORAL_DEPTH,
        "dim": cfg.MODEL.DIM or dim,
        "depth": cfg.MODEL.DEPTH or depth,
        "num_heads": cfg.MODEL.NUM_HEADS or num_heads,
        "pool": cfg.MODEL.POOL,
        "drop_path": cfg.MODEL.DROP_PATH,
        "dropout": cfg.MODEL.DROPOUT_RATE,
        "options": BlockOptions(
            activation=cfg.MODEL.ACTIVATION,
            norm_eps=cfg.MODEL.NORM_EPS,
            layer_scale=cfg.MODEL.LAYER_SCALE,
            qk_norm=cfg.MODEL.QK_NORM,
            reverse=cfg.MODEL.REVERSE_WEIGHTS,
        ),
    }


def settings_not_in_weights(cfg: CfgNode) -> dict[str, Any]:
    """Return the MODEL settings that change what weights compute but not their shapes, so that loading cannot tell."""
    if cfg.MODEL.ARCH not in ("lookupvit", "vit"):
        return {}
    names = ("POOL", "RESIZE", "REVERSE_WEIGHTS", "ACTIVATION", "NORM_EPS", "ADAPTER_SCALE")
    return {"NUM_HEADS": model_arguments(cfg)["num_heads"], **{name: cfg.MODEL[name] for name in names}}


def compressed_grids(cfg: CfgNode) -> list[tuple[int, ...]]:
    """Return every compressed grid that training or test asks for, the default one first."""
    grids = [cfg.MODEL.COMPRESSED_GRID, *cfg.MODEL.COMPRESSED_GRIDS, *cfg.TEST.GRIDS]
    return list(dict.fromkeys(tuple(grid) for grid in grids))


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that ``MODEL`` and ``DATA`` describe, freshly initialised from torch's current seed.

    What is never trained has ``requires_grad`` off.
    """
    model = _build(cfg)
    if cfg.MODEL.TEMPORAL_INIT == "identity":
        pass_frames_through(model.get_submodule("temporal"))
    if cfg.MODEL.ADAPTER != "none":
        _add_adapters(cfg, model)
    if not cfg.SOLVER.FREEZE_EPOCHS:
        for name, parameter in model.named_parameters():
            if is_frozen(cfg, name):
                parameter.requires_grad_(False)
    return model


def _adapted_stages(cfg: CfgNode) -> list[str]:
    # With FREEZE_SPATIAL the temporal stage trains itself.
    temporal = cfg.MODEL.ENCODER == "factorised" and not cfg.MODEL.FREEZE_SPATIAL
    return ["blocks", "temporal.blocks"] if temporal else ["blocks"]


def _add_adapters(cfg: CfgNode, model: nn.Module) -> None:
    for stage in _adapted_stages(cfg):
        add_adapters(model.get_submodule(stage), cfg.MODEL.ADAPTER, cfg.MODEL.ADAPTER_WIDTH, cfg.MODEL.ADAPTER_SCALE)


def is_frozen(cfg: CfgNode, name: str) -> bool:
    """Whether the config freezes the parameter of that name: for good, or for the first SOLVER.FREEZE_EPOCHS."""
    model = cfg.MODEL
    if name.startswith(("head.", "heads.")) or is_adapter(name) or (model.TRAIN_NORMS and "norm" in name):
        return False
    if model.FREEZE_SPATIAL:
        return name.startswith(("tokenizer.", "blocks."))
    return model.FREEZE_ENCODER or model.ADAPTER != "none"


@torch.no_grad()
def pass_frames_through(temporal: nn.Module) -> None:
    """Have a fresh temporal transformer start as nearly the identity, so that the head sees what the frames are.

    The last layer of each residual branch is zero, and positions are as small as ViViT's are at first (0.02).
    """
    assert isinstance(temporal, TemporalEncoder)
    temporal.positions.mul_(0.02)
    for block in temporal.blocks:
        assert isinstance(block, TransformerBlock)
        for last in (block.attention.projection, block.mlp[2]):
            for parameter in last.parameters():
                parameter.zero_()


def _build(cfg: CfgNode) -> nn.Module:
    if cfg.MODEL.ARCH == "lookupvit":
        return LookupViT(
            **model_arguments(cfg),
            grids=compressed_grids(cfg)[1:],
            heads=tuple(cfg.MODEL.HEADS),
            inference_head=cfg.MODEL.INFERENCE_HEAD,
        )
    if cfg.MODEL.ARCH in ("mvit", "x3d"):
        from lookupvit_video.models.pytorchvideo_models import (  # here, since PyTorchVideo takes a second to import
            X3D,
            MViT,
        )

        arguments = {
            "num_classes": cfg.MODEL.NUM_CLASSES,
            "num_frames": cfg.DATA.NUM_FRAMES,
            "size": cfg.DATA.TRAIN_CROP_SIZE,
            "variant": cfg.MODEL.VARIANT,
            "dropout": cfg.MODEL.DROPOUT_RATE,
        }
        return X3D(**arguments) if cfg.MODEL.ARCH == "x3d" else MViT(**arguments, drop_path=cfg.MODEL.DROP_PATH)
    return ViT(**model_arguments(cfg), **_fewer_tokens(cfg))


def model_shape(cfg: CfgNode) -> Shape:
    """Return what ``complexity`` asks of LookupViT and ViT alike."""
    arguments = model_arguments(cfg)
    names = ("tubelet", "dim", "depth", "num_heads", "num_classes", "encoder", "temporal_depth", "pool")
    kind = cfg.MODEL.ADAPTER
    return Shape(
        grid=token_grid(cfg),
        adapter=kind,
        adapter_width=cfg.MODEL.ADAPTER_WIDTH or WIDTHS.get(kind, 0),
        temporal_adapter=kind != "none" and "temporal.blocks" in _adapted_stages(cfg),
        **{name: arguments[name] for name in names},
    )


def macs_by_part(cfg: CfgNode) -> dict[str, int]:
    """Return the closed-form multiply-accumulates of one view by part; empty for models that can only be measured."""
    if cfg.MODEL.ARCH == "lookupvit":
        return lookupvit_parts(cfg, cfg.MODEL.COMPRESSED_GRID)
    if cfg.MODEL.ARCH == "vit":
        return vit_macs(model_shape(cfg), compressed_grid=cfg.MODEL.COMPRESSED_GRID, **_fewer_tokens(cfg))
    return {}


def lookupvit_parts(cfg: CfgNode, compressed_grid: Sequence[int]) -> dict[str, int]:
    """Return the same for the LookupViT of a config, whatever its MODEL.ARCH, on a compressed grid."""
    return lookupvit_macs(model_shape(cfg), compressed_grid, _read(cfg))


def _read(cfg: CfgNode) -> list[str]:
    return list(cfg.MODEL.HEADS) if cfg.MODEL.INFERENCE_HEAD == "average" else [cfg.MODEL.INFERENCE_HEAD]


def _fewer_tokens(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments that have a ViT work on fewer tokens."""
    return {
        "tokens": cfg.MODEL.TOKENS,
        "keep_tokens": cfg.MODEL.KEEP_TOKENS or _affordable(cfg, "random"),
        "merge_tokens": cfg.MODEL.MERGE_TOKENS or _affordable(cfg, "merge"),
    }


def _affordable(cfg: CfgNode, tokens: str) -> int:
    """Return how many tokens a ViT keeps (or merges per block) to cost what this config's LookupViT costs."""
    if cfg.MODEL.TOKENS != tokens:
        return 0
    shape = replace(model_shape(cfg), adapter="none")  # adapters change no number of tokens
    budget = sum(lookupvit_macs(shape, cfg.MODEL.COMPRESSED_GRID, _read(cfg)).values())
    count = tokens_within(budget, shape, tokens)
    if not count:
        logger.warning("MODEL.TOKENS %s: even the cheapest, taken here, costs more than the LookupViT", tokens)
        return 1 if tokens == "random" else math.prod(shape.grid) // 2
    return count
