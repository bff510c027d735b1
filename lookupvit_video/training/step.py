"""One optimiser step. Reading order: ``one_step``, ``prepare_clips``, ``forward``, ``loss_of_heads``.

Everything random follows from (RNG_SEED, step, rank), so a resumed run repeats what an uninterrupted one would do.
"""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import IGNORED, normalize, soft_targets
from lookupvit_video.distributed.parallel import clip_gradients, synchronizing
from lookupvit_video.distributed.world import in_any_process
from lookupvit_video.errors import RunFailure
from lookupvit_video.figures import plot_clips
from lookupvit_video.seeding import mix_seed
from lookupvit_video.training.bad_videos import note_bad_videos
from lookupvit_video.training.distill import distill, mean_over_clips
from lookupvit_video.training.optim import freeze_or_thaw, set_learning_rate
from lookupvit_video.training.run import Run
from lookupvit_video.training.step_log import ADVICE

logger = logging.getLogger(__name__)


@contextmanager
def report_memory_failures() -> Iterator[None]:
    """Turn what torch raises when the GPU's memory is full into one line that says which settings need less.

    Raises:
        RunFailure: in its place.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = str(error).partition("\n")[0]
        raise RunFailure(
            f"the GPU's memory is full ({told.partition('. GPU')[0]}); raise TRAIN.ACCUMULATION_STEPS, or set "
            "TRAIN.ACTIVATION_CHECKPOINTING write_back, selective or full, or TRAIN.PARALLEL fsdp; --dry-run estimates "
            "the need"
        ) from None


def loss_of_heads(logits: tuple[Tensor, ...], targets_BK: Tensor, valid_B: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy averaged over the heads (LookupViT: equal weights) and over the clips.

    Args:
        logits: per head (B, K).
        targets_BK: rows that sum to 1.
        valid_B: see ``mean_over_clips``.
    """
    per_clip_B = torch.stack(
        [F.cross_entropy(head.float(), targets_BK, reduction="none", label_smoothing=smoothing) for head in logits]
    ).mean(0)
    return mean_over_clips(per_clip_B, valid_B)


def draw_grid(cfg: CfgNode, step: int) -> tuple[int, ...]:
    """Return the compressed grid of a step: the same in every process and every accumulation part, and on resume."""
    grids, weights = cfg.MODEL.COMPRESSED_GRIDS, cfg.MODEL.COMPRESSED_GRID_WEIGHTS or None
    return tuple(random.Random(mix_seed(cfg.RNG_SEED, 2, step)).choices(grids, weights)[0])


def one_step(run: Run, batches: Iterator[Batch]) -> None:
    """Make step ``run.step`` + 1 and note its loss and times in ``run.steps``; all processes must call it.

    Raises:
        RunFailure: too many videos, or the numbers of too many steps, are bad.
    """
    cfg, world, log = run.cfg, run.world, run.steps
    torch.manual_seed(mix_seed(cfg.RNG_SEED, 1, run.step, world.rank))  # drop path, dropout, mixing, erasing
    set_learning_rate(run.optimizer, run.schedule(run.step / run.total_steps))
    freeze_or_thaw(cfg, run.model, run.step / run.steps_per_epoch)
    parts = cfg.TRAIN.ACCUMULATION_STEPS
    grid = draw_grid(cfg, run.step) if cfg.MODEL.COMPRESSED_GRIDS else None
    loss = torch.zeros((), device=world.device)
    rows: list[int] = []
    for part in range(parts):
        before = time.perf_counter()
        batch = next(batches)
        log.data_seconds += time.perf_counter() - before
        rows += batch.indices.tolist()
        note_bad_videos(run, batch)
        with synchronizing(run.parallel_model, wanted=part == parts - 1):
            with log.forward_timed():
                part_loss = forward(run, batch, grid, picture=run.step == 0 and part == 0) / parts
            run.scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    run.scaler.unscale_(run.optimizer)
    norm = clip_gradients(run.parallel_model, cfg.SOLVER.CLIP_GRAD_L2NORM)
    log.add(loss, norm, rows)
    if not run.looks_at_each_step or _is_sound(run, loss, norm):
        run.scaler.step(run.optimizer)
        if run.ema:
            run.ema.update()
    run.scaler.update()
    run.optimizer.zero_grad()
    log.steps += 1
    log.macs += cfg.TRAIN.BATCH_SIZE * run.clip_macs(grid)


