"""Every setting of a run: its default and the reason for it, strict loading, and the checks across keys.

Keys that mean what they mean in SlowFast have SlowFast's names. Reading order: defaults, ``load_config``, ``validate``.
"""

import difflib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from lookupvit_video.arguments import expand_user, setting_pairs
from lookupvit_video.text import decode

logger = logging.getLogger(__name__)

_C = CfgNode()
_C.OUTPUT_DIR = "runs/default"  # everything that a run writes goes below this folder
_C.RNG_SEED = 0  # weights, sample order, clip times, augmentation and dropout all follow from it
_C.DIST_TIMEOUT = 1800.0  # seconds that processes wait for one another; a longer pause ends the run and names who hangs
_C.LOG_PERIOD = 10  # optimiser steps between two log lines (the device is synchronised only then)

_C.TRAIN = CfgNode()
_C.TRAIN.ENABLE = True  # run the training loop
_C.TRAIN.BATCH_SIZE = 64  # clips per optimiser step, over all processes and accumulation steps together
_C.TRAIN.ACCUMULATION_STEPS = 1  # split the batch of each process in so many parts when memory is short
_C.TRAIN.EVAL_PERIOD = 1  # epochs between two validations (the last epoch always has one); 0: never validate
_C.TRAIN.CHECKPOINT_PERIOD = 1  # epochs between two checkpoints (the last epoch always has one)
_C.TRAIN.CHECKPOINT_STEPS = 0  # optimiser steps between two more, for long epochs; 0: none
_C.TRAIN.CHECKPOINT_MINUTES = 30.0  # minutes after the last one at which there is another; 0: none
_C.TRAIN.KEEP_CHECKPOINTS = 2  # how many checkpoints stay on disk; two, so that one may be damaged
_C.TRAIN.AUTO_RESUME = True  # go on from the newest checkpoint in OUTPUT_DIR
_C.TRAIN.PRECISION = "auto"  # auto: bfloat16 on GPUs that have it, else float32; or one of them, or float16, by name
_C.TRAIN.MAX_BAD_STEPS = 0  # steps with a loss or gradient of nan or infinity that are left out; 0: the first one stops
_C.TRAIN.PARALLEL = "ddp"  # ddp: the whole model in each process; fsdp: weights and optimiser spread over them (FSDP2)
_C.TRAIN.CPU_OFFLOAD = False  # fsdp: what is spread waits in RAM; slow, for models that the GPUs cannot hold together
_C.TRAIN.ACTIVATION_CHECKPOINTING = "none"  # compute again in backward: write_back (LookupViT), selective or full
_C.TRAIN.COMPILE = False  # torch.compile each block: faster steps for minutes of compilation at the start

_C.TENSORBOARD = CfgNode()
_C.TENSORBOARD.ENABLE = False  # write OUTPUT_DIR/tensorboard beside log.jsonl, which is always there

_C.TEST = CfgNode()
_C.TEST.ENABLE = True  # test after training, or alone when TRAIN.ENABLE is False
_C.TEST.BATCH_SIZE = 4  # videos (each with all its views) per step of a process, in validation and test
_C.TEST.CHECKPOINT_FILE_PATH = ""  # what to test; empty: OUTPUT_DIR/model.pt, which training writes
_C.TEST.NUM_ENSEMBLE_VIEWS = 1  # clips per video in time, their softmax averaged
_C.TEST.NUM_SPATIAL_CROPS = 1  # crops per clip: 1 the centre, 3 spread over the longer side
_C.TEST.GRIDS = []  # compressed grids to test beside MODEL.COMPRESSED_GRID, in one pass over the videos

