"""What the values of a config must satisfy, one by one and together, before any data is read."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fvcore.common.config import CfgNode

from lookupvit_video.config.keys import KEYS, Key
from lookupvit_video.errors import UserError
from lookupvit_video.registry import MODELS

FEWEST_FRAMES = 4  # of a video: of fewer, the median is no background

Section = Any
"""A group of keys, such as ``cfg.MODEL``."""


def validate(cfg: CfgNode) -> None:
    """Check every value, and what must hold across keys.

    Raises:
        UserError: names the key and how to fix it.
    """
    values = {name: get_key(cfg, name) for name in KEYS}
    for name, key in KEYS.items():
        check_value(name, key, values[name])
    if cfg.AUTO.ENABLE:
        return  # what must hold across keys is checked once they are chosen
    for name in KEYS:
        _check_needs(name, values)
    for check in CHECKS:
        for mistake in check(**{section: cfg[section] for section in inspect.signature(check).parameters}):
            raise UserError(mistake)


def get_key(tree: Mapping[str, Any], name: str) -> Any:
    """Return the value of a dotted key."""
    return functools.reduce(lambda node, part: node[part], name.split("."), tree)


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


def _check_needs(name: str, values: Mapping[str, Any]) -> None:
    key, value = KEYS[name], values[name]
    for need in key.needs:
        if value != key.default if need.value is None else value == need.value:
            wrong = [other for other, choices in need.others.items() if values[other] not in choices]
            if wrong:
                wanted = " with ".join(f"{other} {' or '.join(choices)}" for other, choices in need.others.items())
                found = ", ".join(f"{other} is {values[other]}" for other in wrong)
                raise UserError(f"{name} {value} is only for {wanted}; {found}")


def token_grid(MODEL: Section, DATA: Section) -> tuple[int, int, int]:
    """Return the (t, h, w) grid of the lookup tokens that the config's clip and tubelet make; streaming, of a step."""
    t, h, w = MODEL.TUBELET
    times = 1 if MODEL.STREAMING else DATA.NUM_FRAMES // t
    return times, DATA.TRAIN_CROP_SIZE // h, DATA.TRAIN_CROP_SIZE // w


# Across keys: each check takes the sections that it names, and yields its mistakes ----------------------------------


def _data_fits(DATA: Section, MODEL: Section) -> Iterator[str]:
    area, aspect = DATA.TRAIN_JITTER_SCALES_RELATIVE, DATA.TRAIN_JITTER_ASPECT_RELATIVE
    scales, size = DATA.TRAIN_JITTER_SCALES, DATA.TRAIN_CROP_SIZE
    t, *sides = MODEL.TUBELET
    if DATA.NUM_FRAMES % t:
        yield f"DATA.NUM_FRAMES is {DATA.NUM_FRAMES}; it must be divisible by MODEL.TUBELET's {t} frames"
    for side in sides:
        if size % side:
            yield f"DATA.TRAIN_CROP_SIZE is {size}; it must be divisible by MODEL.TUBELET's {side} pixels"
    if DATA.TEST_CROP_SIZE != size:
        yield (
            f"DATA.TEST_CROP_SIZE is {DATA.TEST_CROP_SIZE} and DATA.TRAIN_CROP_SIZE {size}; set both to the same size, "
            "since positions are learned for one size"
        )
    if 0 < DATA.TEST_SHORT_SIDE < DATA.TEST_CROP_SIZE:
        yield (
            f"DATA.TEST_SHORT_SIDE is {DATA.TEST_SHORT_SIDE}; it must be at least DATA.TEST_CROP_SIZE "
            f"{DATA.TEST_CROP_SIZE}, or 0"
        )
    if area and not 0 < area[0] <= area[1] <= 1:
        yield f"DATA.TRAIN_JITTER_SCALES_RELATIVE is {area}; write [low, high] with 0 < low <= high <= 1"
    if aspect[0] > aspect[1]:
        yield f"DATA.TRAIN_JITTER_ASPECT_RELATIVE is {aspect}; write [low, high] with low <= high"
    if not area and not size <= scales[0] <= scales[1]:
        yield f"DATA.TRAIN_JITTER_SCALES is {scales}; write [low, high] with DATA.TRAIN_CROP_SIZE {size} <= low <= high"


