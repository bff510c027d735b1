"""What the values of a config must satisfy, one by one and together, before any data is read."""

from collections.abc import Iterator
from typing import Any

from fvcore.common.config import CfgNode

from lookupvit_video.config.keys import KEYS, VARIANTS, Key
from lookupvit_video.errors import UserError
from lookupvit_video.registry import MODELS


def validate(cfg: CfgNode) -> None:
    """Check every value, and what must hold across keys.

    Raises:
        UserError: names the key and how to fix it.
    """
    for name, key in KEYS.items():
        check_value(name, key, get_key(cfg, name))
    for name, key in KEYS.items():
        _check_needs(cfg, name, key)
    for check in CHECKS:
        for mistake in check(cfg):
            raise UserError(mistake)


def get_key(cfg: CfgNode, name: str) -> Any:
    """Return the value of a dotted key."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def check_value(name: str, key: Key, value: Any) -> None:
    """Raise UserError where a value breaks a rule of its own key."""
    if key.choices and value not in key.choices:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(str, key.choices))}")
    if key.lengths and len(value) not in key.lengths:
        raise UserError(f"{name} is {value}; it takes {' or '.join(map(str, key.lengths))} values")
    for number in _numbers(value):
        for holds, rule in (  # written so that nan fails
            (key.at_least is None or number >= key.at_least, f"at least {key.at_least}"),
            (key.above is None or number > key.above, f"above {key.above}"),
            (key.at_most is None or number <= key.at_most, f"at most {key.at_most}"),
            (key.below is None or number < key.below, f"below {key.below}"),
        ):
            if not holds:
                raise UserError(f"{name} is {value}; it must be {rule}")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def _check_needs(cfg: CfgNode, name: str, key: Key) -> None:
    value = get_key(cfg, name)
    for need in key.needs:
        if value != key.default if need.value is None else value == need.value:
            wrong = [other for other, choices in need.others.items() if get_key(cfg, other) not in choices]
            if wrong:
                wanted = " with ".join(f"{other} {' or '.join(choices)}" for other, choices in need.others.items())
                found = ", ".join(f"{other} is {get_key(cfg, other)}" for other in wrong)
                raise UserError(f"{name} {value} is only for {wanted}; {found}")


def token_grid(cfg: CfgNode) -> tuple[int, int, int]:
    """Return the (t, h, w) grid of the lookup tokens that the config's clip and tubelet make."""
    t, h, w = cfg.MODEL.TUBELET
    size = cfg.DATA.TRAIN_CROP_SIZE
    return cfg.DATA.NUM_FRAMES // t, size // h, size // w


# Across keys: each check yields its mistakes -------------------------------------------------------------------------


def _clip_fits_tubelet(cfg: CfgNode) -> Iterator[str]:
    t, h, w = cfg.MODEL.TUBELET
    if cfg.DATA.NUM_FRAMES % t:
        yield f"DATA.NUM_FRAMES is {cfg.DATA.NUM_FRAMES}; it must be divisible by MODEL.TUBELET's {t} frames"
    for side in (h, w):
        if cfg.DATA.TRAIN_CROP_SIZE % side:
            yield (
                f"DATA.TRAIN_CROP_SIZE is {cfg.DATA.TRAIN_CROP_SIZE}; it must be divisible by MODEL.TUBELET's "
                f"{side} pixels"
            )


def _test_crop_fits(cfg: CfgNode) -> Iterator[str]:
    data = cfg.DATA
    if data.TEST_CROP_SIZE != data.TRAIN_CROP_SIZE:
        yield (
            f"DATA.TEST_CROP_SIZE is {data.TEST_CROP_SIZE} and DATA.TRAIN_CROP_SIZE {data.TRAIN_CROP_SIZE}; positions "
            "are learned for one size, so set both alike"
        )
    if 0 < data.TEST_SHORT_SIDE < data.TEST_CROP_SIZE:
        yield (
            f"DATA.TEST_SHORT_SIDE is {data.TEST_SHORT_SIDE}; it must be at least DATA.TEST_CROP_SIZE "
            f"{data.TEST_CROP_SIZE}, or 0"
        )


