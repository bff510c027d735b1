"""Settings that follow from the weights to start from: what they expect to see, and the model that they are of."""

from typing import Any

from lookupvit_video.config import config_from_text, get_key, parse_yaml
from lookupvit_video.models.pretrained.files import flat, own_grid, read_content
from lookupvit_video.models.pretrained.settings import settings_of

_DATA = "NUM_FRAMES SAMPLING SAMPLING_RATE TARGET_FPS TRAIN_CROP_SIZE TEST_CROP_SIZE TEST_SHORT_SIDE MEAN STD".split()
_MODEL = """ARCH VARIANT DIM DEPTH NUM_HEADS TUBELET INPUT TOKENIZER ENCODER TEMPORAL_DEPTH COMPRESSED_GRID RESIZE
    REVERSE_WEIGHTS LOOKUP_CONV HEADS INFERENCE_HEAD POOL POSITIONS ROTARY PRE_NORM QK_NORM LAYER_SCALE ACTIVATION
    NORM_EPS""".split()


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
        if before.TRAIN.TASK == "classify":  # after pre-training, the rates are those from random weights
            factor = before.TRAIN.BATCH_SIZE / (before.SOLVER.BASE_LR_BATCH or before.TRAIN.BATCH_SIZE)
            values["SOLVER.BASE_LR"] = before.SOLVER.BASE_LR * factor / 5
        return {key: (value, "a fifth of that of the weights" if key == "SOLVER.BASE_LR" else "as the weights")
                for key, value in values.items()}  # fmt: skip
    kind, settings = settings_of(flat(content, source), source)
    values = {key: parse_yaml(value, source) for key, value in settings.items()}
    values["MODEL.TUBELET"][0] = max(2, values["MODEL.TUBELET"][0])  # of an image model's too
    values.setdefault("MODEL.TOKENIZER", "linear")
    values |= {"MODEL.INPUT": "frames", "SOLVER.BASE_LR": 6.25e-5, "SOLVER.LAYER_DECAY": 0.75, "MODEL.DROP_PATH": 0.1}
    return {key: (value, f"for {kind}, as in configs/finetune_own.yaml") for key, value in values.items()
            if key not in ("MODEL.REGISTERS", "MODEL.ENCODER")}  # fmt: skip
