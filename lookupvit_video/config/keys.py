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


HAS_GRIDS = Need({"MODEL.ARCH": models_with("compressed_grids")})
HAS_ADAPTERS = Need({"MODEL.ARCH": models_with("adapters")})
SHARDS = Need({"MODEL.ARCH": models_with("shards")})
JOINT_VIT = Need({"MODEL.ARCH": models_with("reduces_tokens"), "MODEL.ENCODER": ("joint",)})
FACTORIZED = Need({"MODEL.ARCH": models_with("factorized"), "MODEL.ENCODER": ("factorised",)})

# fmt: off
KEYS: dict[str, Key] = {
    "OUTPUT_DIR": Key("runs/default", "folder of everything that a run writes", is_path=True),
    "RNG_SEED": Key(0, "seed of weights, sample order, clip times, augmentation and dropout", at_least=0),
    "DIST_TIMEOUT": Key(1800.0,
        "seconds that processes wait for one another before the run stops and names the missing ones", above=0),
    "LOG_PERIOD": Key(10, "optimizer steps between two log lines; only then the device is synchronized", at_least=1),
    "AUTO.ENABLE": Key(False,
        "find splits and classes in DATA.PATH_TO_DATA_DIR, and choose the keys of docs/own_videos.md that are not set"),
    "AUTO.MINUTES": Key(0.0, "minutes that training and test may take; 0: 10 on a CPU, 60 on a GPU", at_least=0),
    "AUTO.GROUP_BY": Key("", "regular expression: videos in whose paths it matches the same text stay in one split"),
    "TRAIN.ENABLE": Key(True, "run the training loop"),
    "TRAIN.BATCH_SIZE": Key(64, "clips per optimizer step, over all processes and accumulation steps", at_least=1),
    "TRAIN.ACCUMULATION_STEPS": Key(1, "parts of each process's batch, computed one by one to save memory", at_least=1),
    "TRAIN.EVAL_PERIOD": Key(1, "epochs between two validations, with one after the last epoch; 0: never", at_least=0),
    "TRAIN.BEST_METRIC": Key("top1", "the one of TEST.METRICS that chooses best.pt in validation"),
    "TRAIN.CHECKPOINT_PERIOD": Key(1, "epochs between two checkpoints, with one after the last epoch", at_least=1),
    "TRAIN.CHECKPOINT_STEPS": Key(0, "steps between two additional checkpoints, for long epochs; 0: none", at_least=0),
    "TRAIN.CHECKPOINT_MINUTES": Key(30.0, "minutes between two additional checkpoints; 0: none", at_least=0),
    "TRAIN.KEEP_CHECKPOINTS": Key(2, "checkpoints kept on disk; two, in case one is damaged", at_least=1),
    "TRAIN.AUTO_RESUME": Key(True, "resume from the newest checkpoint in OUTPUT_DIR"),
    "TRAIN.PRECISION": Key("auto", "auto: bfloat16 on GPUs that have it, else float32",
        choices=("auto", "float32", "bfloat16", "float16")),
    "TRAIN.MAX_BAD_STEPS": Key(0,
        "steps with a nan or infinite loss or gradient that may be left out; 0: the first stops the run",
        at_least=0),
    "TRAIN.PARALLEL": Key("ddp", "ddp: a complete model in each process; fsdp: weights and optimizer sharded (FSDP2)",
        choices=("ddp", "fsdp"), needs=(SHARDS._replace(value="fsdp"),)),
    "TRAIN.CPU_OFFLOAD": Key(False, "keep the shards in RAM: slow, for models that do not fit on all GPUs together",
        needs=(Need({"TRAIN.PARALLEL": ("fsdp",)}),)),
    "TRAIN.ACTIVATION_CHECKPOINTING": Key("none", "recompute activations in the backward pass, to save memory",
        choices=("none", "write_back", "selective", "full"), needs=(SHARDS, HAS_GRIDS._replace(value="write_back"))),
    "TRAIN.COMPILE": Key(False, "torch.compile each block: faster steps after minutes of compilation"),
    "TENSORBOARD.ENABLE": Key(False, "also write OUTPUT_DIR/tensorboard (log.jsonl is always written)"),
    "TEST.ENABLE": Key(True, "test after training, or alone when TRAIN.ENABLE is False"),
    "TEST.METRICS": Key(["top1", "top5"], "measured in validation and test: top1, top5, mean_class_accuracy, nll"),
    "TEST.BATCH_SIZE": Key(4, "videos, with all their views, per step of a process in validation and test", at_least=1),
    "TEST.CHECKPOINT_FILE_PATH": Key("", "checkpoint to test; empty: OUTPUT_DIR/model.pt, of training", is_path=True),
    "TEST.NUM_ENSEMBLE_VIEWS": Key(1, "clips per video in time, whose softmax is averaged", at_least=1),
    "TEST.NUM_SPATIAL_CROPS": Key(1, "crops per clip: 1 in the center, 3 spread over the longer side", choices=(1, 3)),
    "TEST.GRIDS": Key([], "more compressed grids to test in the same pass over the videos", at_least=1, item=[1],
        needs=(HAS_GRIDS,)),
    "DATA.PATH_TO_DATA_DIR": Key("", "folder of the lists below", is_path=True),
    "DATA.PATH_PREFIX": Key("", "put before each relative path in a list; empty: the list's own folder", is_path=True),
    "DATA.TRAIN_LIST": Key("train.csv", "a list, or a folder of class folders, below PATH_TO_DATA_DIR", is_path=True),
    "DATA.VAL_LIST": Key("val.csv", "measured after each EVAL_PERIOD epochs, with one center view", is_path=True),
    "DATA.TEST_LIST": Key("test.csv", "measured by the multi-view test", is_path=True),
    "DATA.CLASS_LIST": Key("classes.txt", "one class name a line; line number = label", is_path=True),
    "DATA.SKIP_LIST": Key("", "bad_videos.csv of a check or a run, left out of TRAIN_LIST; empty: none", is_path=True),
    "DATA.DECODING_BACKEND": Key("pyav", "pyav, decord or torchcodec; all return exact frames",
        choices=("pyav", "decord", "torchcodec")),
    "DATA.DECODE_TIMEOUT": Key(60.0, "seconds to open a video or decode its clips at most; 0: no limit", at_least=0),
    "DATA.INDEX_CACHE": Key("", "folder for cached time stamps and key frames of long videos; empty: no cache",
        is_path=True),
    "DATA.NUM_FRAMES": Key(16, "frames of a clip, T", at_least=1),
    "DATA.SAMPLING_RATE": Key(4, "frames of a TARGET_FPS video from one frame of the clip to the next", at_least=1),
    "DATA.TARGET_FPS": Key(30.0, "frames/s that SAMPLING_RATE refers to, whatever the rate of the file", above=0),
    "DATA.SAMPLING": Key("clip",
        "clip: frames SAMPLING_RATE apart; segments: one from each of T equal parts of the video",
        choices=("clip", "segments")),
    "DATA.SINGLE_FRAME": Key(False,
        "control: repeat one frame T times, so that a model can learn from appearance only"),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": Key([0.5, 1.0],
        "area of the random crop, as a share; []: see TRAIN_JITTER_SCALES", lengths=(0, 2)),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": Key([0.75, 1.3333], "aspect ratio of the random crop", above=0, lengths=(2,)),
    "DATA.TRAIN_JITTER_SCALES": Key([256, 320],
        "pixels of the short side before a crop of fixed size, if TRAIN_JITTER_SCALES_RELATIVE is []", lengths=(2,)),
    "DATA.TRAIN_CROP_SIZE": Key(224, "height and width of a clip in training", at_least=1),
    "DATA.TEST_CROP_SIZE": Key(224, "height and width of a clip in validation and test", at_least=1),
    "DATA.TEST_SHORT_SIDE": Key(0, "short side in pixels before the test crops; 0: TEST_CROP_SIZE", at_least=0),
    "DATA.RANDOM_FLIP": Key(True, "mirror half of the training clips; 'left' and 'right' in class names are swapped"),
    "DATA.MEAN": Key([0.485, 0.456, 0.406], "channel means; ImageNet's, as for most published weights", lengths=(3,)),
    "DATA.STD": Key([0.229, 0.224, 0.225], "channel standard deviations; ImageNet's", above=0, lengths=(3,)),
    "DATA.CACHE_VIDEOS": Key(False, "keep every decoded video in memory; for small videos, read in one process"),
    "DATA.CACHE_SHORT_SIDE": Key(0, "CACHE_VIDEOS: short side in pixels of what is kept; 0: as decoded", at_least=0),
    "DATA.DAMAGED_TRAIN": Key("skip",
        "videos with damage that the decoder notices: use them, skip them as unreadable, or refuse to run",
        choices=("use", "skip", "refuse")),
    "DATA.DAMAGED_TEST": Key("use", "the same in validation and test, where a skipped video counts as wrong",
        choices=("use", "skip", "refuse")),
    "DATA.MAX_BAD_FRACTION": Key(0.01,
        "training stops if more videos cannot be read (a few always may, see manifest.allowed_bad; 0: none)",
        at_least=0, at_most=1),
    "DATA_LOADER.NUM_WORKERS": Key(8, "decoding processes per training process; 0: the training process decodes",
        at_least=0),
    "DATA_LOADER.PREFETCH_FACTOR": Key(2, "batches that each worker prepares in advance", at_least=1),
    "DATA_LOADER.TIMEOUT": Key(600.0, "seconds without a batch before the run stops; 0: no limit", at_least=0),
    "DATA_LOADER.PIN_MEMORY": Key(True, "faster copies to a GPU; no effect on a CPU"),
    "MODEL.ARCH": Key("lookupvit", "vit: dense, on the same tokens; mvit, x3d: PyTorchVideo's", choices=tuple(MODELS)),
    "MODEL.NUM_CLASSES": Key(400, "K; must be the length of the class list", at_least=1),
    "MODEL.VARIANT": Key("B", "size of the model: width, depth and heads; the choices depend on MODEL.ARCH"),
    "MODEL.DIM": Key(0, "width D; 0: the variant's", at_least=0),
    "MODEL.DEPTH": Key(0, "blocks; 0: the variant's", at_least=0),
    "MODEL.NUM_HEADS": Key(0, "attention heads; 0: the variant's", at_least=0),
    "MODEL.TUBELET": Key([2, 16, 16], "frames x height x width of one lookup token", at_least=1, lengths=(3,)),
    "MODEL.INPUT": Key("frames",
        "changes: each frame's difference from the clip's average frame, times 3: what stands still is not seen",
        choices=("frames", "changes"), needs=(Need({"MODEL.ARCH": models_with("tubelets")}, "changes"),)),
    "MODEL.ENCODER": Key("joint",
        "joint: tokens of all times together; factorised: each time index, then over time (ViViT)",
        choices=("joint", "factorised")),
    "MODEL.TEMPORAL_DEPTH": Key(4, "factorised: blocks of the temporal transformer", at_least=1),
    "MODEL.COMPRESSED_GRID": Key([4, 7, 7], "t x h x w grid of compressed tokens; factorised: h x w", at_least=1,
        lengths=(2, 3)),
    "MODEL.COMPRESSED_GRIDS": Key([], "multi-resolution training: one of these grids is drawn for each step",
        at_least=1, item=[1], needs=(HAS_GRIDS,)),
    "MODEL.COMPRESSED_GRID_WEIGHTS": Key([], "relative frequency of each of COMPRESSED_GRIDS; []: equal", above=0,
        item=1.0),
    "MODEL.RESIZE": Key("triangle", "triangle: antialiased, as JAX resizes; trilinear: plain interpolation",
        choices=("triangle", "trilinear")),
    "MODEL.REVERSE_WEIGHTS": Key("softmax",
        "write-back: A transposed; scaled: that times N/M; softmax: over compressed tokens",
        choices=("transpose", "scaled", "softmax")),
    "MODEL.HEADS": Key(["compressed", "lookup"], "token sets with a classifier; the loss is the mean over them",
        choices=(["compressed", "lookup"], ["compressed"], ["lookup"])),
    "MODEL.INFERENCE_HEAD": Key("average", "average of the heads' logits, or one head only",
        choices=("average", "compressed", "lookup")),
    "MODEL.POOL": Key("average",
        "average: norm, then mean; average_norm: mean, then norm; class: a token (vit); attentive: a query",
        choices=("average", "average_norm", "class", "attentive"), needs=(JOINT_VIT._replace(value="class"),)),
    "MODEL.TOKENS": Key("all", "all; resize: to COMPRESSED_GRID; random: a random part; merge: ToMe",
        choices=("all", "resize", "random", "merge"), needs=(JOINT_VIT,)),
    "MODEL.KEEP_TOKENS": Key(0, "TOKENS random: tokens kept; 0: as many as give a LookupViT's MACs", at_least=0),
    "MODEL.MERGE_TOKENS": Key(0, "TOKENS merge: tokens merged in each block; 0: as for KEEP_TOKENS", at_least=0),
    "MODEL.QK_NORM": Key(False, "layer norm on queries and keys, per head"),
    "MODEL.LAYER_SCALE": Key(0.0, "initial value of a learned factor on each residual branch; 0: none", at_least=0),
    "MODEL.ACTIVATION": Key("gelu", "activation of the MLPs; the approximations are for weights trained with them",
        choices=("gelu", "gelu_tanh", "quick_gelu")),
    "MODEL.NORM_EPS": Key(1e-06, "epsilon of the layer norms, as in ViT and MAE", at_least=0),
    "MODEL.DROP_PATH": Key(0.0, "stochastic depth of the last block, rising linearly from 0 at the first", at_least=0,
        below=1, needs=(Need({"MODEL.ARCH": models_with("drop_path")}),)),
    "MODEL.DROPOUT_RATE": Key(0.0, "dropout before each classifier", at_least=0, below=1),
    "MODEL.INIT_FROM": Key("", "weights to start from: of this project, timm, VideoMAE, ...; a file or Hub id",
        is_path=True),
    "MODEL.INIT_INFLATE": Key("central",
        "image kernels in video: into the central frame, or the average over the frames",
        choices=("central", "average")),
    "MODEL.FREEZE_ENCODER": Key(False, "train only the heads: a linear probe, or an attentive one with POOL attentive",
        needs=(HAS_ADAPTERS,)),
    "MODEL.FREEZE_SPATIAL": Key(False, "factorised: train only the temporal transformer and the heads",
        needs=(FACTORIZED,)),
    "MODEL.TEMPORAL_INIT": Key("random",
        "factorised: random; identity: the temporal transformer changes nothing at first",
        choices=("random", "identity"), needs=(FACTORIZED,)),
    "MODEL.ADAPTER": Key("none", "adaptformer, lora: train small additions to the frozen blocks, and the heads",
        choices=("none", "adaptformer", "lora"), needs=(HAS_ADAPTERS,)),
    "MODEL.ADAPTER_WIDTH": Key(0, "adapters: inner width, LoRA's rank; 0: 64 for adaptformer, 8 for lora", at_least=0),
    "MODEL.ADAPTER_SCALE": Key(0.0,
        "adapters: factor on their output, LoRA's alpha / rank; 0: 0.1 for adaptformer, 1 for lora", at_least=0),
    "MODEL.TRAIN_NORMS": Key(False, "train also the norms of frozen parts"),
    "DISTILL.TEACHER": Key("", "checkpoint of this project to learn from; empty: none", is_path=True),
    "DISTILL.WEIGHT": Key(0.5, "share of the teacher's soft targets in the classification loss", at_least=0, at_most=1),
    "DISTILL.TEMPERATURE": Key(1.0, "softmax temperature of teacher and student", above=0),
    "DISTILL.FEATURE_WEIGHT": Key(0.0,
        "weight of the distance from the compressed tokens to the teacher's resized tokens", at_least=0,
        needs=(HAS_GRIDS,)),
    "AUG.NUM_SAMPLE": Key(1, "repeated augmentation: clips drawn from a video each time it is opened", at_least=1),
    "AUG.RAND_AUGMENT_OPS": Key(0, "RandAugment: operations per clip, the same for all its frames; 0: off", at_least=0),
    "AUG.RAND_AUGMENT_MAGNITUDE": Key(7.0, "strength of the operations, on a scale of 0 to 10", at_least=0),
    "AUG.RAND_AUGMENT_STD": Key(0.5, "spread of the magnitude from clip to clip", at_least=0),
    "AUG.COLOR_JITTER": Key(0.0, "strength of brightness, contrast and saturation jitter; 0: off", at_least=0),
    "AUG.HUE_JITTER": Key(0.0, "largest rotation of the hue; 0.5: to the opposite color, 0: off", at_least=0,
        at_most=0.5),
    "AUG.COLOR_JITTER_PROB": Key(1.0, "probability of both jitters; ViViT: 0.4, 0.2 and 0.8", at_least=0, at_most=1),
    "AUG.RE_PROB": Key(0.0, "random erasing: probability per clip", at_least=0, at_most=1),
    "MIXUP.ENABLE": Key(False, "mix clips and labels within a batch"),
    "MIXUP.ALPHA": Key(0.8, "mixup's Beta parameter; 0: only cutmix", at_least=0),
    "MIXUP.CUTMIX_ALPHA": Key(1.0, "cutmix's Beta parameter; 0: only mixup", at_least=0),
    "MIXUP.PROB": Key(1.0, "probability that a batch is mixed", at_least=0, at_most=1),
    "MIXUP.SWITCH_PROB": Key(0.5, "probability of cutmix where both are on", at_least=0, at_most=1),
    "SOLVER.OPTIMIZING_METHOD": Key("adamw", "adamw or sgd (with Nesterov momentum)", choices=("adamw", "sgd")),
    "SOLVER.BASE_LR": Key(0.0005, "peak learning rate; scaled only by BASE_LR_BATCH", at_least=0),
    "SOLVER.BASE_LR_BATCH": Key(0, "batch size that learning rates are for: scaled by BATCH_SIZE / this; 0: not scaled",
        at_least=0),
    "SOLVER.COSINE_END_LR": Key(1e-6, "learning rate at the last step", at_least=0),
    "SOLVER.WARMUP_START_LR": Key(1e-6, "learning rate at the first step", at_least=0),
    "SOLVER.WARMUP_EPOCHS": Key(5.0, "linear warm-up; the rate changes at each step", at_least=0),
    "SOLVER.MAX_EPOCH": Key(30, "passes over the training list", at_least=1),
    "SOLVER.WEIGHT_DECAY": Key(0.05, "not applied to norms, biases and positions", at_least=0),
    "SOLVER.BETAS": Key([0.9, 0.999], "beta1 and beta2 of AdamW", at_least=0, below=1, lengths=(2,)),
    "SOLVER.MOMENTUM": Key(0.9, "momentum of SGD", at_least=0, below=1),
    "SOLVER.LAYER_DECAY": Key(1.0, "learning rate factor from each block to the one below it; 1: off", above=0,
        at_most=1),
    "SOLVER.FREEZE_EPOCHS": Key(0.0, "epochs of FREEZE_ENCODER or FREEZE_SPATIAL; 0: all", at_least=0),
    "SOLVER.CLIP_GRAD_L2NORM": Key(1.0, "largest norm of the gradient; 0: no clipping", at_least=0),
    "SOLVER.EMA_DECAY": Key(0.0, "decay of the averaged weights, used in validation, test and model.pt; 0: off",
        at_least=0, below=1),
    "SOLVER.LABEL_SMOOTHING": Key(0.0, "share of the target spread evenly over all classes", at_least=0, at_most=1),
}
# fmt: on
