"""The training loop. Reading order: ``train``, ``_run_steps``, ``_one_step``, ``StepLog``.

Everything random follows from (RNG_SEED, step, rank), so a resumed run repeats what an uninterrupted one would do.
"""

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.config import get_key
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.loader import DataWatch, build_eval_loader, build_train_loader, worker_failures_told
from lookupvit_video.data.manifest import Video, load_split
from lookupvit_video.data.transforms import IGNORED, BatchAugment, mirrored_labels, normalize, soft_targets
from lookupvit_video.engine.checkpoint import (
    Checkpoint,
    checkpoint_path,
    latest_checkpoint,
    load_weights,
    remove_old_checkpoints,
    save_checkpoint,
)
from lookupvit_video.engine.distill import Teacher, distill, load_teacher
from lookupvit_video.engine.evaluate import evaluate
from lookupvit_video.engine.log import JsonLines, clock, peak_memory_gib, read_json_lines, record_bad_videos
from lookupvit_video.engine.optim import build_optimizer, build_schedule, set_learning_rate
from lookupvit_video.engine.parallel import (
    World,
    autocast_dtype,
    clip_gradients,
    gather_objects,
    load_optimizer,
    parallelize,
    synchronizing,
)
from lookupvit_video.engine.plots import plot_curves
from lookupvit_video.errors import RunFailure
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.seeding import mix_seed

logger = logging.getLogger(__name__)


def loss_of_heads(logits: tuple[Tensor, ...], targets_BK: Tensor, valid_B: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy averaged over the heads (LookupViT: equal weights) and over the valid clips.

    Args:
        logits: per head (B, K).
        targets_BK: rows that sum to 1; those of clips that are not valid do not count.
        valid_B: bool.
    """
    per_clip_B = torch.stack(
        [F.cross_entropy(head.float(), targets_BK, reduction="none", label_smoothing=smoothing) for head in logits]
    ).mean(0)
    return (per_clip_B * valid_B).sum() / valid_B.sum().clamp(min=1)


@dataclass
class StepLog:
    """Collects the steps between two log lines without synchronising the device."""

    start: float = field(default_factory=time.perf_counter)
    data_seconds: float = 0.0
    clips: int = 0
    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)

    def summary(self, last_step: int, world: World) -> dict[str, float]:
        """Return the means since the last line, over all processes.

        Raises:
            RunFailure: a loss or gradient is not finite; names the step.
        """
        values = torch.stack([torch.stack(self.losses), torch.stack(self.grad_norms)])
        if world.size > 1:
            torch.distributed.all_reduce(values)
            values /= world.size
            slowest = torch.tensor(self.data_seconds, device=values.device)  # the others wait for it
            torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
            self.data_seconds = slowest.item()
        losses, norms = values.cpu()  # waits for the device
        for offset, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (loss.isfinite() and norm.isfinite()):
                step = last_step - len(losses) + 1 + offset
                raise RunFailure(
                    f"step {step}: the loss is {loss.item():g} and the gradient's norm {norm.item():g}; "
                    "lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_EPOCHS or use TRAIN.PRECISION float32"
                )
        seconds = time.perf_counter() - self.start
        steps = len(losses)
        return {
            "loss": losses.mean().item(),
            "grad_norm": norms.mean().item(),
            "clips_per_second": self.clips * world.size / seconds,
            "data_time": self.data_seconds / steps,
            "step_time": seconds / steps,
        }


@dataclass
class Run:
    """What the loop works on; made once by ``train``."""

    cfg: CfgNode
    world: World
    classes: list[str]
    train_videos: list[Video]
    val_videos: list[Video]
    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: ParamScheduler
    augment: BatchAugment
    step: int
    best_top1: float
    steps_per_epoch: int
    log: JsonLines
    watch: DataWatch
    teacher: Teacher | None = None
    bad_rows: set[int] = field(default_factory=set)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self.cfg.SOLVER.MAX_EPOCH

    @property
    def folder(self) -> Path:
        """OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)


