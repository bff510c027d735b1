"""One training run: what it is made of, and where it starts."""

import logging
import os
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from lookupvit_video.checkpoints.async_checkpoint import Saver
from lookupvit_video.checkpoints.checkpoint import (
    Checkpoint,
    check_settings,
    checkpoint_seen_by_main,
    latest_checkpoint,
    library_versions,
    load_weights,
    set_aside_after,
    training_checkpoints,
)
from lookupvit_video.config import Section, differences, get_key
from lookupvit_video.data.loader import DataWatch, Loader, build_train_loader
from lookupvit_video.data.manifest import Video, load_split
from lookupvit_video.data.transforms import BatchAugment, mirrored_labels
from lookupvit_video.data.video_table import every_label
from lookupvit_video.decoding.backends import DecodeError, VideoReader, open_video
from lookupvit_video.distributed.parallel import parallelize
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.distributed.world import World, gather_objects, main_first
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.metrics import Metric, chosen_metrics
from lookupvit_video.log import Journal, forget_bad_videos
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import ModelSpec, build_model, for_pretraining, model_spec
from lookupvit_video.models.contract import VideoModel
from lookupvit_video.models.pretexts.masked import MaskedModel, masked_macs
from lookupvit_video.models.pretexts.moving import MovingModel, moving_macs
from lookupvit_video.models.pretexts.pretext import Pretext
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.preparation.coverage import warnings_of_run
from lookupvit_video.processes.stop_signals import StopSignals
from lookupvit_video.remote import joined
from lookupvit_video.seeding import mix_seed
from lookupvit_video.training.distill import Teacher, load_teacher
from lookupvit_video.training.ema import Ema
from lookupvit_video.training.losses import ClassificationLoss, build_loss, class_weights, videos_per_class
from lookupvit_video.training.optim import build_optimizer, build_schedule, learning_rate_factor
from lookupvit_video.training.state import TrainingState
from lookupvit_video.training.step_log import StepLog

logger = logging.getLogger(__name__)
# These decide which clips a step sees, so a run that resumes must have them unchanged.
FIXED_ON_RESUME = ("RNG_SEED", "TRAIN.BATCH_SIZE", "AUG.NUM_SAMPLE", "DATA.NUM_FRAMES", "DATA.TRAIN_CROP_SIZE",
                   "DATA.SAMPLER", "MODEL.TASK", "TRAIN.TASK", "SOLVER.OPTIMIZING_METHOD")  # fmt: skip
# These change no result, so a change is not reported.
IGNORED_ON_RESUME = ("OUTPUT_DIR", "DIST_TIMEOUT", "LOG_PERIOD", "TENSORBOARD.", "TEST.", "DATA_LOADER.", "DATA.PATH_",
                     "DATA.VIDEO_SECONDS", "TRAIN.CHECKPOINT_", "TRAIN.KEEP_", "TRAIN.ENABLE",
                     "MODEL.INIT_INFLATE")  # fmt: skip