_C.DATA = CfgNode()
_C.DATA.PATH_TO_DATA_DIR = ""  # folder of the lists below
_C.DATA.PATH_PREFIX = ""  # put before each relative path in a list; empty: the list's own folder
_C.DATA.TRAIN_LIST = "train.csv"  # a list, or a folder of class folders, below PATH_TO_DATA_DIR
_C.DATA.VAL_LIST = "val.csv"  # read after each EVAL_PERIOD epochs, one centre view
_C.DATA.TEST_LIST = "test.csv"  # read by the multi-view test
_C.DATA.CLASS_LIST = "classes.txt"  # one class name a line; line number = label
_C.DATA.SKIP_LIST = ""  # bad_videos.csv of tools/check_dataset.py or of a run: left out of TRAIN_LIST; empty: none
_C.DATA.DECODING_BACKEND = "pyav"  # pyav, decord or torchcodec; all return exact frames
_C.DATA.DECODE_TIMEOUT = 60.0  # seconds that opening a video, or decoding its clips, may take; 0: no limit
_C.DATA.INDEX_CACHE = ""  # folder for time stamps and key frames of each video, for long ones; empty: none
_C.DATA.NUM_FRAMES = 16  # frames of a clip, T
_C.DATA.SAMPLING_RATE = 4  # frames of a TARGET_FPS video from one frame of the clip to the next
_C.DATA.TARGET_FPS = 30.0  # the rate that SAMPLING_RATE counts in, whatever the rate of the file
_C.DATA.SAMPLING = "clip"  # clip: SAMPLING_RATE apart; segments: one frame from each of T equal parts of the video
_C.DATA.SINGLE_FRAME = False  # control: repeat one frame T times, so that only appearance is left to learn from
_C.DATA.TRAIN_JITTER_SCALES_RELATIVE = [0.5, 1.0]  # area of the random crop over the frame's; [] : no random crop size
_C.DATA.TRAIN_JITTER_ASPECT_RELATIVE = [0.75, 1.3333]  # aspect ratio of that crop
_C.DATA.TRAIN_JITTER_SCALES = [256, 320]  # short side in pixels before a fixed-size crop, when the line above is []
_C.DATA.TRAIN_CROP_SIZE = 224  # height and width of a clip in training
_C.DATA.TEST_CROP_SIZE = 224  # the same in validation and test
_C.DATA.TEST_SHORT_SIDE = 0  # short side in pixels before the test crops; 0: TEST_CROP_SIZE
_C.DATA.RANDOM_FLIP = True  # mirror half of the training clips; class names decide: "left" becomes "right", or none
_C.DATA.MEAN = [0.485, 0.456, 0.406]  # ImageNet's, as most published weights expect
_C.DATA.STD = [0.229, 0.224, 0.225]  # likewise
_C.DATA.CACHE_VIDEOS = False  # keep every decoded video in memory; for small videos, read in one process
_C.DATA.DAMAGED_TRAIN = "skip"  # a video with damage that the decoder notices: use, skip as unreadable, or refuse: stop
_C.DATA.DAMAGED_TEST = "use"  # likewise in validation and test, where a video that is skipped counts as wrong
_C.DATA.MAX_BAD_FRACTION = 0.01  # training stops when more videos cannot be read; see manifest.allowed_bad; 0: at one

_C.DATA_LOADER = CfgNode()
_C.DATA_LOADER.NUM_WORKERS = 8  # decoding processes per training process; 0: decode in the training process
_C.DATA_LOADER.PREFETCH_FACTOR = 2  # batches that each worker makes ahead
_C.DATA_LOADER.TIMEOUT = 600.0  # seconds without a batch from any worker after which the run stops; 0: never
_C.DATA_LOADER.PIN_MEMORY = True  # faster copies to a GPU; nothing changes on a CPU

_C.MODEL = CfgNode()
_C.MODEL.ARCH = "lookupvit"  # lookupvit; vit: dense, on the same tokens; mvit, x3d: PyTorchVideo's
_C.MODEL.NUM_CLASSES = 400  # K; must be the length of the class list
_C.MODEL.VARIANT = "B"  # Ti, S, B or L: width, depth and heads; mvit: Ti or B; x3d: XS, S, M or L
_C.MODEL.DIM = 0  # width D; 0: the variant's
_C.MODEL.DEPTH = 0  # blocks; 0: the variant's
_C.MODEL.NUM_HEADS = 0  # attention heads; 0: the variant's
_C.MODEL.TUBELET = [2, 16, 16]  # frames x height x width of one lookup token
_C.MODEL.ENCODER = "joint"  # joint: tokens of all times together; factorised: per time index, then over time (ViViT)
_C.MODEL.TEMPORAL_DEPTH = 4  # factorised: blocks of the temporal transformer
_C.MODEL.COMPRESSED_GRID = [4, 7, 7]  # t x h x w grid of the compressed tokens; factorised: h x w
_C.MODEL.COMPRESSED_GRIDS = []  # multi-resolution training: one of these grids is drawn for each step
_C.MODEL.COMPRESSED_GRID_WEIGHTS = []  # how often each of them; []: alike
_C.MODEL.RESIZE = "triangle"  # triangle: antialiased, as JAX resizes; trilinear: plain interpolation
_C.MODEL.REVERSE_WEIGHTS = "softmax"  # infusion: A transposed; scaled: times N/M; softmax: over compressed tokens
_C.MODEL.HEADS = ["compressed", "lookup"]  # token sets with a classifier; the loss is the mean over them
_C.MODEL.INFERENCE_HEAD = "average"  # average of the heads' logits, or one head alone
_C.MODEL.POOL = "average"  # norm, then mean; average_norm: mean, then norm; class: a token (vit); attentive: a query
_C.MODEL.TOKENS = "all"  # vit: all; resize: to COMPRESSED_GRID; random: a random part; merge: ToMe
_C.MODEL.KEEP_TOKENS = 0  # TOKENS random: how many stay; 0: as many as cost what COMPRESSED_GRID's LookupViT costs
_C.MODEL.MERGE_TOKENS = 0  # TOKENS merge: how many each block merges away; 0: to the same cost
_C.MODEL.QK_NORM = False  # layer norm on queries and keys, per head
_C.MODEL.LAYER_SCALE = 0.0  # initial value of a learned factor on each residual branch; 0: none
_C.MODEL.ACTIVATION = "gelu"  # of the MLPs; gelu_tanh or quick_gelu where published weights were trained with it
_C.MODEL.NORM_EPS = 1e-6  # of the layer norms, as ViT and MAE
_C.MODEL.DROP_PATH = 0.0  # stochastic depth of the last block, rising linearly from 0 at the first
_C.MODEL.DROPOUT_RATE = 0.0  # dropout before each classifier
_C.MODEL.INIT_FROM = ""  # weights to start from: this project's, timm's, VideoMAE's, ...; a file or a Hub id
_C.MODEL.INIT_INFLATE = "central"  # image kernels in video: into the central frame, or the average over the frames
_C.MODEL.FREEZE_ENCODER = False  # train the heads only: a linear probe, or with POOL attentive an attentive one
_C.MODEL.FREEZE_SPATIAL = False  # factorised: train the temporal transformer and the heads only
_C.MODEL.TEMPORAL_INIT = "random"  # factorised: random, or identity: frames reach the head as the spatial stage ends
_C.MODEL.ADAPTER = "none"  # adaptformer or lora: train small additions to the frozen blocks, and the heads
_C.MODEL.ADAPTER_WIDTH = 0  # their inner width, LoRA's rank; 0: 64 for adaptformer, 8 for lora
_C.MODEL.ADAPTER_SCALE = 0.0  # factor on what they add, LoRA's alpha / rank; 0: 0.1 for adaptformer, 1 for lora
_C.MODEL.TRAIN_NORMS = False  # train the norms in what is frozen all the same