def _starting_point(cfg: CfgNode, classes: list[str], model: nn.Module) -> Checkpoint | None:
    """Load the weights that the run starts from, in order of priority.

    1. The newest readable training checkpoint in OUTPUT_DIR (TRAIN.AUTO_RESUME): the run goes on; returned.
    2. MODEL.INIT_FROM: as many weights as fit, this project's or other people's; the run begins at step 0.
    3. Random weights from RNG_SEED.
    """
    resumed = latest_checkpoint(cfg.OUTPUT_DIR) if cfg.TRAIN.AUTO_RESUME else None
    if resumed:
        if resumed.classes != classes:
            raise ValueError(f"{resumed.path}: its classes are not those of the data; choose another OUTPUT_DIR")
        for name in ("TRAIN.BATCH_SIZE", "AUG.NUM_SAMPLE", "DATA.NUM_FRAMES", "DATA.TRAIN_CROP_SIZE"):
            before, now = get_key(resumed.config, name), get_key(cfg, name)
            if before != now:
                raise ValueError(
                    f"{resumed.path}: {name} was {before} and is now {now}; its steps would be others. "
                    "Keep it, or choose another OUTPUT_DIR"
                )
        load_weights(model, resumed)
        logger.info("resume: %s, step %d", resumed.path, resumed.step)
    elif cfg.MODEL.INIT_FROM:
        logger.info("%s", init_from(model, cfg.MODEL.INIT_FROM, inflate=cfg.MODEL.INIT_INFLATE))
    return resumed


def _prepare(cfg: CfgNode, classes: list[str], world: World) -> Run:
    train_videos = load_split(cfg, "train", classes)
    val_videos = load_split(cfg, "val", classes) if cfg.TRAIN.EVAL_PERIOD else []
    steps_per_epoch = len(train_videos) // (cfg.TRAIN.BATCH_SIZE // cfg.AUG.NUM_SAMPLE)
    torch.manual_seed(mix_seed(cfg.RNG_SEED, 0))
    model = build_model(cfg)
    resumed = _starting_point(cfg, classes, model)
    parallel_model = parallelize(model.to(world.device), cfg, world)
    optimizer = build_optimizer(cfg, model)
    if resumed:
        load_optimizer(parallel_model, optimizer, resumed.optimizer or {})
    return Run(
        cfg=cfg,
        world=world,
        classes=classes,
        train_videos=train_videos,
        val_videos=val_videos,
        model=model,
        parallel_model=parallel_model,
        optimizer=optimizer,
        schedule=build_schedule(cfg),
        augment=BatchAugment(cfg),
        step=resumed.step if resumed else 0,
        best_top1=resumed.best_top1 if resumed else -1.0,
        steps_per_epoch=steps_per_epoch,
        log=JsonLines(Path(cfg.OUTPUT_DIR) / "log.jsonl", enabled=world.is_main),
        watch=DataWatch(cfg.DATA_LOADER.NUM_WORKERS),
        teacher=load_teacher(cfg, classes, world.device) if cfg.DISTILL.TEACHER else None,
    )


def train(cfg: CfgNode, classes: list[str], world: World) -> None:
    """Train by config; leaves OUTPUT_DIR/model.pt (and best.pt where there is validation), logs and curves.png.

    Raises:
        ValueError: the config and the data do not fit, found before the first step.
        RunFailure: the numbers or too many of the videos went bad on the way.
    """
    run = _prepare(cfg, classes, world)
    pin = world.device.type == "cuda"
    mirror, reason = mirrored_labels(classes) if cfg.DATA.RANDOM_FLIP else (None, "off, as DATA.RANDOM_FLIP says")
    logger.info("flip: %s", reason)
    loader = build_train_loader(
        cfg, run.train_videos, total_steps=run.total_steps, start_step=run.step, mirror=mirror,
        rank=world.rank, world_size=world.size, pin_memory=pin,
    )  # fmt: skip
    logger.info(
        "train: %d videos, %d classes, %s %.2f M parameters, %d steps of %d clips on %d x %s, %s",
        len(run.train_videos), len(classes), cfg.MODEL.ARCH, count_parameters(run.model) / 1e6, run.total_steps,
        cfg.TRAIN.BATCH_SIZE, world.size, world.device.type, autocast_dtype(cfg.TRAIN.PRECISION, world.device),
    )  # fmt: skip
    with worker_failures_told():
        _run_steps(run, iter(loader))
    if world.is_main:
        save_checkpoint(
            run.folder / "model.pt", cfg=cfg, classes=classes, model=run.model, step=run.step, best_top1=run.best_top1
        )
        plot_curves(
            read_json_lines(run.log.path, "train"), read_json_lines(run.log.path, "val"), run.folder / "curves.png"
        )
        logger.info("wrote %s and %s", run.folder / "model.pt", run.folder / "curves.png")
    gather_objects(None, world)  # model.pt is there for all processes


