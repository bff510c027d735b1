"""One training run: what it is made of, where it starts, and its state, which a checkpoint holds."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

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
from lookupvit_video.checkpoints.random_state import random_state, restore_random_state
from lookupvit_video.config import differences, get_key
from lookupvit_video.data.loader import DataWatch, Loader, build_train_loader
from lookupvit_video.data.manifest import Video, load_split
from lookupvit_video.data.transforms import BatchAugment, mirrored_labels
from lookupvit_video.distributed.parallel import autocast_dtype, full_state, load_optimizer, parallelize
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import UserError
from lookupvit_video.files import joined
from lookupvit_video.log import Journal, forget_bad_videos
from lookupvit_video.models.build import build_model
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.preparation.coverage import warnings_of_run
from lookupvit_video.processes.stop_signals import StopSignals
from lookupvit_video.seeding import mix_seed
from lookupvit_video.training.distill import Teacher, load_teacher
from lookupvit_video.training.ema import Ema
from lookupvit_video.training.optim import build_optimizer, build_schedule
from lookupvit_video.training.step_log import StepLog
from lookupvit_video.training.utilisation import clip_macs

logger = logging.getLogger(__name__)
# What decides which clips a step sees; a run that goes on must have it as it was.
FIXED_ON_RESUME = ("RNG_SEED", "TRAIN.BATCH_SIZE", "AUG.NUM_SAMPLE", "DATA.NUM_FRAMES", "DATA.TRAIN_CROP_SIZE",
        "SOLVER.OPTIMIZING_METHOD")  # fmt: skip
# What changes no result, so that nothing is said where it is another than before.
IGNORED_ON_RESUME = ("OUTPUT_DIR", "DIST_TIMEOUT", "LOG_PERIOD", "TENSORBOARD.", "TEST.", "DATA_LOADER.", "DATA.PATH_",
             "TRAIN.CHECKPOINT_", "TRAIN.KEEP_", "TRAIN.ENABLE", "MODEL.INIT_INFLATE")  # fmt: skip


@dataclass
class Run:
    """What the loop works on; made by ``prepare``."""

    cfg: CfgNode
    world: World
    classes: list[str]
    train_videos: list[Video]
    val_videos: list[Video]
    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: ParamScheduler
    scaler: torch.amp.GradScaler
    augment: BatchAugment
    steps: StepLog
    journal: Journal
    watch: DataWatch
    saver: Saver
    stop: StopSignals
    teacher: Teacher | None = None
    ema: Ema | None = None
    step: int = 0
    """Optimiser steps done."""
    best_top1: float = -1.0
    bad_rows: set[int] = field(default_factory=set)
    damaged_rows: set[int] = field(default_factory=set)
    """Training videos that could not be read."""
    bad_steps: int = 0
    """Steps that were left out because their numbers were not finite."""
    to_validate: bool = False
    """An epoch is done, but not what comes after it."""
    dry: bool = False
    """Nothing is written."""
    _macs: dict[tuple[int, ...] | None, int] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of a pass over the training list."""
        return len(self.train_videos) // (self.cfg.TRAIN.BATCH_SIZE // self.cfg.AUG.NUM_SAMPLE)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self.cfg.SOLVER.MAX_EPOCH

    def clip_macs(self, grid: tuple[int, ...] | None) -> int:
        """Return ``utilisation.clip_macs``, counted once for each grid."""
        if grid not in self._macs:
            self._macs[grid] = clip_macs(self.cfg, grid)
        return self._macs[grid]

    @property
    def folder(self) -> Path:
        """OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return autocast_dtype(self.cfg.TRAIN.PRECISION, self.world.device)

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model have the weights that are tested and handed out: the averaged ones where there are such."""
        return self.ema.in_place() if self.ema else nullcontext()

    def weights_for_use(self) -> dict[str, Tensor]:
        """Return these weights; all processes must call it, and the main one gets them."""
        with self.averaged():
            return full_state(self.parallel_model)[0]

    def inference_state(self) -> dict[str, Any]:
        """Return what model.pt and best.pt hold; called like ``weights_for_use``."""
        return {
            "cfg": self.cfg,
            "classes": self.classes,
            "model": self.weights_for_use(),
            "step": self.step,
            "best_top1": self.best_top1,
        }

    def training_state(self) -> dict[str, Any]:
        """Return all that going on needs, as ``save_checkpoint`` takes it; all processes must call it."""
        self.steps.settle(self.step, tolerant=self.looks_at_each_step)
        weights, optimizer = full_state(self.parallel_model, self.optimizer)
        epoch, within = divmod(self.step, self.steps_per_epoch)
        of_each = gather_objects((random_state(self.world.device), self.bad_rows, torch.get_num_threads()), self.world)
        state = {
            # The loader's position follows from the step: see data.loader.TrainBatchSampler.
            "position": {"epoch": epoch, "step_in_epoch": within, "videos": len(self.train_videos)},
            "to_validate": self.to_validate,
            "scaler": self.scaler.state_dict(),
            "random": [state for state, _, _ in of_each],
            "losses": self.steps.settled,
            "bad_rows": sorted(set().union(*(rows for _, rows, _ in of_each))),
            "bad_steps": self.bad_steps,
            "world_size": self.world.size,
            "threads": [threads for _, _, threads in of_each],
        }
        return {
            "cfg": self.cfg,
            "classes": self.classes,
            "model": weights,
            "optimizer": optimizer,
            "ema": self.weights_for_use() if self.ema else None,
            "step": self.step,
            "best_top1": self.best_top1,
            "state": state,
        }

    def close(self) -> None:
        """Let what is being written come to its end, whatever happened to the run."""
        self.saver.close()
        self.journal.close()

    @property
    def looks_at_each_step(self) -> bool:
        """Whether a step whose numbers are not finite is left out, so that the device must be waited for."""
        return self.cfg.TRAIN.MAX_BAD_STEPS > 0 or self.scaler.is_enabled()

    def resume(self, resumed: Checkpoint) -> None:
        """Put back everything but the weights, which the model began with; all processes must call it."""
        state = resumed.state
        load_optimizer(self.parallel_model, self.optimizer, resumed.optimizer or {"state": {}, "param_groups": []})
        if self.ema and resumed.ema:
            with self.ema.in_place():
                set_model_state_dict(
                    self.parallel_model, {**resumed.ema}, options=StateDictOptions(full_state_dict=True)
                )
        elif self.ema:
            logger.warning("%s has no averaged weights; SOLVER.EMA_DECAY begins with those of now", resumed.path)
        self.step, self.best_top1 = resumed.step, resumed.best_top1
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.steps.settled = [(loss, norm) for loss, norm in state.get("losses", [])]
        same_list = state.get("position", {}).get("videos") == len(self.train_videos)
        self.bad_rows = set(state.get("bad_rows", [])) if same_list else set()  # rows of another list are other videos
        self.bad_steps = state.get("bad_steps", 0)
        self.to_validate = state.get("to_validate", False)
        restore_random_state(state.get("random", []), self.world)
        threads = gather_objects(torch.get_num_threads(), self.world)
        if self.world.is_main:
            self._tell_what_differs(resumed, threads)

    def _tell_what_differs(self, resumed: Checkpoint, threads: list[int]) -> None:
        videos = resumed.state.get("position", {}).get("videos", len(self.train_videos))
        if videos != len(self.train_videos):
            logger.warning(
                "the training list had %d videos and has %d now: %d of %d steps are done, the next samples are others",
                videos, len(self.train_videos), self.step, self.total_steps,
            )  # fmt: skip
        versions = library_versions()
        others = [f"{name} {old}, now {versions.get(name)}" for name, old in resumed.versions.items()
                  if versions.get(name) != old]  # fmt: skip
        if others:
            logger.warning(
                "%s was written with %s: results may differ in the last bits", resumed.path, ", ".join(others)
            )
        changed = [
            f"{name} {before}, now {now}" for name, before, now in differences(resumed.config, self.cfg)
            if not name.startswith(IGNORED_ON_RESUME)
        ]  # fmt: skip
        if changed:
            logger.warning("settings that were others before, the new ones hold from here: %s", "; ".join(changed))
        before = resumed.state.get("world_size", self.world.size)
        if before != self.world.size:
            logger.info("world size was %d and is %d; batch and schedule stay", before, self.world.size)
        old = resumed.state.get("threads", threads)
        if before == self.world.size and old != threads and self.world.device.type == "cpu":
            logger.warning(
                "%s was computed on %s threads, now there are %s: results may differ in the last bits; set "
                "OMP_NUM_THREADS to what it was",
                resumed.path, *(", ".join(map(str, numbers)) for numbers in (old, threads)),
            )  # fmt: skip


