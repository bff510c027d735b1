"""One optimizer step. Reading order: ``one_step``, ``prepare_clips``, ``forward``, ``loss_of_heads``.

Everything random follows from (RNG_SEED, step, rank), so a resumed run repeats what an uninterrupted one would do.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import is_valid, normalize, soft_targets
from lookupvit_video.distributed.parallel import clip_gradients, synchronizing
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.distributed.world import in_any_process
from lookupvit_video.drawing.figures import plot_clips
from lookupvit_video.errors import RunFailure
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.pretexts.masked import MaskedModel
from lookupvit_video.models.pretexts.moving import MovingModel
from lookupvit_video.seeding import mix_seed
from lookupvit_video.training.bad_videos import note_bad_videos
from lookupvit_video.training.distill import distill, mean_over_clips, mean_over_heads
from lookupvit_video.training.optim import set_learning_rate, set_trainable
from lookupvit_video.training.pretraining.masked import masked_loss
from lookupvit_video.training.pretraining.moving import moving_loss
from lookupvit_video.training.run import Run
from lookupvit_video.training.step_log import ADVICE

logger = logging.getLogger(__name__)


@contextmanager
def report_memory_failures() -> Iterator[None]:
    """Turn torch's error of a full GPU memory into a RunFailure that names the settings that need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0].partition(". GPU")[0]
        raise RunFailure(
            f"the GPU's memory is full ({reason}); raise TRAIN.ACCUMULATION_STEPS, or set "
            "TRAIN.ACTIVATION_CHECKPOINTING write_back, selective or full, or TRAIN.PARALLEL fsdp; --dry-run estimates "
            "the need"
        ) from None


