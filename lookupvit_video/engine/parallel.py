"""Processes and devices: what torchrun started, where this process computes, and the model spread over them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0


def init_world() -> World:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPUs), or be alone without it.

    Raises:
        ValueError: fewer GPUs than processes on this machine.
    """
    size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun --nproc_per_node: process {local_rank} has no GPU of its own; this machine "
                f"has {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(int(os.environ.get("RANK", 0)), size, device)


def close_world() -> None:
    """Leave the process group, if one was joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def parallelize(model: nn.Module, cfg: CfgNode, world: World) -> nn.Module:
    """Spread the training of a model over the processes, before its optimiser is made; the model knows none of it."""
    if world.size == 1:
        return model
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


@contextmanager
def synchronizing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Let the backward pass inside average gradients over the processes, or not yet (gradient accumulation)."""
    if wanted or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit`` (0: as it is); return the norm before."""
    return nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf"))


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the unsharded state of a model and its optimiser, on the CPU, whatever ``parallelize`` did.

    All processes must call it; names are those of the plain model.
    """
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    return plain.state_dict(), optimizer.state_dict() if optimizer else None


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put the optimiser's part of a ``full_state`` back, under any kind of parallelism and number of processes."""
    optimizer.load_state_dict(state)


def gather_objects(value: T, world: World) -> list[T]:
    """Return every process's value, by rank, in every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    distributed.all_gather_object(values, value)
    return values


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of TRAIN.PRECISION: "auto" is bfloat16 on GPUs that compute in it, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
