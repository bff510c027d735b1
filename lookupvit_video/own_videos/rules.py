"""The rules by which settings follow from videos, machine and time; docs/own_videos.md has their table.

Each rule decides one key, from the facts and from the keys decided before it. Its docstring is its row of the table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lookupvit_video.own_videos.facts import Machine, VideoFacts
from lookupvit_video.registry import models_with

WORKER_BYTES = 1 << 30  # of a decoding worker: its libraries, and batches on their way
START_SECONDS = 5.0  # before the first step and after the last one, with pictures and checkpoints
MIN_EPOCHS = 20
"""Where there is time for fewer, a smaller scale is taken."""


class Scale(NamedTuple):
    """A size of clip and model."""

    from_videos: int
    """In training."""
    crop: int
    patch: int
    dim: int
    depth: int
    heads: int


SCALES = {
    "cpu": (Scale(1000, 112, 16, 192, 4, 3), Scale(150, 96, 16, 144, 3, 3), Scale(0, 64, 16, 96, 2, 4)),
    "cuda": (Scale(2000, 224, 16, 384, 12, 6), Scale(150, 160, 16, 192, 6, 3), Scale(0, 112, 16, 192, 4, 3)),
}
"""From the largest to the smallest, by device."""


class Costs(NamedTuple):
    """What was measured on this machine, in seconds and bytes."""

    read: float
    """To read the clips of a video in training."""
    again: float
    """The same for a video that was read before: less if decoded videos are kept in memory."""
    clip: float
    """A training step, without reading, by the clips in it."""
    view: float
    """A forward pass of one view in validation and test."""
    clip_bytes: int
    """That forward and backward pass of one clip take at most."""


@dataclass(frozen=True)
class Known:
    """What a rule may look at."""

    facts: VideoFacts
    machine: Machine
    scale: Scale
    values: Mapping[str, Any]
    """Keys that were given, or decided before."""
    costs: Costs | None = None
    """None: not measured yet."""
    seconds: float = 0.0
    """For training and test."""

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


Choice = tuple[Any, str]
RULES: dict[str, Callable[[Known], Choice]] = {}
_MEASURED: set[str] = set()


def _rule(key: str, *, measured: bool = False) -> Callable[[Callable[[Known], Choice]], Callable[[Known], Choice]]:
    """Register the rule of a key; rules apply in the order in which they are written.

    Args:
        measured: it needs ``Known.costs``.
    """

    def add(function: Callable[[Known], Choice]) -> Callable[[Known], Choice]:
        RULES[key] = function
        if measured:
            _MEASURED.add(key)
        return function

    return add


def choose_settings(known: Known) -> dict[str, Choice]:
    """Return (value, reason) of each key that is not given; without costs, of those that need none."""
    values, chosen = dict(known.values), dict[str, Choice]()
    for key, function in RULES.items():
        if key not in values and (known.costs or key not in _MEASURED):
            chosen[key] = function(Known(known.facts, known.machine, known.scale, values, known.costs, known.seconds))
            values[key] = chosen[key][0]
    return chosen


@_rule("DATA.TRAIN_CROP_SIZE")
def _crop(known: Known) -> Choice:
    """The scale's: on a CPU 64, from 150 training videos 96, from 1000 112; on a GPU 112, 160 from 150, 224 from 2000.
    A smaller one if the videos are smaller, or if there is time for fewer than 20 epochs."""
    side = known.facts.short_side
    patch = known.values.get("MODEL.TUBELET", [2, 16 if side >= 64 else 8])[1]
    crop = min(known.scale.crop, max(1, side // patch) * patch)
    return crop, f"{known.facts.train} training videos, of {side} pixels on the short side"


@_rule("DATA.TEST_CROP_SIZE")
def _test_crop(known: Known) -> Choice:
    """As TRAIN_CROP_SIZE."""
    return known["DATA.TRAIN_CROP_SIZE"], "as in training"


@_rule("DATA.NUM_FRAMES")
def _frames(known: Known) -> Choice:
    """16; 8 if the median video has fewer than 16 frames."""
    count = known.facts.seconds * known.facts.fps
    return (16, "for a short action") if count >= 16 else (8, f"the median video has {count:.0f} frames")


@_rule("DATA.SAMPLING")
def _sampling(known: Known) -> Choice:
    """`segments` (a clip is spread over the complete video) for videos up to 5 s, else `clip`."""
    seconds, short = known.facts.seconds, known.facts.seconds <= 5
    shows = "all" if short else "a part"
    return "segments" if short else "clip", f"the median video lasts {seconds:.3g} s, of which a clip shows {shows}"


@_rule("DATA.SAMPLING_RATE")
def _rate(known: Known) -> Choice:
    """A clip lasts 2.5 s, with no frame twice."""
    fps, frames = known["DATA.TARGET_FPS"], known["DATA.NUM_FRAMES"]
    rate = max(1, round(max(2.5 * fps / frames, fps / known.facts.fps)))
    unused = ", without effect on segments" if known["DATA.SAMPLING"] == "segments" else ""
    return rate, f"a clip lasts {rate * frames / fps:.2g} s{unused}"


@_rule("TEST.NUM_ENSEMBLE_VIEWS")
def _views(known: Known) -> Choice:
    """2 for segments; for clips as many as cover the median video, up to 5."""
    if known["DATA.SAMPLING"] == "segments":
        return 2, "each view is spread over the complete video"
    span = known["DATA.NUM_FRAMES"] * known["DATA.SAMPLING_RATE"] / known["DATA.TARGET_FPS"]
    return min(5, max(1, math.ceil(known.facts.seconds / span))), "spread over the median video"


@_rule("MODEL.INPUT")
def _input(known: Known) -> Choice:
    """`changes` (only what moves is seen) up to 500 training videos of a model with tubelets, else `frames`."""
    if known["MODEL.ARCH"] not in models_with("tubelets"):
        return "frames", f"all that {known['MODEL.ARCH']} takes"
    few = known.facts.train <= 500
    return ("changes", "few videos: backgrounds are learned too easily") if few else ("frames", "many videos")


@_rule("MODEL.TUBELET")
def _tubelet(known: Known) -> Choice:
    """[2, p, p], where p is 16, or what gives at least 4 x 4 tokens."""
    crop = known["DATA.TRAIN_CROP_SIZE"]
    patch = next(patch for patch in (16, 8, 4, 2, 1) if crop % patch == 0 and crop // patch >= min(4, crop))
    return [2 - known["DATA.NUM_FRAMES"] % 2, patch, patch], f"{crop // patch} x {crop // patch} tokens per time index"


@_rule("MODEL.TOKENIZER")
def _tokenizer(known: Known) -> Choice:
    """`convolutional` below 150 training videos, if 4 divides p and the run is not pre-training; else `linear`."""
    if known["MODEL.ARCH"] not in models_with("tubelets"):
        return "linear", f"of no effect on {known['MODEL.ARCH']}"
    fits = known["MODEL.TUBELET"][1] % 4 == known["MODEL.TUBELET"][2] % 4 == 0 and known["TRAIN.TASK"] == "classify"
    few = known.facts.train < 150  # measured with 45; steps take two to three times as long
    return ("convolutional" if fits and few else "linear"), f"{known.facts.train} training videos"


@_rule("MODEL.COMPRESSED_GRID")
def _grid(known: Known) -> Choice:
    """Half of the lookup tokens in each direction."""
    t, h, w = known["MODEL.TUBELET"]
    crop = known["DATA.TRAIN_CROP_SIZE"]
    tokens = (known["DATA.NUM_FRAMES"] // t, crop // h, crop // w)
    return [max(1, count // 2) for count in tokens], f"half of the lookup tokens' grid {list(tokens)}"


@_rule("MODEL.DIM")
def _dim(known: Known) -> Choice:
    """The scale's: on a CPU 96, 144 or 192; on a GPU 192 or 384."""
    return known.scale.dim, f"{known.facts.train} training videos on a {known.machine.device}"


