"""Settings that follow from the weights to start from: what they expect to see, and the model that they are of."""

from typing import Any

from lookupvit_video.config import config_from_text, get_key, parse_yaml
from lookupvit_video.errors import UserError
from lookupvit_video.models.pretrained import to_vit_names
from lookupvit_video.models.pretrained.families import FAMILIES, VIDEO, Family
from lookupvit_video.models.pretrained.files import flat, own_grid, read_content

_DATA = "NUM_FRAMES SAMPLING SAMPLING_RATE TARGET_FPS TRAIN_CROP_SIZE TEST_CROP_SIZE TEST_SHORT_SIDE MEAN STD".split()
_MODEL = """ARCH VARIANT DIM DEPTH NUM_HEADS TUBELET INPUT ENCODER TEMPORAL_DEPTH COMPRESSED_GRID RESIZE REVERSE_WEIGHTS
    HEADS INFERENCE_HEAD POOL QK_NORM LAYER_SCALE ACTIVATION NORM_EPS""".split()


def settings_of_weights(source: str) -> dict[str, tuple[Any, str]]:
    """Return (value, reason) of each key that follows from MODEL.INIT_FROM.

    Raises:
        UserError: the weights cannot be read, or are not those of a ViT.
    """
    content = read_content(source)
    if own_grid(content):
        before = config_from_text(content["config"], f"{source} (config in it)")
        keys = [*(f"DATA.{name}" for name in _DATA), *(f"MODEL.{name}" for name in _MODEL)]
        values = {key: get_key(before, key) for key in keys}
        factor = before.TRAIN.BATCH_SIZE / (before.SOLVER.BASE_LR_BATCH or before.TRAIN.BATCH_SIZE)
        values["SOLVER.BASE_LR"] = before.SOLVER.BASE_LR * factor / 5
        return {key: (value, "a fifth of that of the weights" if key == "SOLVER.BASE_LR" else "as the weights")
                for key, value in values.items()}  # fmt: skip
    names, kind, _ = to_vit_names(flat(content, source))
    kernel = names.get("tokenizer.projection.weight")
    if kernel is None:
        raise UserError(f"{source}: not a ViT with known parameter names; see docs/finetuning.md")
    width, *_, patch = kernel.shape
    family = FAMILIES.get(kind, Family())
    words = family.pixels.split()
    values = {
        "MODEL.DIM": width, "MODEL.NUM_HEADS": max(1, width // 64),
        "MODEL.DEPTH": len({name.split(".")[1] for name in names if name.startswith("blocks.")}),
        "MODEL.TUBELET": [kernel.shape[2] if kernel.dim() == 5 else 2, patch, patch], "MODEL.INPUT": "frames",
        "MODEL.ACTIVATION": family.activation, "MODEL.NORM_EPS": family.norm_eps,
        "DATA.NUM_FRAMES": 32 if kind == VIDEO[0] else 16, "DATA.TRAIN_CROP_SIZE": 224 // patch * patch,
        "SOLVER.BASE_LR": 6.25e-5, "SOLVER.LAYER_DECAY": 0.75, "MODEL.DROP_PATH": 0.1,
        **{key: parse_yaml(value, source) for key, value in zip(words[::2], words[1::2], strict=True)},
    }  # fmt: skip
    return {key: (value, f"for {kind}, as in configs/finetune_own.yaml") for key, value in values.items()}