@dataclass
class Run:
    """What the loop works on: the state, which checkpoints hold, and what it works with. Made by ``prepare``."""

    cfg: CfgNode
    world: World
    classes: list[str]
    train_videos: Sequence[Video]
    val_videos: Sequence[Video]
    model: VideoModel
    """The plain model; ``state.model`` is what ``parallelize`` made of it."""
    spec: ModelSpec
    state: TrainingState
    schedule: ParamScheduler
    loss: ClassificationLoss
    augment: BatchAugment
    metrics: list[Metric]
    steps: StepLog
    journal: Journal
    watch: DataWatch
    saver: Saver
    stop: StopSignals
    teacher: Teacher | None = None
    frozen_at_first: frozenset[str] = frozenset()
    """Parameters that train from SOLVER.FREEZE_EPOCHS on."""
    damaged_rows: set[int] = field(default_factory=set)
    """Training videos that are used although they are damaged."""
    dry: bool = False
    """Nothing is written."""
    _macs: dict[Budget | None, int] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the complete training."""
        epochs: int = self.cfg.SOLVER.MAX_EPOCH
        return self.state.steps_per_epoch * epochs

    @property
    def peak_rate(self) -> float:
        """The highest learning rate."""
        factor = learning_rate_factor(self.cfg.TRAIN.BATCH_SIZE, self.cfg.SOLVER.BASE_LR_BATCH)
        return float(self.cfg.SOLVER.BASE_LR * factor)

    @property
    def folder(self) -> Path:
        """OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return autocast_dtype(self.cfg.TRAIN.PRECISION, self.world.device)

    @property
    def looks_at_each_step(self) -> bool:
        """Whether a step whose loss or gradient is not finite is left out, so that the device must be waited for."""
        return self.cfg.TRAIN.MAX_BAD_STEPS > 0 or self.state.scaler.is_enabled()

    def budget(self, step: int) -> Budget | None:
        """Return the budget of a step, see ``draw_budget``; None: the model's own."""
        model, budgets = self.cfg.MODEL, self.spec.budgets
        if not budgets:
            return None
        return draw_budget(
            budgets[0], model.COMPRESSED_GRIDS, model.COMPRESSED_GRID_WEIGHTS, model.KEEPS, self.cfg.RNG_SEED, step
        )

    def clip_macs(self, budget: Budget | None) -> int:
        """Return the closed-form multiply-accumulates of a training forward pass of one clip; 0 for models without one.

        Args:
            budget: None: the config's.
        """
        if budget not in self._macs and isinstance(self.model, MaskedModel):
            self._macs[budget] = sum(self._masked_macs(budget or next(iter(self.spec.budgets), None)).values())
        elif budget not in self._macs:
            # all heads, not only those that answer
            every = {"inference_head": "average", "passed": self.cfg.MODEL.EXITS}
            parts = self.spec.budget_macs(budget, **every) if budget else self.spec.macs(**every)
            if isinstance(self.model, MovingModel):
                parts = moving_macs(parts, self.spec.shape.dim, len(self.model.decoder))
            self._macs[budget] = sum(parts.values())
        return self._macs[budget]

    def _masked_macs(self, budget: Budget | None) -> dict[str, int]:
        keys, model = self.cfg.PRETRAIN, {"heads": self.cfg.MODEL.HEADS, "compressed_grid": budget and budget.grid}
        return masked_macs(
            self.spec.shape, keys.MASK_RATIO, keys.DECODER_WIDTH, keys.DECODER_DEPTH, **(model if budget else {})
        )

    def new_log(self) -> None:
        """Begin a new log line."""
        self.state.losses = []
        self.steps = StepLog(self.world, self.train_videos, self.state.losses)

    def checkpoint(self, *, inference: bool = False) -> dict[str, Any]:
        """Return what ``save_checkpoint`` takes, for a file to resume from or for inference; all processes call it."""
        if not inference:
            self.steps.settle(self.state.step, tolerant=self.looks_at_each_step)
        state = self.state.inference_state() if inference else self.state.state_dict()
        return {"cfg": self.cfg, "classes": self.classes, **state}

    def close(self) -> None:
        """Finish writing what is being written, also after a failure."""
        self.saver.close()
        self.journal.close()


def draw_budget(
    default: Budget,
    grids: Sequence[Sequence[int]],
    weights: Sequence[float],
    keeps: Sequence[Sequence[float]],
    seed: int,
    step: int,
) -> Budget | None:
    """Return the budget of a step: the same in every process and accumulation part, and on resume.

    Args:
        default: has what is not drawn.
        grids, weights, keeps: MODEL.COMPRESSED_GRIDS, COMPRESSED_GRID_WEIGHTS and KEEPS; neither grids nor keeps: None,
            the model's own budget.
        seed: RNG_SEED.
    """
    generator = random.Random(mix_seed(seed, 2, step))
    if grids:
        default = default._replace(grid=tuple(generator.choices(grids, weights or None)[0]))
    if keeps:
        default = default._replace(keep=tuple(generator.choice(keeps)))
    return default if grids or keeps else None


def describe_world(
    world: World, *, batch_size: int, parts: int, parallel: str, dtype: torch.dtype, peak_rate: float, num_videos: int
) -> list[str]:
    """Return a line for each process and one for what a step is; all processes must call it.

    Args:
        parts: accumulation steps.
        num_videos: of the training list.
    """
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    places = gather_objects(f"host {socket.gethostname()}, device {world.device} {gpu}".rstrip(), world)
    kind = "" if world.size == 1 else f", {parallel}"
    return [
        *(f"process {rank} of {world.size}: {place}" for rank, place in enumerate(places)),
        f"a step: {batch_size} clips = world size {world.size} x {parts} accumulation steps x "
        f"{batch_size // (world.size * parts)}{kind}, {str(dtype).removeprefix('torch.')}; peak learning rate "
        f"{peak_rate:g} for any world size; {num_videos} training videos",
    ]


