"""Every model that MODEL.ARCH can name, one entry each: where it is, its variants, and what it can do.

Nothing heavy is imported here, so that the config and ``--help`` know the names without torch. docs/models.md explains
how to add a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class ModelEntry:
    """One model. A capability says which settings and functions apply to it."""

    builder: str
    """``module:class``, a ``models.contract.VideoModel``; called with those arguments that its signature names."""
    variants: Mapping[str, tuple[str, Mapping[str, Any]]]
    """MODEL.VARIANT -> name for ``create_model``, and the arguments that make it this variant."""
    closed_form: str = ""
    """``module:function`` of the multiply-accumulates by part; empty: they can only be measured."""
    compressed_grids: bool = False
    """``forward`` takes a grid of compressed tokens, and each block writes back to the lookup tokens."""
    reduces_tokens: bool = False
    """It has a class token and MODEL.TOKENS, where the encoder is joint."""
    factorized: bool = False
    """MODEL.ENCODER factorised."""
    tubelets: bool = False
    """``TubeletTokenizer`` comes first and MODEL.DIM, DEPTH and NUM_HEADS set its size."""
    adapters: bool = False
    """The encoder can be frozen, and its blocks take adapters."""
    drop_path: bool = False
    shards: bool = False
    """FSDP and activation checkpointing work: there is no batch norm."""

    @property
    def model_class(self) -> Any:
        """The class of the model, imported now."""
        return imported(self.builder)


def imported(place: str) -> Any:
    """Import ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


VIT_SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""Variant -> width, blocks and heads of ViT (arXiv 2010.11929, table 1; DeiT, 2012.12877, table 1)."""
_WORDS = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}


def _vit_variants(arch: str) -> dict[str, tuple[str, dict[str, Any]]]:
    names = ("dim", "depth", "num_heads")
    return {
        variant: (f"{arch}_{_WORDS[variant]}_16x2", dict(zip(names, sizes, strict=True)))
        for variant, sizes in VIT_SIZES.items()
    }


_MODELS = "lookupvit_video.models."
_OWN = dict.fromkeys(("factorized", "tubelets", "adapters", "drop_path", "shards"), True)
MODELS: dict[str, ModelEntry] = {
    "lookupvit": ModelEntry(
        f"{_MODELS}lookupvit:LookupViT", _vit_variants("lookupvit"), f"{_MODELS}complexity:lookupvit_macs",
        compressed_grids=True, **_OWN,
    ),
    "vit": ModelEntry(
        f"{_MODELS}vit:ViT", _vit_variants("vit"), f"{_MODELS}complexity:vit_macs", reduces_tokens=True, **_OWN
    ),
    # B is the paper's, for 16x4 and 32x3 alike; Ti is this project's, for small data.
    "mvit": ModelEntry(
        f"{_MODELS}pytorchvideo_models:MViT",
        {"Ti": ("mvit_tiny", {"dim": 32, "depth": 4, "halving": (1, 2), "stride_kv": 4}), "B": ("mvit_base", {})},
        drop_path=True, shards=True,
    ),
    # XS, S and M differ in their clips only: 4, 13 and 16 frames of 160, 160 and 224 pixels.
    "x3d": ModelEntry(
        f"{_MODELS}pytorchvideo_models:X3D",
        {
            variant: (f"x3d_{variant.lower()}", {"depth_factor": factor})
            for variant, factor in (("XS", 2.2), ("S", 2.2), ("M", 2.2), ("L", 5.0))
        },
    ),
}  # fmt: skip


def models_with(capability: str) -> tuple[str, ...]:
    """Return the names of the models that have a capability, a field of ``ModelEntry``."""
    return tuple(name for name, entry in MODELS.items() if getattr(entry, capability))


def list_models() -> list[str]:
    """Return every name that ``create_model`` takes."""
    return [name for entry in MODELS.values() for name, _ in entry.variants.values()]