def _is_sound(run: Run, loss: Tensor, norm: Tensor) -> bool:
    """Whether loss and gradient are finite in all processes; warn of a step that is left out, stop at too many.

    Raises:
        RunFailure: there were more such steps than TRAIN.MAX_BAD_STEPS. Under float16 a gradient alone that is too
            large does not count, as long as the scaler can lower its scale.
    """
    loss_bad, norm_bad = in_any_process(run.world, not bool(loss.isfinite()), not bool(norm.isfinite()))
    if not loss_bad and not norm_bad:
        return True
    if not loss_bad and run.scaler.is_enabled() and run.scaler.get_scale() > 1:
        logger.info("step %d: left out, the gradient is too large for float16; its scale is lowered", run.step + 1)
        return False
    run.bad_steps += 1
    told = run.steps.bad_step(run.step + 1, loss.item(), norm.item())
    run.journal.write("bad_step", run.step + 1, text=told)
    if run.bad_steps > run.cfg.TRAIN.MAX_BAD_STEPS:
        raise RunFailure(
            f"{told}; {run.bad_steps} such steps, TRAIN.MAX_BAD_STEPS {run.cfg.TRAIN.MAX_BAD_STEPS}; {ADVICE}"
        )
    if run.world.is_main:
        logger.warning("%s; left out, %d of at most %d", told, run.bad_steps, run.cfg.TRAIN.MAX_BAD_STEPS)
    return False


def prepare_clips(run: Run, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the model sees of a batch, on the device: clips (B, C, T, H, W), targets (B, K) and valid (B,)."""
    cfg, device = run.cfg, run.world.device
    clips = normalize(batch.clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
    labels = batch.labels.to(device, non_blocking=True)
    if cfg.MIXUP.ENABLE and cfg.AUG.NUM_SAMPLE > 1:
        # torchvision mixes neighbours, and the neighbour of a clip is another clip of the same video.
        order = torch.randperm(len(labels)).to(device, non_blocking=True)  # else the host waits for the GPU
        clips, labels = clips[order], labels[order]
    clips, targets = run.augment(clips, soft_targets(labels, cfg.MODEL.NUM_CLASSES))
    return clips, targets, labels != IGNORED


def forward(run: Run, batch: Batch, grid: tuple[int, ...] | None, *, picture: bool = False) -> Tensor:
    """Return the loss of a batch.

    Args:
        grid: of the compressed tokens; None: the model's own.
        picture: draw what the model sees into OUTPUT_DIR/train_clips.png.
    """
    cfg, device = run.cfg, run.world.device
    clips, targets, valid = prepare_clips(run, batch)
    if picture and run.world.is_main and not run.dry:
        plot_clips(clips, targets, run.classes, cfg.DATA.MEAN, cfg.DATA.STD, run.folder / "train_clips.png")
    options: dict[str, Any] = {}
    if grid:
        options["grid"] = grid
    if cfg.DISTILL.FEATURE_WEIGHT:
        options["with_features"] = True
    with torch.autocast(device.type, run.dtype, enabled=run.dtype != torch.float32):
        output = run.parallel_model(clips, **options)
        answer = run.teacher.answer(clips) if run.teacher else None
    logits, features = output if cfg.DISTILL.FEATURE_WEIGHT else (output, None)
    loss = loss_of_heads(logits, targets, valid, cfg.SOLVER.LABEL_SMOOTHING)
    return distill(cfg, loss, logits, features, answer, valid) if answer else loss
