"""What each family of weights was trained with, which the files do not hold."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

VIDEO = ("ViViT", "video ViT", "VideoMAE")
OWN_VIT, OWN_LOOKUPVIT = "this project's ViT", "this project's LookupViT"
PRE_NORM = re.compile(r"norm_pre|ln_pre|pre_layrnorm")  # CLIP's, before the first block
EXTRA = re.compile(r"(reg|dist|register|storage|distillation)_tokens?$")  # of DINO and DeiT


class Family(NamedTuple):
    """Settings of published weights, where they differ from those of ViT and MAE."""

    activation: str = "gelu"
    norm_eps: float = 1e-6
    pixels: str = ""
    """Empty: ImageNet's mean and deviation."""


_HALF = "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5]"
FAMILIES = {
    "CLIP": Family("quick_gelu", 1e-5, "DATA.MEAN [0.4815,0.4578,0.4082] DATA.STD [0.2686,0.2613,0.2758]"),
    "SigLIP": Family("gelu_tanh", pixels=_HALF),
    "ViViT": Family("gelu_tanh", pixels=_HALF),
}


def kind_of(state: Mapping[str, Tensor], names: Mapping[str, Tensor], left_out: str) -> str:
    """Return whose weights these are; queries, keys and values must not be stacked yet."""
    if any(key.endswith("tokenizer.projection.weight") for key in state):
        return OWN_LOOKUPVIT if "blocks.0.cross_attention.query.weight" in names else OWN_VIT
    kernel = names.get("tokenizer.projection.weight")
    if kernel is not None and kernel.dim() == 5:
        if "class_token" in names:
            return VIDEO[0]
        # VideoMAE's keys have no bias (and its positions are in no file).
        biased = {"blocks.0.attention.k.bias", "blocks.0.attention.qkv.bias"} & names.keys()
        return VIDEO[1] if biased else VIDEO[2]
    if PRE_NORM.search(left_out):
        return "CLIP"
    if "head.probe" in left_out:
        return "SigLIP"
    if "tokenizer.positions" not in names:
        return "ViT without positions (as DINOv3)"
    return "ViT with layer scale (as DINOv2)" if "blocks.0.scale_mlp.gamma" in names else "ViT"