def _run_steps(run: Run, batches: Iterator[Batch]) -> None:
    run.parallel_model.train()
    log = StepLog()
    while run.step < run.total_steps:
        _one_step(run, batches, log)
        run.step += 1
        epoch, within = divmod(run.step, run.steps_per_epoch)
        if run.step % run.cfg.LOG_PERIOD == 0 or within == 0:
            _report(run, log)
            log = StepLog()
        if within == 0:
            _end_of_epoch(run, epoch)
            log = StepLog()  # validation is no step time


def _one_step(run: Run, batches: Iterator[Batch], log: StepLog) -> None:
    cfg, world = run.cfg, run.world
    torch.manual_seed(mix_seed(cfg.RNG_SEED, 1, run.step, world.rank))  # drop path, dropout, mixing, erasing
    set_learning_rate(run.optimizer, run.schedule(run.step / run.total_steps))
    parts = cfg.TRAIN.ACCUMULATION_STEPS
    loss = torch.zeros((), device=world.device)
    for part in range(parts):
        before = time.perf_counter()
        batch = next(batches)
        log.data_seconds += time.perf_counter() - before
        _note_bad_videos(run, batch)
        with synchronizing(run.parallel_model, wanted=part == parts - 1):
            part_loss = _forward(run, batch) / parts
            part_loss.backward()
        loss += part_loss.detach()
        log.clips += len(batch.labels)
    norm = clip_gradients(run.parallel_model, cfg.SOLVER.CLIP_GRAD_L2NORM)
    run.optimizer.step()
    run.optimizer.zero_grad()
    log.losses.append(loss)
    log.grad_norms.append(norm)