_C.DISTILL = CfgNode()
_C.DISTILL.TEACHER = ""  # a checkpoint of this project whose answers (and tokens) are learned from; empty: off
_C.DISTILL.WEIGHT = 0.5  # share of the teacher's soft targets in the classification loss
_C.DISTILL.TEMPERATURE = 1.0  # of both softmaxes
_C.DISTILL.FEATURE_WEIGHT = 0.0  # weight of the distance from the compressed tokens to the teacher's resized tokens

_C.AUG = CfgNode()
_C.AUG.NUM_SAMPLE = 1  # repeated augmentation: clips drawn from a video each time it is opened
_C.AUG.RAND_AUGMENT_OPS = 0  # RandAugment: operations per clip, the same for all its frames; 0: off
_C.AUG.RAND_AUGMENT_MAGNITUDE = 7.0  # on a scale of 0 to 10
_C.AUG.RAND_AUGMENT_STD = 0.5  # spread of the magnitude from clip to clip
_C.AUG.COLOR_JITTER = 0.0  # strength of brightness, contrast and saturation jitter; 0: off
_C.AUG.HUE_JITTER = 0.0  # largest turn of the hue, of a full one: at most 0.5; 0: off
_C.AUG.COLOR_JITTER_PROB = 1.0  # chance per clip of the two lines above; ViViT: 0.4, 0.2 and 0.8
_C.AUG.RE_PROB = 0.0  # random erasing: chance per clip

_C.MIXUP = CfgNode()
_C.MIXUP.ENABLE = False  # mix clips and labels within a batch
_C.MIXUP.ALPHA = 0.8  # mixup's Beta parameter; 0: cutmix only
_C.MIXUP.CUTMIX_ALPHA = 1.0  # cutmix's Beta parameter; 0: mixup only
_C.MIXUP.PROB = 1.0  # chance that a batch is mixed at all
_C.MIXUP.SWITCH_PROB = 0.5  # chance of cutmix where both are on

_C.SOLVER = CfgNode()
_C.SOLVER.OPTIMIZING_METHOD = "adamw"  # adamw or sgd (with Nesterov momentum)
_C.SOLVER.BASE_LR = 5e-4  # peak learning rate; nothing scales it but the next line
_C.SOLVER.BASE_LR_BATCH = 0  # batch size that the learning rates are written for: x BATCH_SIZE / it; 0: as they stand
_C.SOLVER.COSINE_END_LR = 1e-6  # learning rate at the last step
_C.SOLVER.WARMUP_START_LR = 1e-6  # learning rate at the first step
_C.SOLVER.WARMUP_EPOCHS = 5.0  # linear warm-up, counted per step
_C.SOLVER.MAX_EPOCH = 30  # passes over the training list
_C.SOLVER.WEIGHT_DECAY = 0.05  # none on norms, biases and positions
_C.SOLVER.BETAS = [0.9, 0.999]  # AdamW's
_C.SOLVER.MOMENTUM = 0.9  # SGD's
_C.SOLVER.LAYER_DECAY = 1.0  # learning rate factor from each block to the one below; 1: off
_C.SOLVER.FREEZE_EPOCHS = 0.0  # FREEZE_ENCODER or FREEZE_SPATIAL for so many epochs only; 0: for good
_C.SOLVER.CLIP_GRAD_L2NORM = 1.0  # largest norm of the gradient; 0: no clipping
_C.SOLVER.EMA_DECAY = 0.0  # average the weights over the steps; validation, test and model.pt have the average; 0: off
_C.SOLVER.LABEL_SMOOTHING = 0.0  # share of the target spread evenly over all classes