def newest_checkpoint(folder: str, world: World, *, resume: bool = True) -> Checkpoint | None:
    """Return the newest sound training checkpoint in OUTPUT_DIR, the same in all processes: the main one chooses.

    Args:
        resume: TRAIN.AUTO_RESUME.

    Raises:
        UserError: no checkpoint can be read, not all machines see it, or one exists but ``resume`` is off.
    """
    if not resume:
        if training_checkpoints(folder):
            raise UserError(
                f"OUTPUT_DIR {folder} has checkpoints, but TRAIN.AUTO_RESUME is False: those of a new run would mix "
                "with them; choose another OUTPUT_DIR or remove them"
            )
        return None
    found = latest_checkpoint(folder) if world.is_main else None
    chosen = gather_objects(found and str(found.path), world)[0]
    return checkpoint_seen_by_main(Path(chosen)) if chosen and not world.is_main else found


def starting_point(cfg: CfgNode, classes: list[str], model: nn.Module, world: World) -> Checkpoint | None:
    """Load the weights that the run starts from, in order of priority.

    1. The newest training checkpoint in OUTPUT_DIR whose checksums are right (TRAIN.AUTO_RESUME), with all of its
       state: the run resumes, also in the middle of an epoch. A damaged one is named and the one before it is taken;
       if all are damaged the run does not start. Returned.
    2. MODEL.INIT_FROM: as many weights as fit, this project's or other people's; the run begins at step 0.
    3. Random weights from RNG_SEED.

    best.pt and model.pt are results, from which no run resumes; to start from one, see 2.
    """
    resumed = newest_checkpoint(cfg.OUTPUT_DIR, world, resume=cfg.TRAIN.AUTO_RESUME)
    if resumed:
        if resumed.classes != classes:
            raise UserError(f"{resumed.path}: its classes are not those of the data; choose another OUTPUT_DIR")
        for name in FIXED_ON_RESUME:
            before, now = get_key(resumed.config, name), get_key(cfg, name)
            if before != now:
                raise UserError(
                    f"{resumed.path}: {name} was {before} and is now {now}; this would change the training steps. "
                    "Keep it, or choose another OUTPUT_DIR"
                )
        _check_source(resumed.path, resumed.config.MODEL, cfg.MODEL)
        check_settings(model_spec(cfg).settings_not_in_weights, resumed)
        load_weights(model, resumed)
        logger.info("resume: %s, step %d", resumed.path, resumed.step)
    elif cfg.MODEL.INIT_FROM:
        target = model.encoder if isinstance(model, Pretext) else model
        pixels = (cfg.DATA.MEAN, cfg.DATA.STD)
        logger.info("%s", init_from(target, cfg.MODEL.INIT_FROM, inflate=cfg.MODEL.INIT_INFLATE, pixels=pixels))
    return resumed


def _check_source(path: Path, then: Any, now: Any) -> None:
    """Raise UserError where a run that resumes is asked to start from other weights than it did.

    Args:
        then, now: the MODEL keys of the checkpoint and of the config.
    """
    sources = [keys.INIT_FROM and os.path.abspath(os.path.expanduser(keys.INIT_FROM)) for keys in (then, now)]
    same = sources[0] == sources[1]
    if same and (not now.INIT_FROM or then.INIT_INFLATE == now.INIT_INFLATE):
        return
    name = "INIT_INFLATE" if same else "INIT_FROM"
    raise UserError(
        f"{path}: this run was started with MODEL.{name} {then[name]!r}, the config says {now[name]!r}, which a run "
        "that resumes does not read; choose another OUTPUT_DIR to start from it, or keep the former value to resume"
    )