def newest_checkpoint(cfg: CfgNode, world: World) -> Checkpoint | None:
    """Return the newest sound training checkpoint in OUTPUT_DIR, the same in all processes: the main one chooses.

    Raises:
        UserError: none can be read, not all machines see it, or there is one that is not to be gone on from.
    """
    if not cfg.TRAIN.AUTO_RESUME:
        if training_checkpoints(cfg.OUTPUT_DIR):
            raise UserError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} has checkpoints, and TRAIN.AUTO_RESUME is False: those of a new run "
                "would mix with them; choose another OUTPUT_DIR or remove them"
            )
        return None
    found = latest_checkpoint(cfg.OUTPUT_DIR) if world.is_main else None
    chosen = gather_objects(found and str(found.path), world)[0]
    return checkpoint_seen_by_main(Path(chosen)) if chosen and not world.is_main else found


def starting_point(cfg: CfgNode, classes: list[str], model: nn.Module, world: World) -> Checkpoint | None:
    """Load the weights that the run starts from, in order of priority.

    1. The newest training checkpoint in OUTPUT_DIR whose checksums are right (TRAIN.AUTO_RESUME), with all of its
       state: the run goes on, also in the middle of an epoch. A damaged one is named and the one before it is taken;
       where none is sound the run does not start. Returned.
    2. MODEL.INIT_FROM: as many weights as fit, this project's or other people's; the run begins at step 0.
    3. Random weights from RNG_SEED.

    best.pt and model.pt are results and never looked at; to go on from one in another OUTPUT_DIR is 2.
    """
    resumed = newest_checkpoint(cfg, world)
    if resumed:
        if resumed.classes != classes:
            raise UserError(f"{resumed.path}: its classes are not those of the data; choose another OUTPUT_DIR")
        for name in FIXED_ON_RESUME:
            before, now = get_key(resumed.config, name), get_key(cfg, name)
            if before != now:
                raise UserError(
                    f"{resumed.path}: {name} was {before} and is now {now}; its steps would be others. "
                    "Keep it, or choose another OUTPUT_DIR"
                )
        _check_source(cfg, resumed)
        check_settings(cfg, resumed)
        load_weights(model, resumed)
        logger.info("resume: %s, step %d", resumed.path, resumed.step)
    elif cfg.MODEL.INIT_FROM:
        logger.info("%s", init_from(model, cfg.MODEL.INIT_FROM, inflate=cfg.MODEL.INIT_INFLATE))
    return resumed