def _tokenizer_fits(MODEL: Section) -> Iterator[str]:
    if MODEL.TOKENIZER == "convolutional" and any(side % 4 for side in MODEL.TUBELET[1:]):
        yield f"MODEL.TOKENIZER convolutional: height and width of MODEL.TUBELET {MODEL.TUBELET} must be divisible by 4"


def _model_exists(MODEL: Section) -> Iterator[str]:
    entry, weights, grids = MODELS[MODEL.ARCH], MODEL.COMPRESSED_GRID_WEIGHTS, MODEL.COMPRESSED_GRIDS
    if MODEL.VARIANT not in entry.variants:
        choices = ", ".join(entry.variants)
        yield f"MODEL.VARIANT is {MODEL.VARIANT!r}; for MODEL.ARCH {MODEL.ARCH} choose one of {choices}"
    if MODEL.DIM and MODEL.NUM_HEADS and MODEL.DIM % MODEL.NUM_HEADS:
        yield f"MODEL.DIM is {MODEL.DIM}; it must be divisible by MODEL.NUM_HEADS {MODEL.NUM_HEADS}"
    if entry.compressed_grids and MODEL.INFERENCE_HEAD not in ("average", *MODEL.HEADS):
        yield f"MODEL.INFERENCE_HEAD is {MODEL.INFERENCE_HEAD}, which is not among MODEL.HEADS {MODEL.HEADS}"
    if weights and len(weights) != len(grids):
        yield (
            f"MODEL.COMPRESSED_GRID_WEIGHTS has {len(weights)} weights for the {len(grids)} grids of "
            "MODEL.COMPRESSED_GRIDS; write one for each"
        )


def _grids_fit(MODEL: Section, DATA: Section, TEST: Section) -> Iterator[str]:
    named = [("MODEL.COMPRESSED_GRID", MODEL.COMPRESSED_GRID)]
    if MODELS[MODEL.ARCH].compressed_grids:
        named += [("MODEL.COMPRESSED_GRIDS", grid) for grid in MODEL.COMPRESSED_GRIDS]
        named += [("TEST.GRIDS", grid) for grid in TEST.GRIDS]
    elif MODEL.TOKENS == "all":
        return  # no compressed tokens
    lookup = token_grid(MODEL, DATA)[MODEL.ENCODER == "factorised" :]
    for name, grid in named:
        if len(grid) != len(lookup):
            what = "h x w of each time index" if len(lookup) == 2 else "t x h x w"
            yield f"{name}: {grid} has {len(grid)} numbers; MODEL.ENCODER {MODEL.ENCODER} takes {what}"
        elif any(c > g for c, g in zip(grid, lookup, strict=True)):
            yield (
                f"{name}: {grid} is larger than the grid of lookup tokens {list(lookup)}, which follows from "
                "DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE and MODEL.TUBELET"
            )


def _mixing_fits(MODEL: Section) -> Iterator[str]:
    kernel = MODEL.LOOKUP_CONV
    if len(kernel) not in (0, 3) or any(side % 2 == 0 for side in kernel):
        yield f"MODEL.LOOKUP_CONV is {kernel}; write [t, h, w], each odd, so that a token is in its middle"
    single = "streaming" if MODEL.STREAMING else "factorised" if MODEL.ENCODER == "factorised" else ""
    if single and kernel and kernel[0] > 1:
        yield f"MODEL.LOOKUP_CONV is {kernel}; {single}, blocks see one time index: write 1 for t"
    if kernel and (MODEL.POOL == "class" or MODEL.TOKENS != "all"):
        yield f"MODEL.LOOKUP_CONV is {kernel}; it needs the complete grid: set MODEL.TOKENS all, and another MODEL.POOL"