def report_changes(run: Run, resumed: Checkpoint, threads: list[int]) -> None:
    """Log what differs between a checkpoint and the run that resumes from it.

    Args:
        threads: torch's threads in each process.
    """
    size, then = run.world.size, resumed.state
    videos = then.get("position", {}).get("videos", len(run.train_videos))
    if videos != len(run.train_videos):
        logger.warning(
            "the training list had %d videos and has %d now: %d of %d steps are done, and the sample order will differ",
            videos, len(run.train_videos), run.state.step, run.total_steps,
        )  # fmt: skip
    versions = library_versions()
    others = [f"{name} {old}, now {versions.get(name)}" for name, old in resumed.versions.items()
              if versions.get(name) != old]  # fmt: skip
    if others:
        logger.warning("%s was written with %s: results may differ in the last bits", resumed.path, ", ".join(others))
    changed = [
        f"{name} {before}, now {now}" for name, before, now in differences(resumed.config, run.cfg)
        if not name.startswith(IGNORED_ON_RESUME)
    ]  # fmt: skip
    if changed:
        logger.warning("these settings changed; using the new values: %s", "; ".join(changed))
    before = then.get("world_size", size)
    if before != size:
        logger.info("world size was %d and is now %d; batch size and schedule do not change", before, size)
    old = then.get("threads", threads)
    if before == size and old != threads and run.world.device.type == "cpu":
        logger.warning(
            "%s was computed with %s threads, this run has %s: results may differ in the last bits; set "
            "OMP_NUM_THREADS to the former number",
            resumed.path, *(", ".join(map(str, numbers)) for numbers in (old, threads)),
        )  # fmt: skip


def _opened(video: Video, backend: str, timeout: float) -> VideoReader:
    return open_video(video.path, backend, timeout=timeout, frame_rate=video.fps or 0.0, remote=True)