def loss_of_heads(
    logits: tuple[Tensor, ...],
    targets_BK: Tensor,
    valid_B: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss averaged over the heads and over the clips.

    Args:
        logits: per head (B, K).
        targets_BK: rows that sum to 1.
        valid_B: see ``mean_over_clips``.
        loss: logits (B, K), targets (B, K) -> (B,), such as a ``ClassificationLoss``.
        weights: ``VideoModel.output_weights``.
    """
    per_clip_B = mean_over_heads([loss(head.float(), targets_BK) for head in logits], weights)
    return mean_over_clips(per_clip_B, valid_B)


def one_step(run: Run, batches: Iterator[Batch]) -> None:
    """Make the next step, but do not count it, and note its loss and times in ``run.steps``; all processes call it.

    Raises:
        RunFailure: too many videos cannot be read, or too many steps have a loss or gradient that is not finite.
    """
    cfg, state, world, log = run.cfg, run.state, run.world, run.steps
    step, epoch = state.step, state.step / state.steps_per_epoch
    torch.manual_seed(mix_seed(cfg.RNG_SEED, 1, step, world.rank))  # drop path, dropout, mixing, erasing
    set_learning_rate(state.optimizer, run.schedule(step / run.total_steps))
    set_trainable(run.model, run.frozen_at_first, epoch >= cfg.SOLVER.FREEZE_EPOCHS)
    parts = cfg.TRAIN.ACCUMULATION_STEPS
    budget = run.budget(step)
    loss = torch.zeros((), device=world.device)
    rows: list[int] = []
    for part in range(parts):
        before = time.perf_counter()
        batch = next(batches)
        log.data_seconds += time.perf_counter() - before
        rows += batch.indices.tolist()
        note_bad_videos(run, batch)
        with synchronizing(state.model, wanted=part == parts - 1):
            with log.forward_timed():
                part_loss = forward(run, batch, budget, picture=step == 0 and part == 0) / parts
            state.scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.model, cfg.SOLVER.CLIP_GRAD_L2NORM)
    log.add(loss, norm, rows)
    if not run.looks_at_each_step or _is_finite(run, loss, norm):
        state.scaler.step(state.optimizer)
        if state.ema:
            state.ema.update()
    state.scaler.update()
    state.optimizer.zero_grad()
    log.steps += 1
    log.macs += cfg.TRAIN.BATCH_SIZE * run.clip_macs(budget)


def _is_finite(run: Run, loss: Tensor, norm: Tensor) -> bool:
    """Whether loss and gradient are finite in all processes; warn of a step that is left out, stop at too many.

    Raises:
        RunFailure: there were more such steps than TRAIN.MAX_BAD_STEPS. Under float16 a gradient alone that is too
            large does not count, as long as the scaler can lower its scale.
    """
    state, limit = run.state, run.cfg.TRAIN.MAX_BAD_STEPS
    loss_bad, norm_bad = in_any_process(run.world, not bool(loss.isfinite()), not bool(norm.isfinite()))
    if not loss_bad and not norm_bad:
        return True
    if not loss_bad and state.scaler.is_enabled() and state.scaler.get_scale() > 1:
        logger.info("step %d: left out, the gradient is too large for float16; its scale is lowered", state.step + 1)
        return False
    state.bad_steps += 1
    report = run.steps.bad_step(state.step + 1, loss.item(), norm.item())
    run.journal.write("bad_step", state.step + 1, text=report)
    if state.bad_steps > limit:
        raise RunFailure(f"{report}; {state.bad_steps} such steps, TRAIN.MAX_BAD_STEPS is {limit}; {ADVICE}")
    if run.world.is_main:
        logger.warning("%s; left out, %d of at most %d", report, state.bad_steps, limit)
    return False


def prepare_clips(run: Run, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the model sees of a batch, on the device: clips (B, C, T, H, W), targets (B, K) and valid (B,)."""
    cfg, device = run.cfg, run.world.device
    clips = normalize(batch.clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
    labels = batch.labels.to(device, non_blocking=True)
    if cfg.MIXUP.ENABLE and cfg.AUG.NUM_SAMPLE > 1:
        # torchvision mixes neighbors, and the neighbor of a clip is another clip of the same video.
        order = torch.randperm(len(labels)).to(device, non_blocking=True)  # else the host waits for the GPU
        clips, labels = clips[order], labels[order]
    clips, targets = run.augment(clips, soft_targets(labels, cfg.MODEL.NUM_CLASSES))
    return clips, targets, is_valid(labels)


def forward(run: Run, batch: Batch, budget: Budget | None, *, picture: bool = False) -> Tensor:
    """Return the loss of a batch.

    Args:
        budget: None: the model's own.
        picture: draw what the model sees into OUTPUT_DIR/train_clips.png.
    """
    cfg, device = run.cfg, run.world.device
    if isinstance(run.model, MaskedModel):
        return masked_loss(run, batch, budget)
    if isinstance(run.model, MovingModel):
        return moving_loss(run, batch, budget)
    clips, targets, valid = prepare_clips(run, batch)
    if picture and run.world.is_main and not run.dry:
        every = 1 if cfg.MIXUP.ENABLE else cfg.AUG.NUM_SAMPLE  # a clip a video; mixing has shuffled them
        shown, path = slice(None, None, every), run.folder / "train_clips.png"
        plot_clips(clips[shown], targets[shown], run.classes, cfg.DATA.MEAN, cfg.DATA.STD, path)
    options: dict[str, Any] = {}
    if budget:
        options["budget"] = budget
    by_tokens = cfg.DISTILL.FEATURE_WEIGHT or cfg.DISTILL.BLOCK_WEIGHT
    if by_tokens:
        options["with_features"] = True
    with autocast(device, run.dtype):
        output = run.state.model(clips, **options)
        answer = run.teacher.answer(clips) if run.teacher else None
    logits, features = output if by_tokens else (output, None)
    weights = run.model.output_weights
    loss = loss_of_heads(logits, targets, valid, run.loss, weights)
    if not answer:
        return loss
    return distill(
        loss, logits, features, answer, valid, weight=cfg.DISTILL.WEIGHT, temperature=cfg.DISTILL.TEMPERATURE,
        feature_weight=cfg.DISTILL.FEATURE_WEIGHT, block_weight=cfg.DISTILL.BLOCK_WEIGHT,
        multi_label=run.loss.multi_label, head_weights=weights,
    )  # fmt: skip