CHOICES = {
    "TRAIN.PRECISION": ("auto", "float32", "bfloat16", "float16"),
    "TRAIN.PARALLEL": ("ddp", "fsdp"),
    "TRAIN.ACTIVATION_CHECKPOINTING": ("none", "write_back", "selective", "full"),
    "TEST.NUM_SPATIAL_CROPS": (1, 3),
    "DATA.DECODING_BACKEND": ("pyav", "decord", "torchcodec"),
    "DATA.DAMAGED_TRAIN": ("use", "skip", "refuse"),
    "DATA.DAMAGED_TEST": ("use", "skip", "refuse"),
    "DATA.SAMPLING": ("clip", "segments"),
    "MODEL.ARCH": ("lookupvit", "vit", "mvit", "x3d"),
    "MODEL.ENCODER": ("joint", "factorised"),
    "MODEL.RESIZE": ("triangle", "trilinear"),
    "MODEL.REVERSE_WEIGHTS": ("transpose", "scaled", "softmax"),
    "MODEL.HEADS": (["compressed", "lookup"], ["compressed"], ["lookup"]),
    "MODEL.INFERENCE_HEAD": ("average", "compressed", "lookup"),
    "MODEL.POOL": ("average", "average_norm", "class", "attentive"),
    "MODEL.TOKENS": ("all", "resize", "random", "merge"),
    "MODEL.ACTIVATION": ("gelu", "gelu_tanh", "quick_gelu"),
    "MODEL.INIT_INFLATE": ("central", "average"),
    "MODEL.TEMPORAL_INIT": ("random", "identity"),
    "MODEL.ADAPTER": ("none", "adaptformer", "lora"),
    "SOLVER.OPTIMIZING_METHOD": ("adamw", "sgd"),
}
AT_LEAST = {
    1: """LOG_PERIOD TRAIN.BATCH_SIZE TRAIN.ACCUMULATION_STEPS TRAIN.CHECKPOINT_PERIOD TRAIN.KEEP_CHECKPOINTS
          TEST.BATCH_SIZE TEST.NUM_ENSEMBLE_VIEWS DATA.NUM_FRAMES DATA.SAMPLING_RATE DATA.TRAIN_CROP_SIZE
          DATA.TEST_CROP_SIZE MODEL.NUM_CLASSES MODEL.TUBELET MODEL.COMPRESSED_GRID MODEL.COMPRESSED_GRIDS
          MODEL.TEMPORAL_DEPTH TEST.GRIDS AUG.NUM_SAMPLE SOLVER.MAX_EPOCH DATA_LOADER.PREFETCH_FACTOR""",
    0: """RNG_SEED TRAIN.CHECKPOINT_STEPS TRAIN.CHECKPOINT_MINUTES TRAIN.MAX_BAD_STEPS
          TRAIN.EVAL_PERIOD DATA.TEST_SHORT_SIDE DATA_LOADER.NUM_WORKERS MODEL.DIM MODEL.DEPTH MODEL.NUM_HEADS
          MODEL.ADAPTER_WIDTH MODEL.ADAPTER_SCALE SOLVER.BASE_LR_BATCH SOLVER.FREEZE_EPOCHS
          MODEL.DROP_PATH MODEL.DROPOUT_RATE MODEL.KEEP_TOKENS MODEL.MERGE_TOKENS MODEL.LAYER_SCALE MODEL.NORM_EPS
          DISTILL.WEIGHT DISTILL.FEATURE_WEIGHT AUG.RAND_AUGMENT_OPS AUG.RAND_AUGMENT_MAGNITUDE AUG.RAND_AUGMENT_STD
          AUG.COLOR_JITTER AUG.RE_PROB MIXUP.ALPHA MIXUP.CUTMIX_ALPHA MIXUP.PROB MIXUP.SWITCH_PROB SOLVER.BASE_LR
          SOLVER.COSINE_END_LR SOLVER.WARMUP_START_LR SOLVER.WARMUP_EPOCHS SOLVER.WEIGHT_DECAY SOLVER.MOMENTUM
          SOLVER.CLIP_GRAD_L2NORM SOLVER.LABEL_SMOOTHING DATA.MAX_BAD_FRACTION
          DATA_LOADER.TIMEOUT DATA.DECODE_TIMEOUT AUG.HUE_JITTER""",
}
AT_MOST_ONE = """AUG.RE_PROB MIXUP.PROB MIXUP.SWITCH_PROB DATA.MAX_BAD_FRACTION SOLVER.LAYER_DECAY
                 SOLVER.LABEL_SMOOTHING DISTILL.WEIGHT AUG.COLOR_JITTER_PROB"""