def _random_crop_is_a_range(cfg: CfgNode) -> Iterator[str]:
    area, aspect = cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE, cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE
    scales, size = cfg.DATA.TRAIN_JITTER_SCALES, cfg.DATA.TRAIN_CROP_SIZE
    if area and not 0 < area[0] <= area[1] <= 1:
        yield f"DATA.TRAIN_JITTER_SCALES_RELATIVE is {area}; write [low, high] with 0 < low <= high <= 1"
    if aspect[0] > aspect[1]:
        yield f"DATA.TRAIN_JITTER_ASPECT_RELATIVE is {aspect}; write [low, high] with low <= high"
    if not area and not size <= scales[0] <= scales[1]:
        yield (
            f"DATA.TRAIN_JITTER_SCALES is {scales}; write [low, high] with DATA.TRAIN_CROP_SIZE {size} <= low <= high"
        )


def _variant_exists(cfg: CfgNode) -> Iterator[str]:
    model = cfg.MODEL
    if model.VARIANT not in VARIANTS[model.ARCH]:
        choices = ", ".join(VARIANTS[model.ARCH])
        yield f"MODEL.VARIANT is {model.VARIANT!r}; for MODEL.ARCH {model.ARCH} choose one of {choices}"
    if model.DIM and model.NUM_HEADS and model.DIM % model.NUM_HEADS:
        yield f"MODEL.DIM is {model.DIM}; it must be divisible by MODEL.NUM_HEADS {model.NUM_HEADS}"


def _head_exists(cfg: CfgNode) -> Iterator[str]:
    model = cfg.MODEL
    if MODELS[model.ARCH].compressed_grids and model.INFERENCE_HEAD not in ("average", *model.HEADS):
        yield f"MODEL.INFERENCE_HEAD is {model.INFERENCE_HEAD}, which is not among MODEL.HEADS {model.HEADS}"


def _grids_fit(cfg: CfgNode) -> Iterator[str]:
    model = cfg.MODEL
    if MODELS[model.ARCH].compressed_grids:
        named = [(name, grid) for name in ("MODEL.COMPRESSED_GRIDS", "TEST.GRIDS") for grid in get_key(cfg, name)]
    elif model.TOKENS != "all":
        named = []
    else:
        return  # no compressed tokens
    lookup = token_grid(cfg)[1:] if model.ENCODER == "factorised" else token_grid(cfg)
    for name, grid in [("MODEL.COMPRESSED_GRID", model.COMPRESSED_GRID), *named]:
        if len(grid) != len(lookup):
            what = "h x w of each time index" if len(lookup) == 2 else "t x h x w"
            yield f"{name}: {grid} has {len(grid)} numbers; MODEL.ENCODER {model.ENCODER} takes {what}"
        elif any(c > g for c, g in zip(grid, lookup, strict=True)):
            yield (
                f"{name}: {grid} is larger than the grid of lookup tokens {list(lookup)} that DATA.NUM_FRAMES, "
                "DATA.TRAIN_CROP_SIZE and MODEL.TUBELET make"
            )


def _grid_weights_fit(cfg: CfgNode) -> Iterator[str]:
    weights, grids = cfg.MODEL.COMPRESSED_GRID_WEIGHTS, cfg.MODEL.COMPRESSED_GRIDS
    if weights and len(weights) != len(grids):
        yield (
            f"MODEL.COMPRESSED_GRID_WEIGHTS has {len(weights)} weights for the {len(grids)} grids of "
            "MODEL.COMPRESSED_GRIDS; write one for each"
        )