def _budgets_fit(MODEL: Section) -> Iterator[str]:
    entry = MODELS[MODEL.ARCH]
    if not entry.compressed_grids or MODEL.VARIANT not in entry.variants:
        return
    depth = MODEL.DEPTH or entry.variants[MODEL.VARIANT][1]["depth"]
    if sorted(set(MODEL.EXITS)) != MODEL.EXITS or (MODEL.EXITS and MODEL.EXITS[-1] >= depth):
        yield f"MODEL.EXITS is {MODEL.EXITS}; write rising numbers of blocks below the model's {depth}"
    for name, keep in [("MODEL.KEEP", MODEL.KEEP), *(("MODEL.KEEPS", keep) for keep in MODEL.KEEPS)]:
        if (name == "MODEL.KEEPS" and not keep) or len(keep) > depth:
            yield f"{name}: {keep} has {len(keep)} shares; write 1 to {depth}, the number of blocks"
        elif keep and keep[0] != 1:
            yield f"{name}: {keep} must begin with 1, since the first blocks find out which tokens matter"
        elif sorted(keep, reverse=True) != keep:
            yield f"{name}: {keep} must not rise, since a token that left does not return"


def _frozen_parts_fit(MODEL: Section, SOLVER: Section) -> Iterator[str]:
    epochs, adapted = SOLVER.FREEZE_EPOCHS, MODEL.ADAPTER != "none"
    freezes = MODEL.FREEZE_ENCODER or MODEL.FREEZE_SPATIAL
    if MODEL.FREEZE_ENCODER and MODEL.FREEZE_SPATIAL:
        yield "MODEL.FREEZE_ENCODER and MODEL.FREEZE_SPATIAL: set one only"
    if MODEL.ADAPTER == "connector" and not MODEL.FREEZE_SPATIAL:
        yield "MODEL.ADAPTER connector is between a frozen and a training stage; set MODEL.FREEZE_SPATIAL True"
    if adapted and MODEL.FREEZE_ENCODER:
        yield "MODEL.ADAPTER freezes the encoder itself; set MODEL.FREEZE_ENCODER False"
    if MODEL.TRAIN_NORMS and not (adapted or freezes):
        yield "MODEL.TRAIN_NORMS is only for MODEL.FREEZE_ENCODER, FREEZE_SPATIAL or ADAPTER; else all norms train"
    if epochs and (adapted or not freezes or epochs >= SOLVER.MAX_EPOCH):
        yield (
            f"SOLVER.FREEZE_EPOCHS is {epochs}; it is only for MODEL.FREEZE_ENCODER or FREEZE_SPATIAL, without "
            f"ADAPTER, and must be below SOLVER.MAX_EPOCH {SOLVER.MAX_EPOCH}"
        )
    if (
        MODEL.DROP_PATH and freezes and MODEL.ADAPTER in ("none", "connector") and not epochs
    ):  # it would act on nothing that learns
        name = "FREEZE_SPATIAL" if MODEL.FREEZE_SPATIAL else "FREEZE_ENCODER"
        yield f"MODEL.{name} needs MODEL.DROP_PATH 0: the blocks do not train"


def _training_fits(
    TRAIN: Section, TEST: Section, AUG: Section, MIXUP: Section, SOLVER: Section, MODEL: Section
) -> Iterator[str]:
    parts = TRAIN.ACCUMULATION_STEPS * AUG.NUM_SAMPLE
    if TRAIN.BATCH_SIZE % parts:
        yield (
            f"TRAIN.BATCH_SIZE is {TRAIN.BATCH_SIZE}; it must be divisible by TRAIN.ACCUMULATION_STEPS x "
            f"AUG.NUM_SAMPLE = {parts}"
        )
    if MIXUP.ENABLE and MIXUP.ALPHA == 0 and MIXUP.CUTMIX_ALPHA == 0:
        yield "MIXUP.ENABLE is True with MIXUP.ALPHA and MIXUP.CUTMIX_ALPHA both 0; raise one of them"
    if SOLVER.WARMUP_EPOCHS >= SOLVER.MAX_EPOCH:
        yield f"SOLVER.WARMUP_EPOCHS is {SOLVER.WARMUP_EPOCHS}; it must be below SOLVER.MAX_EPOCH {SOLVER.MAX_EPOCH}"
    if MODEL.TASK == "single_label" and "top1" not in TEST.METRICS:
        yield f"TEST.METRICS is {TEST.METRICS}; add top1, by which runs and grids are compared"
    if TRAIN.BEST_METRIC not in TEST.METRICS:
        yield f"TRAIN.BEST_METRIC is {TRAIN.BEST_METRIC!r}; add it to TEST.METRICS, or choose one of {TEST.METRICS}"