def _forward(run: Run, batch: Batch) -> Tensor:
    cfg, device = run.cfg, run.world.device
    clips = normalize(batch.clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
    labels = batch.labels.to(device, non_blocking=True)
    if cfg.MIXUP.ENABLE and cfg.AUG.NUM_SAMPLE > 1:
        # torchvision mixes neighbours, and the neighbour of a clip is another clip of the same video.
        order = torch.randperm(len(labels)).to(device)
        clips, labels = clips[order], labels[order]
    clips, targets = run.augment(clips, soft_targets(labels, cfg.MODEL.NUM_CLASSES))
    dtype = autocast_dtype(cfg.TRAIN.PRECISION, device)
    options: dict[str, Any] = {}
    if cfg.MODEL.COMPRESSED_GRIDS:
        options["grid"] = draw_grid(cfg, run.step)
    if cfg.DISTILL.FEATURE_WEIGHT:
        options["with_features"] = True
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = run.parallel_model(clips, **options)
        answer = run.teacher.answer(clips) if run.teacher else None
    logits, features = output if cfg.DISTILL.FEATURE_WEIGHT else (output, None)
    valid = labels != IGNORED
    loss = loss_of_heads(logits, targets, valid, cfg.SOLVER.LABEL_SMOOTHING)
    return distill(cfg, loss, logits, features, answer, valid) if answer else loss


def draw_grid(cfg: CfgNode, step: int) -> tuple[int, ...]:
    """Return the compressed grid of a step: the same in every process and every accumulation part, and on resume."""
    grids, weights = cfg.MODEL.COMPRESSED_GRIDS, cfg.MODEL.COMPRESSED_GRID_WEIGHTS or None
    return tuple(random.Random(mix_seed(cfg.RNG_SEED, 2, step)).choices(grids, weights)[0])


def _note_bad_videos(run: Run, batch: Batch) -> None:
    """Record videos that could not be read; stop when there are more of them than allowed."""
    news = [(row, reason) for row, reason in batch.errors if row not in run.bad_rows]
    if not news:
        return
    run.bad_rows.update(row for row, _ in news)
    record_bad_videos(run.folder, [("train", run.train_videos[row].path, reason) for row, reason in news])
    for _, reason in news:
        logger.warning("skipped: %s", reason)
    allowed = run.cfg.DATA.MAX_BAD_FRACTION * len(run.train_videos)
    if len(run.bad_rows) > allowed:
        raise RunFailure(
            f"{len(run.bad_rows)} of {len(run.train_videos)} training videos cannot be read, the last: "
            f"{news[-1][1]}; see {run.folder / 'bad_videos.csv'}, mend the list or raise "
            "DATA.MAX_BAD_FRACTION"
        )


def _report(run: Run, log: StepLog) -> None:
    facts = log.summary(run.step - 1, run.world)
    facts["lr"] = run.optimizer.param_groups[-1]["lr"]
    facts["memory_gib"] = peak_memory_gib(run.world.device)
    left = (run.total_steps - run.step) * facts["step_time"]
    epoch = run.step / run.steps_per_epoch
    run.log.write(
        "train",
        step=run.step,
        epoch=round(epoch, 3),
        eta_seconds=round(left),
        **{key: float(f"{value:.6g}") for key, value in facts.items()},
    )
    logger.info(
        "step %d/%d epoch %.2f  loss %.4f  lr %.2e  grad %.2f  %.1f clips/s  data %.3f/%.3f s  mem %.2f GiB  eta %s",
        run.step, run.total_steps, epoch, facts["loss"], facts["lr"], facts["grad_norm"], facts["clips_per_second"],
        facts["data_time"], facts["step_time"], facts["memory_gib"], clock(left),
    )  # fmt: skip
    advice = run.watch.advice(facts["data_time"], facts["step_time"])
    if advice and run.world.is_main:
        logger.warning("%s", advice)


def _end_of_epoch(run: Run, epoch: int) -> None:
    cfg, last = run.cfg, run.step == run.total_steps
    if cfg.TRAIN.EVAL_PERIOD and (epoch % cfg.TRAIN.EVAL_PERIOD == 0 or last):
        _validate(run, epoch)
    if run.world.is_main and (epoch % cfg.TRAIN.CHECKPOINT_PERIOD == 0 or last):
        save_checkpoint(
            checkpoint_path(run.folder, run.step),
            cfg=cfg,
            classes=run.classes,
            model=run.model,
            optimizer=run.optimizer,
            step=run.step,
            best_top1=run.best_top1,
        )
        remove_old_checkpoints(run.folder, cfg.TRAIN.KEEP_CHECKPOINTS)
    gather_objects(None, run.world)  # no process runs ahead of a checkpoint that may fail


def _validate(run: Run, epoch: int) -> None:
    """One centre view per video; the best weights so far go to best.pt."""
    cfg, world = run.cfg, run.world
    loader = build_eval_loader(
        cfg,
        run.val_videos,
        num_views=1,
        num_crops=1,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )
    (results,) = evaluate(run.model, loader, run.val_videos, cfg, world, "validation")
    top1, top5 = results.top(1), results.top(5)
    run.log.write("val", step=run.step, epoch=epoch, top1=round(top1, 3), top5=round(top5, 3), bad=len(results.bad))
    logger.info(
        "epoch %d validation: top-1 %.2f %%, top-5 %.2f %% of %d videos", epoch, top1, top5, len(results.labels)
    )
    if results.bad and world.is_main:
        record_bad_videos(run.folder, [("val", run.val_videos[row].path, reason) for row, reason in results.bad])
        logger.warning(
            "%d validation videos cannot be read and count as wrong, see %s",
            len(results.bad),
            run.folder / "bad_videos.csv",
        )
    if top1 > run.best_top1:
        run.best_top1 = top1
        if world.is_main:
            save_checkpoint(
                run.folder / "best.pt", cfg=cfg, classes=run.classes, model=run.model, step=run.step, best_top1=top1
            )