def _check_source(cfg: CfgNode, resumed: Checkpoint) -> None:
    """Raise ValueError where a run that resumes is asked to start from other weights than it did."""
    before, now = (c.MODEL.INIT_FROM and os.path.expanduser(c.MODEL.INIT_FROM) for c in (resumed.config, cfg))
    same = os.path.abspath(before) == os.path.abspath(now) if before and now else before == now
    if same and (not now or resumed.config.MODEL.INIT_INFLATE == cfg.MODEL.INIT_INFLATE):
        return
    name = "INIT_INFLATE" if same else "INIT_FROM"
    raise UserError(
        f"{resumed.path}: this run was started with MODEL.{name} {resumed.config.MODEL[name]!r}, the config says "
        f"{cfg.MODEL[name]!r}, which a run that resumes does not read; choose another OUTPUT_DIR to start from it, or "
        "keep the former value to resume"
    )


def prepare(cfg: CfgNode, classes: list[str], world: World, stop: StopSignals, *, dry: bool = False) -> Run:
    """Make everything of a run, up to the point where it starts or goes on.

    Args:
        dry: write nothing.
    """
    train_videos = load_split(cfg, "train", classes)
    val_videos = load_split(cfg, "val", classes) if cfg.TRAIN.EVAL_PERIOD else []
    if world.is_main:
        test_list = joined(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.TEST_LIST) if cfg.TEST.ENABLE else ""
        for warning in warnings_of_run(classes, train_videos, val_videos, test_list, cfg.DATA.PATH_PREFIX):
            logger.warning("%s: %s", cfg.DATA.TRAIN_LIST, warning)
    torch.manual_seed(mix_seed(cfg.RNG_SEED, 0))
    model = build_model(cfg)
    resumed = starting_point(cfg, classes, model, world)
    parallel_model = parallelize(model.to(world.device), cfg, world)
    writes = world.is_main and not dry
    run = Run(
        cfg=cfg,
        world=world,
        classes=classes,
        train_videos=train_videos,
        val_videos=val_videos,
        model=model,
        parallel_model=parallel_model,
        optimizer=build_optimizer(cfg, model),
        schedule=build_schedule(cfg),
        scaler=torch.amp.GradScaler(
            world.device.type, enabled=autocast_dtype(cfg.TRAIN.PRECISION, world.device) == torch.float16
        ),
        augment=BatchAugment(
            cfg.AUG.RE_PROB,
            cfg.MIXUP.PROB if cfg.MIXUP.ENABLE else None,
            (cfg.MIXUP.ALPHA, cfg.MIXUP.CUTMIX_ALPHA),
            cfg.MIXUP.SWITCH_PROB,
        ),
        steps=StepLog(world, train_videos),
        journal=Journal(cfg, enabled=writes, step=resumed.step if resumed else 0),
        watch=DataWatch(cfg.DATA_LOADER.NUM_WORKERS),
        saver=Saver(cfg, enabled=writes),
        stop=stop,
        teacher=load_teacher(cfg, classes, world.device) if cfg.DISTILL.TEACHER else None,
        ema=Ema(parallel_model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None,
        dry=dry,
    )
    if writes and not resumed:
        forget_bad_videos(run.folder, ("train", "val"), Path(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.SKIP_LIST))
    if resumed:
        if writes:
            set_aside_after(cfg.OUTPUT_DIR, resumed.step)
        run.resume(resumed)
    return run


def train_batches(run: Run) -> Loader:
    """Return the loader of all steps that are left."""
    cfg, world = run.cfg, run.world
    mirror, reason = mirrored_labels(run.classes) if cfg.DATA.RANDOM_FLIP else (None, "off, as DATA.RANDOM_FLIP says")
    logger.info("flip: %s", reason)
    return build_train_loader(
        cfg, run.train_videos, total_steps=run.total_steps, start_step=run.step, mirror=mirror, rank=world.rank,
        world_size=world.size, pin_memory=world.device.type == "cuda",
    )  # fmt: skip