@_rule("MODEL.DEPTH")
def _depth(known: Known) -> Choice:
    """The scale's: on a CPU 2, 3 or 4; on a GPU 4, 6 or 12."""
    return known.scale.depth, "with the width"


@_rule("MODEL.NUM_HEADS")
def _heads(known: Known) -> Choice:
    """The scale's: 3 to 6."""
    return known.scale.heads, "with the width"


@_rule("DATA.CACHE_SHORT_SIDE")
def _cache_side(known: Known) -> Choice:
    """1.5 x TRAIN_CROP_SIZE."""
    return round(1.5 * known["DATA.TRAIN_CROP_SIZE"]), "room for random crops"


@_rule("DATA.CACHE_VIDEOS")
def _cache(known: Known) -> Choice:
    """True on a CPU for videos up to 30 s, if they take less than a quarter of the free memory, decoded and reduced."""
    facts, memory = known.facts, known.machine.memory
    share = min(1.0, (known["DATA.CACHE_SHORT_SIDE"] or math.inf) / facts.short_side)
    needed = facts.decoded_bytes * share**2 * (facts.train + facts.val + facts.test)
    keep = known.machine.device == "cpu" and facts.seconds <= 30 and needed < memory / 4
    return (
        keep,
        f"{facts.seconds:.3g} s each; they would take {needed / 2**30:.2g} GiB of {memory / 2**30:.3g} GiB free",
    )