ABOVE_ZERO = """DATA.TARGET_FPS DATA.STD SOLVER.LAYER_DECAY DATA.TRAIN_JITTER_ASPECT_RELATIVE DISTILL.TEMPERATURE
                MODEL.COMPRESSED_GRID_WEIGHTS DIST_TIMEOUT"""
BELOW_ONE = "MODEL.DROP_PATH MODEL.DROPOUT_RATE SOLVER.MOMENTUM SOLVER.BETAS SOLVER.EMA_DECAY"
LENGTHS = {
    "MODEL.TUBELET": (3,),
    "MODEL.COMPRESSED_GRID": (2, 3),
    "DATA.MEAN": (3,),
    "DATA.STD": (3,),
    "SOLVER.BETAS": (2,),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": (0, 2),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": (2,),
    "DATA.TRAIN_JITTER_SCALES": (2,),
}
# Keys that hold a path; "~" is expanded in them.
PATHS = """OUTPUT_DIR TEST.CHECKPOINT_FILE_PATH DATA.PATH_TO_DATA_DIR DATA.PATH_PREFIX DATA.TRAIN_LIST DATA.VAL_LIST
           DATA.TEST_LIST DATA.CLASS_LIST DATA.SKIP_LIST DATA.INDEX_CACHE MODEL.INIT_FROM DISTILL.TEACHER"""
# What the lists that are empty by default are made of.
ITEMS: dict[str, Any] = {
    "TEST.GRIDS": [1],
    "MODEL.COMPRESSED_GRIDS": [1],
    "MODEL.COMPRESSED_GRID_WEIGHTS": 1.0,
}


def get_defaults() -> CfgNode:
    """Return a fresh, unfrozen copy of all keys with their defaults."""
    return _C.clone()


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML (no python tags) in which a key may stand once only."""


def _unique_keys(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a name; quote a number, on, off, yes or no", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_keys)


def parse_yaml(text: str, source: str) -> Any:
    """Parse plain YAML in which keys are names and stand once; ValueError with file and line where it is not."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that is stricter still
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise ValueError(f"{where}: {getattr(error, 'problem', None) or error}") from None


