"""``lookupvit train --dry-run``: what a run will do and need, and one step."""

import time
import weakref
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookupvit_video.distributed.parallel import checkpoint_blocks
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.distributed.world import World
from lookupvit_video.log import peak_memory_gib
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model, for_pretraining
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.processes.stop_signals import StopSignals
from lookupvit_video.training.run import Run, prepare, train_batches
from lookupvit_video.training.step import one_step

CPU_ALLOWANCE = 1.25  # measured: what the C library keeps of freed memory, and buffers inside of operations


class TensorMemory(TorchDispatchMode):
    """Follows the memory of the tensors that operations in its block make: ``peak`` bytes at most at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def step_bytes(model: nn.Module, clips_BCTHW: Tensor, dtype: torch.dtype, **options: Any) -> int:
    """Return the most memory that forward and backward pass of some clips take at one time, by running them.

    Gradients count, parameters do not.
    """
    memory = TensorMemory()
    with memory:
        clips = clips_BCTHW.clone()
        with autocast(clips.device, dtype):
            output = model(clips, **options)
        torch.stack([logits.float().sum() for logits in output]).sum().backward()
    model.zero_grad()
    return int(memory.peak)


def drawn_budgets(run: Run) -> list[Budget | None]:
    """Return the budgets that steps of a run may have; None: the model's own."""
    model, budgets = run.cfg.MODEL, run.spec.budgets
    grids = list(map(tuple, model.COMPRESSED_GRIDS))
    keeps = list(map(tuple, model.KEEPS))
    if not budgets or not (grids or keeps):
        return [None]
    own = budgets[0]
    return [Budget(grid, 0, keep) for grid in grids or [own.grid] for keep in keeps or [own.keep]]


def estimate_bytes(run: Run, share: int) -> int:
    """Return the memory that a process will need at most, from what it holds now and what one and two clips need.

    Args:
        share: clips in one pass of a process.
    """
    cfg, device = run.cfg, run.world.device
    held = int(peak_memory_gib(device) * 2**30)  # before the passes below
    model, task = build_model(cfg), cfg.TRAIN.TASK
    model = (for_pretraining(model, task, cfg.PRETRAIN) if task != "classify" else model).to(device).train()
    checkpoint_blocks(model, cfg.TRAIN.ACTIVATION_CHECKPOINTING)
    dearest = max(drawn_budgets(run), key=run.clip_macs)
    options = {"budget": dearest} if dearest else {}
    clips = torch.zeros(2, 3, cfg.DATA.NUM_FRAMES, *2 * [cfg.DATA.TRAIN_CROP_SIZE], device=device)
    one, two = (step_bytes(model, clips[:count], run.dtype, **options) for count in (1, min(2, share)))
    trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
    moments = 2 if cfg.SOLVER.OPTIMIZING_METHOD == "adamw" else int(cfg.SOLVER.MOMENTUM > 0)
    added = 4 * moments * trained + one + (share - 1) * (two - one)
    return held + (added if device.type == "cuda" else int(CPU_ALLOWANCE * added))


def start_lines(run: Run) -> list[str]:
    """Return what a run starts from, line by line."""
    cfg, done = run.cfg, run.state.step
    macs = [run.clip_macs(budget) for budget in drawn_budgets(run)]
    cost = f"{min(macs) / 1e9:.4g}" + (f" to {max(macs) / 1e9:.4g}" if len(macs) > 1 else "")
    start = f"step {done} of {cfg.OUTPUT_DIR}" if done else cfg.MODEL.INIT_FROM or "random weights"
    return [
        f"model      {cfg.MODEL.ARCH} {cfg.MODEL.VARIANT}, {count_parameters(run.model) / 1e6:.2f} M parameters, "
        + (f"{cost} GMACs a clip forward" if max(macs) else "GMACs: see lookupvit flops"),
        f"start      {start}",
        f"data       {len(run.train_videos)} training videos, {len(run.val_videos)} for validation, "
        f"{len(run.classes)} classes",
    ]


def plan_lines(run: Run) -> list[str]:
    """Return what a run will do and need, line by line, before it does anything."""
    cfg, world, solver, done = run.cfg, run.world, run.cfg.SOLVER, run.state.step
    share = cfg.TRAIN.BATCH_SIZE // (world.size * cfg.TRAIN.ACCUMULATION_STEPS)
    rates = [run.schedule(step / run.total_steps) for step in (0, *range(run.total_steps))]
    return [
        *start_lines(run),
        f"clips      {cfg.DATA.NUM_FRAMES} frames of {cfg.DATA.TRAIN_CROP_SIZE} x {cfg.DATA.TRAIN_CROP_SIZE}, "
        f"{cfg.TRAIN.BATCH_SIZE} a step = {world.size} processes x {cfg.TRAIN.ACCUMULATION_STEPS} parts x {share}",
        f"steps      {run.total_steps} = {solver.MAX_EPOCH} epochs x {run.state.steps_per_epoch}, {done} done",
        f"rate       {solver.OPTIMIZING_METHOD}, first {rates[0]:.3g}, peak {max(rates):.3g}, last {rates[-1]:.3g}",
        f"precision  {str(run.dtype).removeprefix('torch.')}",
        f"memory     estimate {estimate_bytes(run, share) / 2**30:.2f} GiB a process",
    ]


def dry_run(cfg: CfgNode, classes: list[str], world: World) -> None:
    """Print the plan of a run, then make one step; nothing is written.

    Raises:
        UserError, RunFailure: as ``train``.
    """
    run = prepare(cfg, classes, world, StopSignals(), dry=True)
    if cfg.TRAIN.FINETUNE == "probe":
        print("\n".join([*start_lines(run), "steps      none: features of all clips once, then the classifiers"]))
        return
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
