"""What each family of weights was trained with, which the files do not hold."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

VIDEO = ("ViViT", "video ViT", "VideoMAE", "V-JEPA 2", "V-JEPA 2.1")
OWN_VIT, OWN_LOOKUPVIT = "this project's ViT", "this project's LookupViT"
EXTRA = re.compile(r"(reg|dist|register|storage|distillation)_tokens?$")  # of DINO and DeiT
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Family(NamedTuple):
    """Settings of published weights, where they differ from those of ViT and MAE."""

    activation: str = "gelu"
    norm_eps: float = 1e-6
    pixels: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    """Mean and deviation of each channel."""
    size: int = 224
    """Pixels of height and width where no table of positions says it."""
    frames: int = 16
    rotary: str = ""
    """MODEL.ROTARY; "": the positions are a table."""

    def preprocessing(self, size: int = 0) -> str:
        """Return mean, deviation and size as settings.

        Args:
            size: what the file says; 0: nothing.
        """
        mean, std = (f"[{','.join(f'{value:g}' for value in part)}]" for part in self.pixels)
        return f"DATA.MEAN {mean} DATA.STD {std} DATA.TRAIN_CROP_SIZE {size or self.size}"


FAMILIES = {
    "CLIP": Family("quick_gelu", 1e-5, ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))),
    "SigLIP": Family("gelu_tanh", pixels=HALF),  # and SigLIP 2 (arXiv 2502.14786), whose towers are the same
    "PE": Family(norm_eps=1e-5, pixels=HALF, rotary="pe"),  # Perception Encoder, arXiv 2504.13181
    "ViViT": Family("gelu_tanh", pixels=HALF, frames=32),
    "DINOv3": Family(norm_eps=1e-5, rotary="dinov3"),  # arXiv 2508.10104
    "V-JEPA 2": Family(size=256, rotary="vjepa2"),  # arXiv 2506.09985
    "V-JEPA 2.1": Family(size=384, rotary="vjepa2_1"),  # facebookresearch/vjepa2, app/vjepa_2_1
}


def kind_of(state: Mapping[str, Tensor], names: Mapping[str, Tensor], left_out: str) -> str:
    """Return whose weights these are; queries, keys and values must not be stacked yet."""
    if any(key.endswith("tokenizer.projection.weight") for key in state):
        return OWN_LOOKUPVIT if "blocks.0.cross_attention.query.weight" in names else OWN_VIT
    kernel = names.get("tokenizer.projection.weight")
    if kernel is not None and kernel.dim() == 5:
        if "class_token" in names:
            return "ViViT"
        # VideoMAE's keys have no bias (and its positions are in no file).
        if not {"blocks.0.attention.k.bias", "blocks.0.attention.qkv.bias"} & names.keys():
            return "VideoMAE"
        if any("norms_block." in key for key in state):
            return "V-JEPA 2.1"
        return "video ViT" if "tokenizer.positions" in names else "V-JEPA 2"
    scaled = "blocks.0.scale_mlp.gamma" in names
    if "tokenizer.norm.weight" in names:
        return "PE" if scaled or "attn_pool." in left_out else "CLIP"
    if "head.probe" in left_out or "attn_pool." in left_out:
        return "SigLIP"
    if "tokenizer.positions" not in names:
        return "DINOv3"
    return "ViT with layer scale (as DINOv2)" if scaled else "ViT"