def _read_tree(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Return (source, tree) of a file and, before it, of each file that ``_BASE_`` names."""
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: _BASE_ leads back to this file; break the circle")
    try:
        text = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: this config cannot be read ({getattr(error, 'strerror', None) or error})") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config holds 'KEY: value' lines; this file holds {type(tree).__name__}")
    base = tree.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise ValueError(f"{path}: _BASE_ must be the path of one file")
    parents = _read_tree(path.parent / expand_user(base), (*seen, path)) if base else []
    return [*parents, (str(path), tree)]


def _coerce(value: Any, default: Any, where: str) -> Any:
    """Return ``value`` as the type of ``default``; a whole number serves as a float, nothing else is converted."""
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-4 as text
        except (TypeError, ValueError):
            pass
        else:
            if not math.isfinite(number):
                raise ValueError(f"{where}: {value!r} is not a finite number")
            return number
    if isinstance(default, list) and isinstance(value, (list, tuple)):
        sample = default[0] if default else ITEMS[where.rsplit(": ", 1)[-1]]
        return [_coerce(item, sample, f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is type(default):
        return value
    raise ValueError(f"{where}: expected {type(default).__name__} (default {default!r}), got {value!r}")


def _merge(node: CfgNode, tree: dict[str, Any], source: str, prefix: str = "") -> None:
    for key, value in tree.items():
        name = prefix + key
        if key not in node:
            near = difflib.get_close_matches(key.upper(), list(node), n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; keys here: {', '.join(node)}"
            raise ValueError(f"{source}: unknown key {name}{hint}")
        if isinstance(node[key], CfgNode):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {name} is a group of keys, got {value!r}")
            _merge(node[key], value, source, name + ".")
        else:
            node[key] = _coerce(value, node[key], f"{source}: {name}")


def _override_tree(name: str, text: str) -> dict[str, Any]:
    """Turn one ``KEY value`` pair of the command line into a tree."""
    node: Any = _C
    for part in name.split("."):
        node = node.get(part) if isinstance(node, CfgNode) else None
    value: Any = text if isinstance(node, str) else parse_yaml(text, f"command line: {name}")
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over the defaults, then ``KEY value`` overrides; check everything; return it frozen.

    Args:
        overrides: ["KEY", "value", ...], or "KEY=value" in the place of two.

    Raises:
        ValueError: names the file, line or key, and what to write instead.
    """
    cfg = get_defaults()
    for source, tree in _read_tree(Path(expand_user(str(path)))) if path else []:
        _merge(cfg, tree, source)
    for name, text in setting_pairs(overrides, set(key_names(cfg))):
        _merge(cfg, _override_tree(name, text), "command line")
    for name in PATHS.split():
        group, _, key = name.rpartition(".")
        try:
            (get_key(cfg, group) if group else cfg)[key] = expand_user(get_key(cfg, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return _finish(cfg)


def config_from_text(text: str, source: str) -> CfgNode:
    """Rebuild a frozen config from the YAML text that a run saved (``cfg.dump()``)."""
    tree = parse_yaml(text, source)
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: does not hold a config")
    cfg = get_defaults()
    _merge(cfg, tree, source)
    return _finish(cfg)


def _finish(cfg: CfgNode) -> CfgNode:
    validate(cfg)
    cfg.freeze()
    return cfg


def key_names(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Return the dotted names of all keys."""
    return [
        name
        for key, value in cfg.items()
        for name in (key_names(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key])
    ]


def get_key(cfg: CfgNode, name: str) -> Any:
    """Return the value of a dotted key."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def differences(one: CfgNode, other: CfgNode, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value, other value) of each key that differs."""
    found = []
    for key, value in one.items():
        if isinstance(value, CfgNode):
            found += differences(value, other[key], f"{prefix}{key}.")
        elif value != other[key]:
            found.append((prefix + key, value, other[key]))
    return found


def _flat(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, list) else [value]


def _check_ranges(cfg: CfgNode) -> None:
    def values(name: str) -> list[float]:
        return _flat(get_key(cfg, name))

    for name, choices in CHOICES.items():
        if get_key(cfg, name) not in choices:
            raise ValueError(f"{name} is {get_key(cfg, name)!r}; choose one of {', '.join(map(str, choices))}")
    for name, lengths in LENGTHS.items():
        if len(get_key(cfg, name)) not in lengths:
            raise ValueError(f"{name} is {get_key(cfg, name)}; it takes {' or '.join(map(str, lengths))} values")
    for low, names in AT_LEAST.items():
        for name in names.split():
            if not all(value >= low for value in values(name)):  # also catches nan
                raise ValueError(f"{name} is {get_key(cfg, name)}; it must be at least {low}")
    for name in AT_MOST_ONE.split():
        if not all(value <= 1 for value in values(name)):
            raise ValueError(f"{name} is {get_key(cfg, name)}; it must be at most 1")
    for name in BELOW_ONE.split():
        if not all(0 <= value < 1 for value in values(name)):
            raise ValueError(f"{name} is {get_key(cfg, name)}; it must be at least 0 and below 1")
    for name in ABOVE_ZERO.split():
        if not all(value > 0 for value in values(name)):
            raise ValueError(f"{name} is {get_key(cfg, name)}; it must be above 0")


def token_grid(cfg: CfgNode) -> tuple[int, int, int]:
    """Return the (t, h, w) grid of the lookup tokens that the config's clip and tubelet make."""
    t, h, w = cfg.MODEL.TUBELET
    size = cfg.DATA.TRAIN_CROP_SIZE
    return cfg.DATA.NUM_FRAMES // t, size // h, size // w


def _check_geometry(cfg: CfgNode) -> None:
    t, h, w = cfg.MODEL.TUBELET
    if cfg.DATA.NUM_FRAMES % t:
        raise ValueError(f"DATA.NUM_FRAMES is {cfg.DATA.NUM_FRAMES}; MODEL.TUBELET takes it in parts of {t} frames")
    for side in (h, w):
        if cfg.DATA.TRAIN_CROP_SIZE % side:
            raise ValueError(
                f"DATA.TRAIN_CROP_SIZE is {cfg.DATA.TRAIN_CROP_SIZE}; MODEL.TUBELET takes it in parts of {side} pixels"
            )
    if cfg.DATA.TEST_CROP_SIZE != cfg.DATA.TRAIN_CROP_SIZE:
        raise ValueError(
            f"DATA.TEST_CROP_SIZE is {cfg.DATA.TEST_CROP_SIZE} and DATA.TRAIN_CROP_SIZE "
            f"{cfg.DATA.TRAIN_CROP_SIZE}; positions are learned for one size, so set both alike"
        )
    if 0 < cfg.DATA.TEST_SHORT_SIDE < cfg.DATA.TEST_CROP_SIZE:
        raise ValueError(
            f"DATA.TEST_SHORT_SIDE is {cfg.DATA.TEST_SHORT_SIDE}; the crop of DATA.TEST_CROP_SIZE "
            f"{cfg.DATA.TEST_CROP_SIZE} does not fit in it"
        )
    if cfg.MODEL.DIM and cfg.MODEL.NUM_HEADS and cfg.MODEL.DIM % cfg.MODEL.NUM_HEADS:
        raise ValueError(f"MODEL.DIM is {cfg.MODEL.DIM}; MODEL.NUM_HEADS {cfg.MODEL.NUM_HEADS} does not divide it")


def _check_grids(cfg: CfgNode) -> None:
    weights = cfg.MODEL.COMPRESSED_GRID_WEIGHTS
    lookup = token_grid(cfg)[1:] if cfg.MODEL.ENCODER == "factorised" else token_grid(cfg)
    if weights and len(weights) != len(cfg.MODEL.COMPRESSED_GRIDS):
        raise ValueError(
            f"MODEL.COMPRESSED_GRID_WEIGHTS has {len(weights)} weights for the {len(cfg.MODEL.COMPRESSED_GRIDS)} grids "
            "of MODEL.COMPRESSED_GRIDS; write one for each"
        )
    if cfg.MODEL.ARCH != "lookupvit":
        for name in ("MODEL.COMPRESSED_GRIDS", "TEST.GRIDS"):
            if get_key(cfg, name):
                raise ValueError(f"{name} is for MODEL.ARCH lookupvit; {cfg.MODEL.ARCH} has one resolution")
        if cfg.MODEL.TOKENS == "all" or cfg.MODEL.ARCH != "vit":
            return  # nothing is compressed
    named = [("MODEL.COMPRESSED_GRID", cfg.MODEL.COMPRESSED_GRID)]
    named += [(name, grid) for name in ("MODEL.COMPRESSED_GRIDS", "TEST.GRIDS") for grid in get_key(cfg, name)]
    for name, grid in named:
        if len(grid) != len(lookup):
            what = "h x w of each time index" if len(lookup) == 2 else "t x h x w"
            raise ValueError(f"{name}: {grid} has {len(grid)} numbers; MODEL.ENCODER {cfg.MODEL.ENCODER} takes {what}")
        if any(c > g for c, g in zip(grid, lookup, strict=True)):
            raise ValueError(
                f"{name}: {grid} is larger than the grid of lookup tokens {list(lookup)} "
                "that DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE and MODEL.TUBELET make"
            )


VARIANTS_OF = {"lookupvit": "Ti S B L", "vit": "Ti S B L", "mvit": "Ti B", "x3d": "XS S M L"}


def _check_model(cfg: CfgNode) -> None:
    model = cfg.MODEL
    if model.VARIANT not in VARIANTS_OF[model.ARCH].split():
        choices = ", ".join(VARIANTS_OF[model.ARCH].split())
        raise ValueError(f"MODEL.VARIANT is {model.VARIANT!r}; for MODEL.ARCH {model.ARCH} choose one of {choices}")
    if model.ARCH == "lookupvit" and model.INFERENCE_HEAD not in ("average", *model.HEADS):
        raise ValueError(
            f"MODEL.INFERENCE_HEAD is {model.INFERENCE_HEAD}, which is not among MODEL.HEADS {model.HEADS}"
        )
    if model.POOL == "class" and (model.ARCH != "vit" or model.ENCODER == "factorised"):
        raise ValueError("MODEL.POOL class needs a class token: only MODEL.ARCH vit with MODEL.ENCODER joint has one")
    if model.TOKENS != "all" and (model.ARCH != "vit" or model.ENCODER == "factorised"):
        raise ValueError(f"MODEL.TOKENS {model.TOKENS} is for MODEL.ARCH vit with MODEL.ENCODER joint")
    if model.ARCH == "x3d" and model.DROP_PATH:
        raise ValueError("MODEL.DROP_PATH is for transformers; MODEL.ARCH x3d has MODEL.DROPOUT_RATE")
    if cfg.DISTILL.FEATURE_WEIGHT and (model.ARCH != "lookupvit" or not cfg.DISTILL.TEACHER):
        raise ValueError("DISTILL.FEATURE_WEIGHT is for MODEL.ARCH lookupvit and needs DISTILL.TEACHER")


def _check_frozen(cfg: CfgNode) -> None:
    model, epochs = cfg.MODEL, cfg.SOLVER.FREEZE_EPOCHS
    adapted, freezes = model.ADAPTER != "none", model.FREEZE_ENCODER or model.FREEZE_SPATIAL
    what = "ADAPTER" if adapted else "FREEZE_SPATIAL" if model.FREEZE_SPATIAL else "FREEZE_ENCODER"
    peer = model.ARCH not in ("lookupvit", "vit")
    # Drop path would act on nothing that learns.
    still = model.DROP_PATH and freezes and not adapted and not epochs
    for wrong, message in (
        (
            (adapted or freezes) and (peer or still),
            f"MODEL.{what} is for MODEL.ARCH lookupvit or vit" + " with MODEL.DROP_PATH 0" * (not adapted),
        ),
        (model.FREEZE_ENCODER and model.FREEZE_SPATIAL, "MODEL.FREEZE_ENCODER and MODEL.FREEZE_SPATIAL: set one only"),
        (adapted and model.FREEZE_ENCODER, "MODEL.ADAPTER freezes the encoder itself; set MODEL.FREEZE_ENCODER False"),
        (
            (peer or model.ENCODER == "joint") and (model.FREEZE_SPATIAL or model.TEMPORAL_INIT != "random"),
            "MODEL.FREEZE_SPATIAL and TEMPORAL_INIT identity are for MODEL.ENCODER factorised",
        ),
        (
            model.TRAIN_NORMS and not (adapted or freezes),
            "MODEL.TRAIN_NORMS is for MODEL.FREEZE_ENCODER, FREEZE_SPATIAL or ADAPTER; all norms train without them",
        ),
        (
            epochs and (adapted or not freezes or epochs >= cfg.SOLVER.MAX_EPOCH),
            f"SOLVER.FREEZE_EPOCHS is {epochs}; it goes with MODEL.FREEZE_ENCODER or FREEZE_SPATIAL, without ADAPTER, "
            f"and is below SOLVER.MAX_EPOCH {cfg.SOLVER.MAX_EPOCH}",
        ),
    ):
        if wrong:
            raise ValueError(message)


def _check_parallel(cfg: CfgNode) -> None:
    if cfg.TRAIN.CPU_OFFLOAD and cfg.TRAIN.PARALLEL != "fsdp":
        raise ValueError("TRAIN.CPU_OFFLOAD is for TRAIN.PARALLEL fsdp; ddp keeps the whole model on each GPU")
    if cfg.MODEL.ARCH == "x3d" and (cfg.TRAIN.PARALLEL, cfg.TRAIN.ACTIVATION_CHECKPOINTING) != ("ddp", "none"):
        raise ValueError(
            "MODEL.ARCH x3d has batch norms, whose statistics need TRAIN.PARALLEL ddp and "
            "TRAIN.ACTIVATION_CHECKPOINTING none"
        )
    if cfg.TRAIN.ACTIVATION_CHECKPOINTING == "write_back" and cfg.MODEL.ARCH != "lookupvit":
        raise ValueError(
            f"TRAIN.ACTIVATION_CHECKPOINTING write_back: blocks of MODEL.ARCH {cfg.MODEL.ARCH} have no way back; "
            "choose none, selective or full"
        )
    if cfg.DIST_TIMEOUT <= cfg.DATA_LOADER.TIMEOUT:
        raise ValueError(
            f"DIST_TIMEOUT is {cfg.DIST_TIMEOUT:g} and DATA_LOADER.TIMEOUT {cfg.DATA_LOADER.TIMEOUT:g}; processes must "
            "wait longer for one another than one of them may wait for data"
        )


def validate(cfg: CfgNode) -> None:
    """Check every value and what must fit together, before any data is read.

    Raises:
        ValueError: names the key and the mend.
    """
    _check_ranges(cfg)
    _check_geometry(cfg)
    _check_grids(cfg)
    _check_model(cfg)
    _check_parallel(cfg)
    _check_frozen(cfg)
    area, scales = cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE, cfg.DATA.TRAIN_JITTER_SCALES
    aspect = cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE
    if area and not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"DATA.TRAIN_JITTER_SCALES_RELATIVE is {area}; write [low, high] with 0 < low <= high <= 1")
    if aspect[0] > aspect[1]:
        raise ValueError(f"DATA.TRAIN_JITTER_ASPECT_RELATIVE is {aspect}; write [low, high] with low <= high")
    if not area and not cfg.DATA.TRAIN_CROP_SIZE <= scales[0] <= scales[1]:
        raise ValueError(
            f"DATA.TRAIN_JITTER_SCALES is {scales}; write [low, high] with DATA.TRAIN_CROP_SIZE "
            f"{cfg.DATA.TRAIN_CROP_SIZE} <= low <= high"
        )
    if cfg.AUG.HUE_JITTER > 0.5:
        raise ValueError(f"AUG.HUE_JITTER is {cfg.AUG.HUE_JITTER}; it must be at most 0.5, the opposite colour")
    parts = cfg.TRAIN.ACCUMULATION_STEPS * cfg.AUG.NUM_SAMPLE
    if cfg.TRAIN.BATCH_SIZE % parts:
        raise ValueError(
            f"TRAIN.BATCH_SIZE is {cfg.TRAIN.BATCH_SIZE}; TRAIN.ACCUMULATION_STEPS x AUG.NUM_SAMPLE "
            f"= {parts} does not divide it"
        )
    if cfg.MIXUP.ENABLE and cfg.MIXUP.ALPHA == 0 and cfg.MIXUP.CUTMIX_ALPHA == 0:
        raise ValueError("MIXUP.ENABLE is True with MIXUP.ALPHA and MIXUP.CUTMIX_ALPHA both 0; raise one of them")
    if cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.MAX_EPOCH:
        raise ValueError(
            f"SOLVER.WARMUP_EPOCHS is {cfg.SOLVER.WARMUP_EPOCHS}; it must be below SOLVER.MAX_EPOCH "
            f"{cfg.SOLVER.MAX_EPOCH}"
        )