@_rule("DATA_LOADER.NUM_WORKERS")
def _workers(known: Known) -> Choice:
    """0 for videos in memory; else a worker for each core but one, up to 16, if there is 1 GiB free for each."""
    if known["DATA.CACHE_VIDEOS"]:
        return 0, "videos in memory are read in one process"
    cores, memory = known.machine.cores, known.machine.memory
    return max(1, min(16, cores - 1, memory // 2 // WORKER_BYTES)), f"{cores} cores, {memory / 2**30:.3g} GiB free"


@_rule("AUG.NUM_SAMPLE")
def _repeats(known: Known) -> Choice:
    """4 clips of each video that is read, up to 32 training videos, or for videos above 30 s that are not in memory; 2
    up to 64, or where videos are not in memory; else 1."""
    train, cached = known.facts.train, known["DATA.CACHE_VIDEOS"]
    if train <= 32 or (not cached and known.facts.seconds > 30):
        return 4, f"{train} training videos of {known.facts.seconds:.3g} s"
    return (1 if cached and train > 64 else 2), f"{train} training videos" + ("" if cached else ", read from disk")


@_rule("TRAIN.BATCH_SIZE")
def _batch(known: Known) -> Choice:
    """8 clips, from 500 clips an epoch 16, from 2000 32; no more than there are."""
    facts, repeats, processes = known.facts, known["AUG.NUM_SAMPLE"], known.machine.processes
    clips = facts.train * repeats
    wanted = 32 if clips >= 2000 else 16 if clips >= 500 else 8
    videos = max(1, min(wanted // repeats, facts.train) // processes) * processes
    return videos * repeats, f"{clips} clips an epoch"


@_rule("SOLVER.BASE_LR")
def _learning_rate(known: Known) -> Choice:
    """1e-3 up to width 192, 5e-4 above."""
    return (1e-3 if known["MODEL.DIM"] <= 192 else 5e-4), f"width {known['MODEL.DIM']}"


@_rule("TRAIN.ACCUMULATION_STEPS", measured=True)
def _parts(known: Known) -> Choice:
    """As few as keep forward and backward pass within 40 % of the free memory."""
    assert known.costs
    memory = known.machine.gpu_memory or known.machine.memory
    share = known["TRAIN.BATCH_SIZE"] // known.machine.processes // known["AUG.NUM_SAMPLE"]
    needed = known["TRAIN.BATCH_SIZE"] // known.machine.processes * known.costs.clip_bytes
    parts = next((n for n in range(1, share) if share % n == 0 and needed / n < 0.4 * memory), max(1, share))
    return parts, f"a part takes {needed / parts / 2**30:.2g} GiB, {memory / 2**30:.3g} GiB free"


@_rule("SOLVER.MAX_EPOCH", measured=True)
def _epochs(known: Known) -> Choice:
    """As many as the time allows by what was measured; up to 60, or more up to 4000 clips."""
    clips = known.facts.train * known["AUG.NUM_SAMPLE"]
    enough = max(60, 4000 // clips)
    first, epoch = fixed_seconds(known), epoch_seconds(known)
    allowed = max(1, int((0.9 * known.seconds - first) / epoch))
    why = "enough" if enough <= allowed else f"as many as fit into {known.seconds / 60:.2g} minutes"
    return min(enough, allowed), f"{why}; an epoch takes {epoch:.2g} s"


@_rule("SOLVER.WARMUP_EPOCHS", measured=True)
def _warmup(known: Known) -> Choice:
    """A tenth of MAX_EPOCH."""
    return known["SOLVER.MAX_EPOCH"] / 10, "a tenth of the epochs"


@_rule("TRAIN.EVAL_PERIOD", measured=True)
def _eval_period(known: Known) -> Choice:
    """Ten validations."""
    return math.ceil(known["SOLVER.MAX_EPOCH"] / 10), "ten validations"


@_rule("TRAIN.CHECKPOINT_PERIOD", measured=True)
def _checkpoint_period(known: Known) -> Choice:
    """As EVAL_PERIOD."""
    return max(1, known["TRAIN.EVAL_PERIOD"]), "with each validation"


@_rule("LOG_PERIOD", measured=True)
def _log_period(known: Known) -> Choice:
    """Each epoch, and at least every 50 steps."""
    steps = known.facts.train * known["AUG.NUM_SAMPLE"] // known["TRAIN.BATCH_SIZE"]
    return max(1, min(50, steps)), f"{steps} steps an epoch"


def epoch_seconds(known: Known) -> float:
    """Return the predicted time of an epoch of videos that were read before, with its share of validation."""
    facts, costs, workers = known.facts, known.costs, known["DATA_LOADER.NUM_WORKERS"]
    assert costs
    compute = facts.train * known["AUG.NUM_SAMPLE"] * costs.clip / known.machine.processes
    check = facts.val * (costs.again / known["AUG.NUM_SAMPLE"] / max(1, workers) + costs.view)
    period = max(1, known.values.get("TRAIN.EVAL_PERIOD", 6))
    return float(_overlapped(known, facts.train * costs.again, compute) + check / period)


def _overlapped(known: Known, reading: float, compute: float) -> float:
    """Return the time of reading (of one core) and computing (of all cores, or a GPU) at the same time."""
    machine, workers = known.machine, known["DATA_LOADER.NUM_WORKERS"] * known.machine.processes
    if not workers:
        return float(reading / machine.processes + compute)
    shared = compute + reading / (machine.cores * machine.processes) if machine.device == "cpu" else compute
    return float(max(reading / workers, shared))


def fixed_seconds(known: Known) -> float:
    """Return the predicted time of all but the epochs: start, first reading, test."""
    facts, costs, workers = known.facts, known.costs, max(1, known["DATA_LOADER.NUM_WORKERS"])
    assert costs
    first = max(0.0, costs.read - costs.again) * (facts.train + facts.val) / workers
    test = facts.test * (costs.again / workers + known["TEST.NUM_ENSEMBLE_VIEWS"] * costs.view)
    return float(START_SECONDS + first + test)