def _others_are_there(DISTILL: Section, MODEL: Section, DIST_TIMEOUT: float, DATA_LOADER: Section) -> Iterator[str]:
    for name in ("FEATURE_WEIGHT", "BLOCK_WEIGHT"):
        if DISTILL[name] and not DISTILL.TEACHER:
            yield f"DISTILL.{name} needs DISTILL.TEACHER"
    if DISTILL.BLOCK_WEIGHT and MODEL.DEPTH == 1 and "lookup" not in MODEL.HEADS:
        yield (
            "DISTILL.BLOCK_WEIGHT needs blocks that change lookup tokens; the last block does not with MODEL.HEADS "
            f"{MODEL.HEADS}, so raise MODEL.DEPTH or add lookup to MODEL.HEADS"
        )
    if DIST_TIMEOUT <= DATA_LOADER.TIMEOUT:
        yield (
            f"DIST_TIMEOUT is {DIST_TIMEOUT:g} and DATA_LOADER.TIMEOUT {DATA_LOADER.TIMEOUT:g}; processes must wait "
            "longer for one another than one of them may wait for data, so raise DIST_TIMEOUT"
        )


_Setting = tuple[str, Any, Any, str]
"""Name, value, what it has to be, and why."""


def _masked_fits(MODEL: Section) -> tuple[_Setting, ...]:
    hidden = "a mask hides tokens already"
    return (
        ("MODEL.LOOKUP_CONV", MODEL.ARCH == "vit" and MODEL.LOOKUP_CONV, [], "a dense ViT's needs all tokens"),
        ("MODEL.TOKENIZER", MODEL.TOKENIZER, "linear", "tokens of shown tubelets would see pixels of hidden ones"),
        ("MODEL.POSITIONS", MODEL.POSITIONS, "learned", "hidden tubelets would leave gaps in the turns"),
        ("MODEL.KEEP", MODEL.KEEP, [], hidden),
        ("MODEL.KEEPS", MODEL.KEEPS, [], hidden),
    )


def _moving_fits(DATA: Section, AUG: Section, MODEL: Section) -> tuple[_Setting, ...]:
    alike = "all clips of a video have to look alike where nothing moves"
    return (
        ("DATA.RANDOM_FLIP", DATA.RANDOM_FLIP, False, alike),
        ("DATA.SINGLE_FRAME", DATA.SINGLE_FRAME, False, "nothing moves in one frame"),
        ("AUG.RAND_AUGMENT_OPS", AUG.RAND_AUGMENT_OPS, 0, alike),
        ("AUG.COLOR_JITTER", AUG.COLOR_JITTER, 0.0, alike),
        ("AUG.HUE_JITTER", AUG.HUE_JITTER, 0.0, alike),
        ("AUG.CORRUPTIONS", AUG.CORRUPTIONS, [], alike),
        ("MODEL.KEEP", MODEL.KEEP, [], "all tokens train"),
        ("MODEL.KEEPS", MODEL.KEEPS, [], "all tokens train"),
    )


