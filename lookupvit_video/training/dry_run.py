"""``tools/run_net.py --dry-run``: what a run will do and need, and one step of it."""

import time

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lookupvit_video.distributed.world import World
from lookupvit_video.log import peak_memory_gib
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.processes.stop_signals import StopSignals
from lookupvit_video.training.run import Run, prepare, train_batches
from lookupvit_video.training.step import one_step
from lookupvit_video.training.utilisation import clip_macs


def activation_bytes(cfg: CfgNode, device: torch.device, dtype: torch.dtype) -> int:
    """Return the memory that one clip's forward pass keeps for the backward pass, by running it on a fresh model.

    Parameters do not count. Without activation checkpointing and compilation, which need less.
    """
    model = build_model(cfg).to(device).train()
    size = cfg.DATA.TRAIN_CROP_SIZE
    clip = torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, size, size, device=device)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        output = model(clip)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def state_bytes(cfg: CfgNode, model: nn.Module) -> int:
    """Return the memory of parameters, gradients, optimiser state and averaged weights, all in float32."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    moments = 2 if cfg.SOLVER.OPTIMIZING_METHOD == "adamw" else int(cfg.SOLVER.MOMENTUM > 0)
    return 4 * (total + trained * (1 + moments + int(cfg.SOLVER.EMA_DECAY > 0)))


def plan_lines(run: Run) -> list[str]:
    """Return what a run will do and need, line by line, before anything of it is done."""
    cfg, world = run.cfg, run.world
    macs = [clip_macs(cfg, tuple(grid)) for grid in cfg.MODEL.COMPRESSED_GRIDS] or [clip_macs(cfg, None)]
    cost = f"{min(macs) / 1e9:.4g}" + (f" to {max(macs) / 1e9:.4g}" if len(macs) > 1 else "")
    share = cfg.TRAIN.BATCH_SIZE // (world.size * cfg.TRAIN.ACCUMULATION_STEPS)
    state, activations = state_bytes(cfg, run.model), share * activation_bytes(cfg, world.device, run.dtype)
    spread = world.size if cfg.TRAIN.PARALLEL == "fsdp" else 1
    rates = [run.schedule(step / run.total_steps) for step in (0, *range(run.total_steps))]
    start = f"step {run.step} of {cfg.OUTPUT_DIR}" if run.step else cfg.MODEL.INIT_FROM or "random weights"
    return [
        f"model      {cfg.MODEL.ARCH} {cfg.MODEL.VARIANT}, {count_parameters(run.model) / 1e6:.2f} M parameters, "
        + (f"{cost} GMACs a clip forward" if max(macs) else "GMACs: see tools/flops.py"),
        f"start      {start}",
        f"data       {len(run.train_videos)} training videos, {len(run.val_videos)} for validation, "
        f"{len(run.classes)} classes",
        f"clips      {cfg.DATA.NUM_FRAMES} frames of {cfg.DATA.TRAIN_CROP_SIZE} x {cfg.DATA.TRAIN_CROP_SIZE}, "
        f"{cfg.TRAIN.BATCH_SIZE} a step = {world.size} processes x {cfg.TRAIN.ACCUMULATION_STEPS} parts x {share}",
        f"steps      {run.total_steps} = {cfg.SOLVER.MAX_EPOCH} epochs x {run.steps_per_epoch}, {run.step} done",
        f"rate       {cfg.SOLVER.OPTIMIZING_METHOD}, first {rates[0]:.3g}, peak {max(rates):.3g}, last {rates[-1]:.3g}",
        f"precision  {str(run.dtype).removeprefix('torch.')}",
        f"memory     estimate {(state / spread + activations) / 2**30:.3g} GiB a process: weights, gradients and "
        f"optimiser {state / spread / 2**30:.3g}, activations of {share} clips {activations / 2**30:.3g} (before "
        "activation checkpointing)",
    ]


def dry_run(cfg: CfgNode, classes: list[str], world: World) -> None:
    """Print the plan of a run, then make one step of it; nothing is written.

    Raises:
        ValueError, RunFailure: as ``train``.
    """
    run = prepare(cfg, classes, world, StopSignals(), dry=True)
    loader = train_batches(run)  # first, since it checks that there is a step at all
    lines = plan_lines(run)
    if world.is_main:
        print("\n".join(lines), flush=True)
    if run.step == run.total_steps:
        if world.is_main:
            print("one step   none is left")
        return
    batches = iter(loader)
    began = time.perf_counter()
    run.parallel_model.train()
    one_step(run, batches)
    run.steps.settle(run.step + 1)
    if world.is_main:
        loss, norm = run.steps.settled[-1]
        print(
            f"one step   {time.perf_counter() - began:.2f} s (with the start of the loader), loss {loss:.4f}, gradient "
            f"norm {norm:.3g}, peak memory {peak_memory_gib(world.device):.2f} GiB; nothing was written"
        )
