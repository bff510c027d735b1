"""The settings with which a dense ViT computes what others' weights computed."""

from lookupvit_video.errors import UserError
from lookupvit_video.models.pretrained.families import FAMILIES, VIDEO, Family
from lookupvit_video.models.pretrained.fitting import image_size
from lookupvit_video.models.pretrained.names import to_vit_names
from lookupvit_video.models.pretrained.report import State
from lookupvit_video.models.tokenizer import STEM_STRIDE

HEADS = {1152: 16, 1280: 16, 1408: 22}
"""Width -> attention heads, where these are not 64 wide: So400m, ViT-H, V-JEPA 2's giant."""


def settings_of(state: State, source: str) -> tuple[str, dict[str, str]]:
    """Return whose weights these are, and the keys that follow from them, as a config has them.

    Args:
        source: its name, for errors.

    Raises:
        UserError: they are not those of a ViT.
    """
    names, kind, _ = to_vit_names(state)
    kernel = names.get("tokenizer.projection.weight")
    if kernel is None:
        raise UserError(f"{source}: not a ViT with known parameter names; see docs/finetuning.md")
    family = FAMILIES.get(kind, Family())
    width, *_, patch = kernel.shape
    has_stem = any(name.startswith("tokenizer.stem.") for name in names)
    patch *= STEM_STRIDE if has_stem else 1
    words = family.preprocessing(image_size(names) or family.size // patch * patch).split()
    settings = {
        "MODEL.DIM": width,
        "MODEL.DEPTH": len({name.split(".")[1] for name in names if name.startswith("blocks.")}),
        "MODEL.NUM_HEADS": HEADS.get(width, max(1, width // 64)),
        "MODEL.TUBELET": f"[{kernel.shape[2] if kernel.dim() == 5 else 1},{patch},{patch}]",
        "MODEL.ACTIVATION": family.activation,
        "MODEL.NORM_EPS": family.norm_eps,
        "MODEL.QK_NORM": "blocks.0.attention.norm_key.weight" in names,
        "MODEL.PRE_NORM": "tokenizer.norm.weight" in names,
        "MODEL.POSITIONS": "rotary" if family.rotary else "learned",
        **({"MODEL.TOKENIZER": "convolutional"} if has_stem else {}),
        **({"MODEL.ROTARY": family.rotary} if family.rotary else {}),
        "MODEL.REGISTERS": sum(names[name].shape[1] for name in ("class_token", "registers") if name in names),
        "DATA.NUM_FRAMES": family.frames,
        **dict(zip(words[::2], words[1::2], strict=True)),
    }
    if kind not in VIDEO:
        settings["MODEL.ENCODER"] = "factorised"  # its blocks see one image at a time
    settings["DATA.TEST_CROP_SIZE"] = settings["DATA.TRAIN_CROP_SIZE"]
    return kind, {key: str(value) for key, value in settings.items()}