def _pretraining_fits(
    TRAIN: Section,
    TEST: Section,
    MODEL: Section,
    MIXUP: Section,
    AUG: Section,
    SOLVER: Section,
    DISTILL: Section,
    DATA: Section,
) -> Iterator[str]:
    if TRAIN.TASK == "classify":
        return
    of_task = _moving_fits(DATA, AUG, MODEL) if TRAIN.TASK == "moving" else _masked_fits(MODEL)
    if TRAIN.TASK == "moving" and DATA.NUM_FRAMES * AUG.NUM_SAMPLE < FEWEST_FRAMES:
        yield (
            f"TRAIN.TASK moving tells what moves from DATA.NUM_FRAMES x AUG.NUM_SAMPLE frames of a video, "
            f"{DATA.NUM_FRAMES} x {AUG.NUM_SAMPLE} now: raise AUG.NUM_SAMPLE, to {FEWEST_FRAMES} frames or more"
        )
    for name, value, wanted, reason in (
        *of_task,
        ("TEST.ENABLE", TEST.ENABLE and TRAIN.ENABLE, False, "there is no classifier yet"),
        ("MIXUP.ENABLE", MIXUP.ENABLE, False, "there are no labels to mix"),
        ("AUG.RE_PROB", AUG.RE_PROB, 0.0, "what is erased cannot be predicted"),
        ("SOLVER.LAYER_DECAY", SOLVER.LAYER_DECAY, 1.0, "all blocks are new"),
        ("DISTILL.TEACHER", DISTILL.TEACHER, "", "a teacher answers with classes"),
        ("MODEL.POOL", MODEL.POOL == "class" and "class", False, "a class token is not trained"),
        ("MODEL.PRE_NORM", MODEL.PRE_NORM, False, "a norm of other weights"),
        ("MODEL.REGISTERS", MODEL.REGISTERS, 0, "registers of other weights"),
        ("MODEL.EXITS", MODEL.EXITS, [], "there are no heads to train"),
        ("MODEL.ADAPTER", MODEL.ADAPTER, "none", "all weights train"),
        ("MODEL.FREEZE_ENCODER", MODEL.FREEZE_ENCODER, False, "all weights train"),
    ):
        if value and value != wanted:
            yield f"TRAIN.TASK is {TRAIN.TASK}; set {name} {wanted!r}: {reason}"


def _streaming_fits(MODEL: Section, DATA: Section, TRAIN: Section, TEST: Section, DISTILL: Section) -> Iterator[str]:
    if MODEL.STREAM_RESET and not MODEL.STREAMING:
        yield "MODEL.STREAM_RESET is only for MODEL.STREAMING True"
    if not MODEL.STREAMING:
        return
    for name, value, wanted, reason in (
        ("MODEL.ARCH", MODEL.ARCH, "lookupvit", "compressed tokens are carried"),
        ("MODEL.ENCODER", MODEL.ENCODER, "joint", "a step sees one time index"),
        ("MODEL.HEADS", MODEL.HEADS, ["compressed"], "the answer comes from what is carried"),
        ("MODEL.INFERENCE_HEAD", MODEL.INFERENCE_HEAD, "compressed", "the answer comes from what is carried"),
        ("DATA.SAMPLING", DATA.SAMPLING, "clip", "steps are equally far apart in all videos"),
        ("TRAIN.TASK", TRAIN.TASK, "classify", "pre-training hides tubelets of a clip"),
        ("TRAIN.FINETUNE", TRAIN.FINETUNE, "none", "the memory trains with all weights"),
        ("MODEL.COMPRESSED_GRIDS", MODEL.COMPRESSED_GRIDS, [], "a state has one grid"),
        ("TEST.GRIDS", TEST.GRIDS, [], "a state has one grid"),
        ("MODEL.EXITS", MODEL.EXITS, [], "the last block makes the state"),
        ("MODEL.KEEP", MODEL.KEEP, [], "a step has few lookup tokens"),
        ("MODEL.KEEPS", MODEL.KEEPS, [], "a step has few lookup tokens"),
        ("MODEL.ADAPTER", MODEL.ADAPTER, "none", "the memory trains with all weights"),
        ("MODEL.FREEZE_ENCODER", MODEL.FREEZE_ENCODER, False, "the memory trains with all weights"),
        ("DISTILL.TEACHER", DISTILL.TEACHER, "", "a teacher answers for a clip, not for each step"),
        ("TEST.ADAPT", TEST.ADAPT, False, "statistics are of the tokens of a clip"),
    ):
        if value != wanted:
            yield f"MODEL.STREAMING True: set {name} {wanted!r}: {reason}; it is {value!r}"


CHECKS: tuple[Callable[..., Iterator[str]], ...] = (
    _data_fits, _tokenizer_fits, _model_exists, _grids_fit, _mixing_fits, _budgets_fit, _frozen_parts_fit,
    _training_fits, _others_are_there, _pretraining_fits, _streaming_fits,
)  # fmt: skip