def usual_seconds(videos: Sequence[Video], backend: str, timeout: float) -> float:
    """Return the median length in seconds of up to 16 videos, taken evenly from a list; 0: none can be read."""
    lengths = []
    for video in videos[:: len(videos) // 16 + 1]:
        with suppress(DecodeError), _opened(video, backend, timeout) as reader:
            start, end = video.span(reader.duration)
            lengths.append(end - start)
    return round(median(lengths), 2) if lengths else 0.0


def prepare(cfg: CfgNode, classes: list[str], world: World, stop: StopSignals, *, dry: bool = False) -> Run:
    """Make everything of a run, up to the point where it starts or resumes.

    Args:
        dry: write nothing.
    """
    metrics = chosen_metrics(cfg.TEST.METRICS, len(classes), multi_label=cfg.MODEL.TASK == "multi_label")
    if cfg.TRAIN.BEST_METRIC not in [metric.name for metric in metrics]:
        raise UserError(f"TRAIN.BEST_METRIC {cfg.TRAIN.BEST_METRIC} says nothing of {len(classes)} classes; set top1")
    load = partial(load_split, cfg, classes=classes)
    train_videos, val_videos = _lists(load, world, validates=cfg.TRAIN.EVAL_PERIOD > 0)
    if world.is_main and cfg.TRAIN.TASK == "classify":
        _warn_of_lists(cfg.DATA, classes, train_videos, val_videos, tests=cfg.TEST.ENABLE)
    torch.manual_seed(mix_seed(cfg.RNG_SEED, 0))
    if cfg.DATA.SAMPLING == "segments" and not cfg.DATA.VIDEO_SECONDS and world.is_main:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATA.VIDEO_SECONDS = usual_seconds(train_videos, cfg.DATA.DECODING_BACKEND, cfg.DATA.DECODE_TIMEOUT)
        cfg.freeze()
    spec, model = model_spec(cfg), build_model(cfg)
    if cfg.TRAIN.TASK != "classify":
        model = for_pretraining(model, cfg.TRAIN.TASK, cfg.PRETRAIN)
    resumed = starting_point(cfg, classes, model, world)
    parallel_model = parallelize(model.to(world.device), cfg, world)
    writes, train, solver, mix = world.is_main and not dry, cfg.TRAIN, cfg.SOLVER, cfg.MIXUP
    float16 = autocast_dtype(train.PRECISION, world.device) == torch.float16
    state = TrainingState(
        model=parallel_model, optimizer=build_optimizer(cfg, model), world=world, num_videos=len(train_videos),
        scaler=torch.amp.GradScaler(world.device.type, enabled=float16),
        steps_per_epoch=len(train_videos) // (train.BATCH_SIZE // cfg.AUG.NUM_SAMPLE), best_metric=train.BEST_METRIC,
    )  # fmt: skip
    augment = BatchAugment(
        cfg.AUG.RE_PROB, mix.PROB if mix.ENABLE else None, (mix.ALPHA, mix.CUTMIX_ALPHA), mix.SWITCH_PROB
    )
    run = Run(
        cfg=cfg, world=world, classes=classes, train_videos=train_videos, val_videos=val_videos, model=model, spec=spec,
        state=state, augment=augment, metrics=metrics, stop=stop, dry=dry,
        schedule=build_schedule(
            solver.WARMUP_START_LR, solver.BASE_LR, solver.COSINE_END_LR, warmup_epochs=solver.WARMUP_EPOCHS,
            epochs=solver.MAX_EPOCH, factor=learning_rate_factor(train.BATCH_SIZE, solver.BASE_LR_BATCH),
        ),
        loss=_loss(solver, cfg.DATA.RANDOM_FLIP, classes, train_videos, world.device, cfg.MODEL.TASK == "multi_label"),
        steps=StepLog(world, train_videos, state.losses),
        journal=Journal(cfg.OUTPUT_DIR, tensorboard=cfg.TENSORBOARD.ENABLE, enabled=writes,
                        step=resumed.step if resumed else 0),
        watch=DataWatch(cfg.DATA_LOADER.NUM_WORKERS, cfg.DATA.CACHE_VIDEOS),
        saver=Saver(cfg.OUTPUT_DIR, steps=train.CHECKPOINT_STEPS, minutes=train.CHECKPOINT_MINUTES,
                    keep=train.KEEP_CHECKPOINTS, enabled=writes),
        teacher=load_teacher(cfg, classes, world.device) if cfg.DISTILL.TEACHER else None,
        frozen_at_first=frozenset(
            name for name, _ in model.named_parameters() if solver.FREEZE_EPOCHS and spec.is_frozen(name)
        ),
    )  # fmt: skip
    if solver.EMA_DECAY:
        state.ema = Ema(parallel_model, solver.EMA_DECAY)
    if resumed:
        _resume(run, resumed, writes)
    elif writes:
        forget_bad_videos(run.folder, ("train", "val"), Path(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.SKIP_LIST))
    return run


def _lists(load: Callable[..., Sequence[Video]], world: World, *, validates: bool) -> list[Sequence[Video]]:
    """Read the lists for training and, if any, validation; ``load``: see ``load_split``."""
    train = main_first(world, lambda main: load(split="train", check=main))
    return [train, main_first(world, lambda main: load(split="val", check=main)) if validates else []]


def _warn_of_lists(
    DATA: Section, classes: list[str], train: Sequence[Video], val: Sequence[Video], *, tests: bool
) -> None:
    """Log what is odd about the lists of a run."""
    test_list = joined(DATA.PATH_TO_DATA_DIR, DATA.TEST_LIST) if tests else ""
    for warning in warnings_of_run(classes, train, val, test_list, DATA.PATH_PREFIX):
        logger.warning("%s: %s", DATA.TRAIN_LIST, warning)


def _resume(run: Run, resumed: Checkpoint, writes: bool) -> None:
    """Take up the state of a checkpoint."""
    if writes:
        set_aside_after(run.cfg.OUTPUT_DIR, resumed.step)
    run.state.load_state_dict(resumed)
    threads = gather_objects(torch.get_num_threads(), run.world)
    if run.world.is_main:
        report_changes(run, resumed, threads)


def _loss(
    solver: Section,
    flip: bool,
    classes: Sequence[str],
    videos: Sequence[Video],
    device: torch.device,
    multi_label: bool,
) -> ClassificationLoss:
    mirror = mirrored_labels(classes)[0] if flip else None
    counts = videos_per_class(every_label(videos), len(classes), mirror)
    weights = class_weights(solver.CLASS_WEIGHTS, counts, classes, len(videos) if multi_label else None)
    return build_loss(
        solver.LOSS, counts, weights, smoothing=solver.LABEL_SMOOTHING, focal_gamma=solver.FOCAL_GAMMA,
        adjustment=solver.LOGIT_ADJUSTMENT, device=device, multi_label=multi_label,
    )  # fmt: skip


def train_batches(run: Run) -> Loader:
    """Return the loader of all remaining steps."""
    cfg, world = run.cfg, run.world
    mirror, reason = mirrored_labels(run.classes) if cfg.DATA.RANDOM_FLIP else (None, "off, as DATA.RANDOM_FLIP says")
    logger.info("flip: %s", reason)
    return build_train_loader(
        cfg, run.train_videos, total_steps=run.total_steps, start_step=run.state.step, mirror=mirror, rank=world.rank,
        world_size=world.size, pin_memory=world.device.type == "cuda",
    )  # fmt: skip
