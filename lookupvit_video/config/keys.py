"""Every setting of a run, declared once: its default, the reason for it, and the values that it accepts.

Keys that mean what they mean in SlowFast have SlowFast's names. To add a key, add a line to ``KEYS``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lookupvit_video.registry import MODELS, models_with


class Need(NamedTuple):
    """Values that other keys must have if a key has ``value``; None: any value but its default."""

    others: Mapping[str, tuple[Any, ...]]
    value: Any = None


class Key(NamedTuple):
    """A setting. Bounds hold for each number of a list."""

    default: Any
    reason: str
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    lengths: tuple[int, ...] = ()
    item: Any = None
    """What a list that is empty by default is made of."""
    needs: tuple[Need, ...] = ()
    is_path: bool = False
    """Whether ~ is expanded in it."""


VARIANTS = {name: tuple(entry.variants) for name, entry in MODELS.items()}
HAS_GRIDS = Need({"MODEL.ARCH": models_with("compressed_grids")})
HAS_ADAPTERS = Need({"MODEL.ARCH": models_with("adapters")})
SHARDS = Need({"MODEL.ARCH": models_with("shards")})
JOINT_VIT = Need({"MODEL.ARCH": models_with("reduces_tokens"), "MODEL.ENCODER": ("joint",)})
FACTORIZED = Need({"MODEL.ARCH": models_with("factorized"), "MODEL.ENCODER": ("factorised",)})

KEYS: dict[str, Key] = {
    "OUTPUT_DIR": Key("runs/default", "everything that a run writes goes below this folder", is_path=True),
    "RNG_SEED": Key(0, "weights, sample order, clip times, augmentation and dropout all follow from it", at_least=0),
    "DIST_TIMEOUT": Key(
        1800.0,
        "seconds that processes wait for one another before the run ends and names those that hang",
        above=0,
    ),
    "LOG_PERIOD": Key(10, "optimiser steps between two log lines (the device is synchronised only then)", at_least=1),
    "TRAIN.ENABLE": Key(True, "run the training loop"),
    "TRAIN.BATCH_SIZE": Key(
        64, "clips per optimiser step, over all processes and accumulation steps together", at_least=1
    ),
    "TRAIN.ACCUMULATION_STEPS": Key(
        1, "parts into which the batch of each process is split, where memory is short", at_least=1
    ),
    "TRAIN.EVAL_PERIOD": Key(
        1, "epochs between two validations (the last epoch always has one); 0: never validate", at_least=0
    ),
    "TRAIN.CHECKPOINT_PERIOD": Key(1, "epochs between two checkpoints (the last epoch always has one)", at_least=1),
    "TRAIN.CHECKPOINT_STEPS": Key(0, "steps between two additional checkpoints, for long epochs; 0: none", at_least=0),
    "TRAIN.CHECKPOINT_MINUTES": Key(30.0, "minutes between two additional checkpoints; 0: none", at_least=0),
    "TRAIN.KEEP_CHECKPOINTS": Key(2, "checkpoints kept on disk; two, in case one is damaged", at_least=1),
    "TRAIN.AUTO_RESUME": Key(True, "resume from the newest checkpoint in OUTPUT_DIR"),
    "TRAIN.PRECISION": Key(
        "auto", "auto: bfloat16 on GPUs that have it, else float32", choices=("auto", "float32", "bfloat16", "float16")
    ),
    "TRAIN.MAX_BAD_STEPS": Key(
        0, "steps with a nan or infinite loss or gradient that are skipped; 0: the first one stops the run", at_least=0
    ),
    "TRAIN.PARALLEL": Key(
        "ddp",
        "ddp: the complete model in each process; fsdp: weights and optimiser sharded (FSDP2)",
        choices=("ddp", "fsdp"),
        needs=(SHARDS._replace(value="fsdp"),),
    ),
    "TRAIN.CPU_OFFLOAD": Key(
        False,
        "keep the shards in RAM; slow, for models that do not fit on all GPUs together",
        needs=(Need({"TRAIN.PARALLEL": ("fsdp",)}),),
    ),
    "TRAIN.ACTIVATION_CHECKPOINTING": Key(
        "none",
        "activations recomputed in backward, to save memory",
        choices=("none", "write_back", "selective", "full"),
        needs=(SHARDS, HAS_GRIDS._replace(value="write_back")),
    ),
    "TRAIN.COMPILE": Key(False, "torch.compile each block: faster steps after minutes of compilation"),
    "TENSORBOARD.ENABLE": Key(False, "also write OUTPUT_DIR/tensorboard (log.jsonl is always written)"),
    "TEST.ENABLE": Key(True, "test after training, or alone when TRAIN.ENABLE is False"),
    "TEST.BATCH_SIZE": Key(
        4, "videos, each with all its views, per step of a process in validation and test", at_least=1
    ),
    "TEST.CHECKPOINT_FILE_PATH": Key(
        "", "what to test; empty: OUTPUT_DIR/model.pt, which training writes", is_path=True
    ),
    "TEST.NUM_ENSEMBLE_VIEWS": Key(1, "clips per video in time, their softmax averaged", at_least=1),
    "TEST.NUM_SPATIAL_CROPS": Key(1, "crops per clip: 1 the centre, 3 spread over the longer side", choices=(1, 3)),
    "TEST.GRIDS": Key(
        [],
        "further compressed grids to test, in the same pass over the videos",
        at_least=1,
        item=[1],
        needs=(HAS_GRIDS,),
    ),
    "DATA.PATH_TO_DATA_DIR": Key("", "folder of the lists below", is_path=True),
    "DATA.PATH_PREFIX": Key("", "put before each relative path in a list; empty: the list's own folder", is_path=True),
    "DATA.TRAIN_LIST": Key("train.csv", "a list, or a folder of class folders, below PATH_TO_DATA_DIR", is_path=True),
    "DATA.VAL_LIST": Key("val.csv", "read after each EVAL_PERIOD epochs, one centre view", is_path=True),
    "DATA.TEST_LIST": Key("test.csv", "read by the multi-view test", is_path=True),
    "DATA.CLASS_LIST": Key("classes.txt", "one class name a line; line number = label", is_path=True),
    "DATA.SKIP_LIST": Key(
        "", "bad_videos.csv of a check or of a run: skipped in TRAIN_LIST; empty: none", is_path=True
    ),
    "DATA.DECODING_BACKEND": Key(
        "pyav", "pyav, decord or torchcodec; all return exact frames", choices=("pyav", "decord", "torchcodec")
    ),
    "DATA.DECODE_TIMEOUT": Key(
        60.0, "time limit in seconds for opening a video or decoding its clips; 0: none", at_least=0
    ),
    "DATA.INDEX_CACHE": Key(
        "", "folder that caches time stamps and key frames, for long videos; empty: no cache", is_path=True
    ),
    "DATA.NUM_FRAMES": Key(16, "frames of a clip, T", at_least=1),
    "DATA.SAMPLING_RATE": Key(4, "frames of a TARGET_FPS video from one frame of the clip to the next", at_least=1),
    "DATA.TARGET_FPS": Key(
        30.0, "the rate in frames/s that SAMPLING_RATE refers to, whatever the rate of the file", above=0
    ),
    "DATA.SAMPLING": Key(
        "clip",
        "clip: SAMPLING_RATE apart; segments: one frame from each of T equal parts of the video",
        choices=("clip", "segments"),
    ),
    "DATA.SINGLE_FRAME": Key(False, "control: repeat one frame T times, so that only appearance is left to learn from"),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": Key(
        [0.5, 1.0], "area of the random crop over the frame's; []: see TRAIN_JITTER_SCALES", lengths=(0, 2)
    ),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": Key([0.75, 1.3333], "aspect ratio of the random crop", above=0, lengths=(2,)),
    "DATA.TRAIN_JITTER_SCALES": Key(
        [256, 320], "short side in pixels before a fixed-size crop, if TRAIN_JITTER_SCALES_RELATIVE is []", lengths=(2,)
    ),
    "DATA.TRAIN_CROP_SIZE": Key(224, "height and width of a clip in training", at_least=1),
    "DATA.TEST_CROP_SIZE": Key(224, "height and width of a clip in validation and test", at_least=1),
    "DATA.TEST_SHORT_SIDE": Key(0, "short side in pixels before the test crops; 0: TEST_CROP_SIZE", at_least=0),
    "DATA.RANDOM_FLIP": Key(True, "mirror half of the training clips; 'left' and 'right' in class names are swapped"),
    "DATA.MEAN": Key(
        [0.485, 0.456, 0.406], "mean of each channel; ImageNet's, as most published weights expect", lengths=(3,)
    ),
    "DATA.STD": Key([0.229, 0.224, 0.225], "standard deviation; ImageNet's likewise", above=0, lengths=(3,)),
    "DATA.CACHE_VIDEOS": Key(False, "keep every decoded video in memory; for small videos, read in one process"),
    "DATA.DAMAGED_TRAIN": Key(
        "skip",
        "videos with damage that the decoder notices: use, skip as unreadable, or refuse: stop",
        choices=("use", "skip", "refuse"),
    ),
    "DATA.DAMAGED_TEST": Key(
        "use",
        "likewise in validation and test, where a skipped video counts as wrong",
        choices=("use", "skip", "refuse"),
    ),
    "DATA.MAX_BAD_FRACTION": Key(
        0.01,
        "training stops if more videos cannot be read (at least 3 may, see manifest.allowed_bad; 0: none)",
        at_least=0,
        at_most=1,
    ),
    "DATA_LOADER.NUM_WORKERS": Key(
        8, "decoding processes per training process; 0: decode in the training process", at_least=0
    ),
    "DATA_LOADER.PREFETCH_FACTOR": Key(2, "batches that each worker prepares in advance", at_least=1),
    "DATA_LOADER.TIMEOUT": Key(
        600.0, "seconds without a batch from any worker before the run stops; 0: no limit", at_least=0
    ),
    "DATA_LOADER.PIN_MEMORY": Key(True, "faster copies to a GPU; no effect on a CPU"),
    "MODEL.ARCH": Key(
        "lookupvit", "vit: dense, on the same tokens; mvit, x3d: PyTorchVideo's", choices=tuple(VARIANTS)
    ),
    "MODEL.NUM_CLASSES": Key(400, "K; must be the length of the class list", at_least=1),
    "MODEL.VARIANT": Key("B", "Ti, S, B or L: width, depth and heads; mvit: Ti or B; x3d: XS, S, M or L"),
    "MODEL.DIM": Key(0, "width D; 0: the variant's", at_least=0),
    "MODEL.DEPTH": Key(0, "blocks; 0: the variant's", at_least=0),
    "MODEL.NUM_HEADS": Key(0, "attention heads; 0: the variant's", at_least=0),
    "MODEL.TUBELET": Key([2, 16, 16], "frames x height x width of one lookup token", at_least=1, lengths=(3,)),
    "MODEL.ENCODER": Key(
        "joint",
        "joint: tokens of all times together; factorised: per time index, then over time (ViViT)",
        choices=("joint", "factorised"),
    ),
    "MODEL.TEMPORAL_DEPTH": Key(4, "factorised: blocks of the temporal transformer", at_least=1),
    "MODEL.COMPRESSED_GRID": Key(
        [4, 7, 7], "t x h x w grid of the compressed tokens; factorised: h x w", at_least=1, lengths=(2, 3)
    ),
    "MODEL.COMPRESSED_GRIDS": Key(
        [],
        "multi-resolution training: one of these grids is drawn for each step",
        at_least=1,
        item=[1],
        needs=(HAS_GRIDS,),
    ),
    "MODEL.COMPRESSED_GRID_WEIGHTS": Key(
        [], "relative frequency of each of COMPRESSED_GRIDS; []: equal", above=0, item=1.0
    ),
    "MODEL.RESIZE": Key(
        "triangle",
        "triangle: antialiased, as JAX resizes; trilinear: plain interpolation",
        choices=("triangle", "trilinear"),
    ),
    "MODEL.REVERSE_WEIGHTS": Key(
        "softmax",
        "write-back: A transposed; scaled: times N/M; softmax: over compressed tokens",
        choices=("transpose", "scaled", "softmax"),
    ),
    "MODEL.HEADS": Key(
        ["compressed", "lookup"],
        "token sets with a classifier; the loss is the mean over them",
        choices=(["compressed", "lookup"], ["compressed"], ["lookup"]),
    ),
    "MODEL.INFERENCE_HEAD": Key(
        "average", "average of the heads' logits, or one head alone", choices=("average", "compressed", "lookup")
    ),
    "MODEL.POOL": Key(
        "average",
        "norm, then mean; average_norm: mean, then norm; class: a token (vit); attentive: a query",
        choices=("average", "average_norm", "class", "attentive"),
        needs=(JOINT_VIT._replace(value="class"),),
    ),
    "MODEL.TOKENS": Key(
        "all",
        "all; resize: to COMPRESSED_GRID; random: a random part; merge: ToMe",
        choices=("all", "resize", "random", "merge"),
        needs=(JOINT_VIT,),
    ),
    "MODEL.KEEP_TOKENS": Key(
        0, "TOKENS random: tokens kept; 0: equal MACs to a LookupViT with COMPRESSED_GRID", at_least=0
    ),
    "MODEL.MERGE_TOKENS": Key(0, "TOKENS merge: tokens merged in each block; 0: likewise", at_least=0),
    "MODEL.QK_NORM": Key(False, "layer norm on queries and keys, per head"),
    "MODEL.LAYER_SCALE": Key(0.0, "initial value of a learned factor on each residual branch; 0: none", at_least=0),
    "MODEL.ACTIVATION": Key(
        "gelu",
        "of the MLPs; the approximations are for published weights trained with them",
        choices=("gelu", "gelu_tanh", "quick_gelu"),
    ),
    "MODEL.NORM_EPS": Key(1e-6, "epsilon of the layer norms, as ViT and MAE", at_least=0),
    "MODEL.DROP_PATH": Key(
        0.0,
        "stochastic depth of the last block, rising linearly from 0 at the first",
        at_least=0,
        below=1,
        needs=(Need({"MODEL.ARCH": models_with("drop_path")}),),
    ),
    "MODEL.DROPOUT_RATE": Key(0.0, "dropout before each classifier", at_least=0, below=1),
    "MODEL.INIT_FROM": Key(
        "", "weights to start from: this project's, timm's, VideoMAE's, ...; a file or a Hub id", is_path=True
    ),
    "MODEL.INIT_INFLATE": Key(
        "central",
        "image kernels in video: into the central frame, or the average over the frames",
        choices=("central", "average"),
    ),
    "MODEL.FREEZE_ENCODER": Key(
        False,
        "train the heads only: a linear probe, or with POOL attentive an attentive one",
        needs=(HAS_ADAPTERS,),
    ),
    "MODEL.FREEZE_SPATIAL": Key(
        False, "factorised: train the temporal transformer and the heads only", needs=(FACTORIZED,)
    ),
    "MODEL.TEMPORAL_INIT": Key(
        "random",
        "factorised: random, or identity: the temporal transformer changes nothing at the start",
        choices=("random", "identity"),
        needs=(FACTORIZED,),
    ),
    "MODEL.ADAPTER": Key(
        "none",
        "adaptformer, lora: train small additions to the frozen blocks, and the heads",
        choices=("none", "adaptformer", "lora"),
        needs=(HAS_ADAPTERS,),
    ),
    "MODEL.ADAPTER_WIDTH": Key(0, "adapters: inner width, LoRA's rank; 0: 64 for adaptformer, 8 for lora", at_least=0),
    "MODEL.ADAPTER_SCALE": Key(
        0.0, "adapters: factor on their output, LoRA's alpha / rank; 0: 0.1 for adaptformer, 1 for lora", at_least=0
    ),
    "MODEL.TRAIN_NORMS": Key(False, "also train the norms in frozen parts"),
    "DISTILL.TEACHER": Key("", "checkpoint of this project to learn from; empty: off", is_path=True),
    "DISTILL.WEIGHT": Key(0.5, "share of the teacher's soft targets in the classification loss", at_least=0, at_most=1),
    "DISTILL.TEMPERATURE": Key(1.0, "softmax temperature of teacher and student", above=0),
    "DISTILL.FEATURE_WEIGHT": Key(
        0.0,
        "weight of the distance from the compressed tokens to the teacher's resized tokens",
        at_least=0,
        needs=(HAS_GRIDS,),
    ),
    "AUG.NUM_SAMPLE": Key(1, "repeated augmentation: clips drawn from a video each time it is opened", at_least=1),
    "AUG.RAND_AUGMENT_OPS": Key(0, "RandAugment: operations per clip, the same for all its frames; 0: off", at_least=0),
    "AUG.RAND_AUGMENT_MAGNITUDE": Key(7.0, "strength of the operations, on a scale of 0 to 10", at_least=0),
    "AUG.RAND_AUGMENT_STD": Key(0.5, "spread of the magnitude from clip to clip", at_least=0),
    "AUG.COLOR_JITTER": Key(0.0, "strength of brightness, contrast and saturation jitter; 0: off", at_least=0),
    "AUG.HUE_JITTER": Key(
        0.0, "largest rotation of the hue, 0.5: to the opposite colour; 0: off", at_least=0, at_most=0.5
    ),
    "AUG.COLOR_JITTER_PROB": Key(
        1.0, "probability per clip of both jitters; ViViT: 0.4, 0.2 and 0.8", at_least=0, at_most=1
    ),
    "AUG.RE_PROB": Key(0.0, "random erasing: probability per clip", at_least=0, at_most=1),
    "MIXUP.ENABLE": Key(False, "mix clips and labels within a batch"),
    "MIXUP.ALPHA": Key(0.8, "mixup's Beta parameter; 0: cutmix only", at_least=0),
    "MIXUP.CUTMIX_ALPHA": Key(1.0, "cutmix's Beta parameter; 0: mixup only", at_least=0),
    "MIXUP.PROB": Key(1.0, "probability that a batch is mixed", at_least=0, at_most=1),
    "MIXUP.SWITCH_PROB": Key(0.5, "probability of cutmix where both are on", at_least=0, at_most=1),
    "SOLVER.OPTIMIZING_METHOD": Key("adamw", "adamw or sgd (with Nesterov momentum)", choices=("adamw", "sgd")),
    "SOLVER.BASE_LR": Key(5e-4, "peak learning rate; scaled by BASE_LR_BATCH only", at_least=0),
    "SOLVER.BASE_LR_BATCH": Key(
        0, "batch size of the learning rates: they are scaled by BATCH_SIZE / this; 0: not scaled", at_least=0
    ),
    "SOLVER.COSINE_END_LR": Key(1e-6, "learning rate at the last step", at_least=0),
    "SOLVER.WARMUP_START_LR": Key(1e-6, "learning rate at the first step", at_least=0),
    "SOLVER.WARMUP_EPOCHS": Key(5.0, "linear warm-up, counted per step", at_least=0),
    "SOLVER.MAX_EPOCH": Key(30, "passes over the training list", at_least=1),
    "SOLVER.WEIGHT_DECAY": Key(0.05, "not applied to norms, biases and positions", at_least=0),
    "SOLVER.BETAS": Key([0.9, 0.999], "beta1 and beta2 of AdamW", at_least=0, below=1, lengths=(2,)),
    "SOLVER.MOMENTUM": Key(0.9, "momentum of SGD", at_least=0, below=1),
    "SOLVER.LAYER_DECAY": Key(1.0, "learning rate factor from each block to the one below; 1: off", above=0, at_most=1),
    "SOLVER.FREEZE_EPOCHS": Key(0.0, "epochs of FREEZE_ENCODER or FREEZE_SPATIAL; 0: all", at_least=0),
    "SOLVER.CLIP_GRAD_L2NORM": Key(1.0, "largest norm of the gradient; 0: no clipping", at_least=0),
    "SOLVER.EMA_DECAY": Key(
        0.0, "decay of the averaged weights, which validation, test and model.pt use; 0: off", at_least=0, below=1
    ),
    "SOLVER.LABEL_SMOOTHING": Key(0.0, "share of the target spread evenly over all classes", at_least=0, at_most=1),
}
