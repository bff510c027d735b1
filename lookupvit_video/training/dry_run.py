"""``lookupvit train --dry-run``: what a run will do and need, and one step."""

import time

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lookupvit_video.distributed.parallel import autocast
from lookupvit_video.distributed.world import World
from lookupvit_video.log import peak_memory_gib
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.processes.stop_signals import StopSignals
from lookupvit_video.training.run import Run, prepare, train_batches
from lookupvit_video.training.step import one_step


def activation_bytes(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> int:
    """Return the memory that a forward pass of one clip (1, C, T, H, W) keeps for the backward pass, by running it.

    Parameters do not count. Without activation checkpointing and compilation, which need less.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(clip.device, dtype):
        output = model(clip)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def state_bytes(model: nn.Module, moments: int, averaged: bool) -> int:
    """Return the memory of parameters, gradients, the optimizer's moments and averaged weights, all in float32."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4 * (total + trained * (1 + moments + averaged))


def plan_lines(run: Run) -> list[str]:
    """Return what a run will do and need, line by line, before it does anything."""
    cfg, world, solver, done = run.cfg, run.world, run.cfg.SOLVER, run.state.step
    macs = [run.clip_macs(tuple(grid)) for grid in cfg.MODEL.COMPRESSED_GRIDS] or [run.clip_macs(None)]
    cost = f"{min(macs) / 1e9:.4g}" + (f" to {max(macs) / 1e9:.4g}" if len(macs) > 1 else "")
    share = cfg.TRAIN.BATCH_SIZE // (world.size * cfg.TRAIN.ACCUMULATION_STEPS)
    clip = torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, *2 * [cfg.DATA.TRAIN_CROP_SIZE], device=world.device)
    activations = share * activation_bytes(build_model(cfg).to(world.device).train(), clip, run.dtype)
    moments = 2 if solver.OPTIMIZING_METHOD == "adamw" else int(solver.MOMENTUM > 0)
    state = state_bytes(run.model, moments, solver.EMA_DECAY > 0)
    spread = world.size if cfg.TRAIN.PARALLEL == "fsdp" else 1
    rates = [run.schedule(step / run.total_steps) for step in (0, *range(run.total_steps))]
    start = f"step {done} of {cfg.OUTPUT_DIR}" if done else cfg.MODEL.INIT_FROM or "random weights"
    return [
        f"model      {cfg.MODEL.ARCH} {cfg.MODEL.VARIANT}, {count_parameters(run.model) / 1e6:.2f} M parameters, "
        + (f"{cost} GMACs a clip forward" if max(macs) else "GMACs: see lookupvit flops"),
        f"start      {start}",
        f"data       {len(run.train_videos)} training videos, {len(run.val_videos)} for validation, "
        f"{len(run.classes)} classes",
        f"clips      {cfg.DATA.NUM_FRAMES} frames of {cfg.DATA.TRAIN_CROP_SIZE} x {cfg.DATA.TRAIN_CROP_SIZE}, "
        f"{cfg.TRAIN.BATCH_SIZE} a step = {world.size} processes x {cfg.TRAIN.ACCUMULATION_STEPS} parts x {share}",
        f"steps      {run.total_steps} = {solver.MAX_EPOCH} epochs x {run.state.steps_per_epoch}, {done} done",
        f"rate       {solver.OPTIMIZING_METHOD}, first {rates[0]:.3g}, peak {max(rates):.3g}, last {rates[-1]:.3g}",
        f"precision  {str(run.dtype).removeprefix('torch.')}",
        f"memory     estimate {(state / spread + activations) / 2**30:.3g} GiB a process: weights, gradients and "
        f"optimizer {state / spread / 2**30:.3g}, activations of {share} clips {activations / 2**30:.3g} (before "
        "activation checkpointing)",
    ]


def dry_run(cfg: CfgNode, classes: list[str], world: World) -> None:
    """Print the plan of a run, then make one step; nothing is written.

    Raises:
        UserError, RunFailure: as ``train``.
    """
    run = prepare(cfg, classes, world, StopSignals(), dry=True)
    loader = train_batches(run)  # first: it checks that the list is long enough for a step
    lines = plan_lines(run)
    if world.is_main:
        print("\n".join(lines), flush=True)
    if run.state.step == run.total_steps:
        if world.is_main:
            print("one step   all steps are done")
        return
    batches = iter(loader)
    began = time.perf_counter()
    run.state.model.train()
    one_step(run, batches)
    run.steps.settle(run.state.step + 1)
    if world.is_main:
        loss, norm = run.steps.settled[-1]
        print(
            f"one step   {time.perf_counter() - began:.2f} s (with the start of the loader), loss {loss:.4f}, gradient "
            f"norm {norm:.3g}, peak memory {peak_memory_gib(world.device):.2f} GiB; nothing was written"
        )