def _frozen_parts_fit(cfg: CfgNode) -> Iterator[str]:
    model, epochs = cfg.MODEL, cfg.SOLVER.FREEZE_EPOCHS
    adapted, freezes = model.ADAPTER != "none", model.FREEZE_ENCODER or model.FREEZE_SPATIAL
    if model.FREEZE_ENCODER and model.FREEZE_SPATIAL:
        yield "MODEL.FREEZE_ENCODER and MODEL.FREEZE_SPATIAL: set one only"
    if adapted and model.FREEZE_ENCODER:
        yield "MODEL.ADAPTER freezes the encoder itself; set MODEL.FREEZE_ENCODER False"
    if model.TRAIN_NORMS and not (adapted or freezes):
        yield "MODEL.TRAIN_NORMS is only for MODEL.FREEZE_ENCODER, FREEZE_SPATIAL or ADAPTER; else all norms train"
    if epochs and (adapted or not freezes or epochs >= cfg.SOLVER.MAX_EPOCH):
        yield (
            f"SOLVER.FREEZE_EPOCHS is {epochs}; it is only for MODEL.FREEZE_ENCODER or FREEZE_SPATIAL, without "
            f"ADAPTER, and must be below SOLVER.MAX_EPOCH {cfg.SOLVER.MAX_EPOCH}"
        )
    if model.DROP_PATH and freezes and not adapted and not epochs:  # it would act on nothing that learns
        name = "FREEZE_SPATIAL" if model.FREEZE_SPATIAL else "FREEZE_ENCODER"
        yield f"MODEL.{name} needs MODEL.DROP_PATH 0: the blocks do not train"


def _teacher_is_there(cfg: CfgNode) -> Iterator[str]:
    if cfg.DISTILL.FEATURE_WEIGHT and not cfg.DISTILL.TEACHER:
        yield "DISTILL.FEATURE_WEIGHT needs DISTILL.TEACHER"


def _batch_divides(cfg: CfgNode) -> Iterator[str]:
    parts = cfg.TRAIN.ACCUMULATION_STEPS * cfg.AUG.NUM_SAMPLE
    if cfg.TRAIN.BATCH_SIZE % parts:
        yield (
            f"TRAIN.BATCH_SIZE is {cfg.TRAIN.BATCH_SIZE}; it must be divisible by TRAIN.ACCUMULATION_STEPS x "
            f"AUG.NUM_SAMPLE = {parts}"
        )


def _mixing_is_possible(cfg: CfgNode) -> Iterator[str]:
    if cfg.MIXUP.ENABLE and cfg.MIXUP.ALPHA == 0 and cfg.MIXUP.CUTMIX_ALPHA == 0:
        yield "MIXUP.ENABLE is True with MIXUP.ALPHA and MIXUP.CUTMIX_ALPHA both 0; raise one of them"


def _warmup_ends(cfg: CfgNode) -> Iterator[str]:
    warmup, epochs = cfg.SOLVER.WARMUP_EPOCHS, cfg.SOLVER.MAX_EPOCH
    if warmup >= epochs:
        yield f"SOLVER.WARMUP_EPOCHS is {warmup}; it must be below SOLVER.MAX_EPOCH {epochs}"


def _processes_outwait_the_loader(cfg: CfgNode) -> Iterator[str]:
    if cfg.DIST_TIMEOUT <= cfg.DATA_LOADER.TIMEOUT:
        yield (
            f"DIST_TIMEOUT is {cfg.DIST_TIMEOUT:g} and DATA_LOADER.TIMEOUT {cfg.DATA_LOADER.TIMEOUT:g}; processes must "
            "wait longer for one another than one of them may wait for data"
        )


CHECKS = (
    _clip_fits_tubelet,
    _test_crop_fits,
    _random_crop_is_a_range,
    _variant_exists,
    _head_exists,
    _grids_fit,
    _grid_weights_fit,
    _frozen_parts_fit,
    _teacher_is_there,
    _batch_divides,
    _mixing_is_possible,
    _warmup_ends,
    _processes_outwait_the_loader,
)
