"""The one place where a config becomes a model's plain arguments."""

from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from lookupvit_video.models.lookupvit import VARIANTS, LookupViT
from lookupvit_video.models.vit import ViT


def model_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments that every architecture takes, from the config."""
    dim, depth, num_heads = VARIANTS[cfg.MODEL.VARIANT]
    return {
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "num_frames": cfg.DATA.NUM_FRAMES,
        "size": cfg.DATA.TRAIN_CROP_SIZE,
        "tubelet": tuple(cfg.MODEL.TUBELET),
        "dim": cfg.MODEL.DIM or dim,
        "depth": cfg.MODEL.DEPTH or depth,
        "num_heads": cfg.MODEL.NUM_HEADS or num_heads,
        "drop_path": cfg.MODEL.DROP_PATH,
        "dropout": cfg.MODEL.DROPOUT_RATE,
    }


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that ``MODEL`` and ``DATA`` describe, freshly initialised from torch's current seed."""
    arguments = model_arguments(cfg)
    if cfg.MODEL.ARCH == "vit":
        return ViT(**arguments)
    return LookupViT(
        **arguments,
        compressed_grid=tuple(cfg.MODEL.COMPRESSED_GRID),
        resize=cfg.MODEL.RESIZE,
        inference_head=cfg.MODEL.INFERENCE_HEAD,
    )
