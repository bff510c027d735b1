"""Processes and devices: what torchrun started, where this process computes, and the model spread over them.

Reading order: ``init_world``, ``parallelize``, ``full_state``, ``lost_processes_told``.
Sources: FSDP2 is ``torch.distributed.fsdp.fully_shard`` (ZeRO stage 3, arXiv 1910.02054); the order in which
``parallelize`` applies things is torchtitan's (arXiv 2410.06511).
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import Store
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lookupvit_video.engine.generation import fresh_store
from lookupvit_video.engine.optim import learning_rate_factor
from lookupvit_video.errors import RunFailure

logger = logging.getLogger(__name__)
T = TypeVar("T")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_HELP = "see docs/distributed.md"
# What selective checkpointing keeps: the results of linear layers and of fused attention, whose recomputation costs
# most. The M x N scores of the cross-attention, which weigh most in memory, are no such results.
_KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
_COMPILATIONS_PER_BLOCK = 8  # training and evaluation, with fixed and with free sizes


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device
    hosts: tuple[str, ...] = ()
    """The machine of each process, by rank."""
    control: distributed.ProcessGroup | None = field(default=None, repr=False, compare=False)
    """A gloo group of all, for what must not wait for a GPU."""
    store: Store | None = field(default=None, repr=False, compare=False)
    """Where the processes met; it answers when they do not."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def name(self, rank: int) -> str:
        """Return what a message calls a process."""
        return f"process {rank} of {self.size}" + (f" on {self.hosts[rank]}" if self.hosts else "")


def init_world(timeout: float = 1800.0, join_timeout: float = 300.0) -> World:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPUs), or be alone without it.

    Args:
        timeout: seconds that an operation between processes may take, which is how long they wait for one that hangs.
        join_timeout: seconds that all of them may take to come.

    Raises:
        ValueError: fewer GPUs than processes on this machine, or half of the settings that torchrun makes.
        RunFailure: the processes do not find one another; says who is missing and what to check.
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
    if size == 1:
        return World(0, 1, device, (socket.gethostname(),))
    rank = int(os.environ.get("RANK", 0))
    if distributed.is_initialized():
        return World(rank, size, device)
    store, hosts = _join(World(rank, size, device), timeout, join_timeout)
    control = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    assert isinstance(control, distributed.ProcessGroup)  # every process is in it
    return World(rank, size, device, hosts, control, store)


def _join(world: World, timeout: float, join_timeout: float) -> tuple[Store, tuple[str, ...]]:
    """Open the connections between the processes; return where they met, and the machine of each."""
    here = f"process {world.rank} of {world.size} on {socket.gethostname()}"
    unset = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if unset:
        raise ValueError(f"{here}: WORLD_SIZE is set but not {', '.join(unset)}; start with torchrun, {_HELP}")
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=join_timeout)))
    except (RuntimeError, OSError) as error:
        raise RunFailure(
            f"{here} did not meet the others at {place} ({_first_line(error).rstrip('.')}); check that torchrun "
            f"runs on every node, that the address is the first node's, its port free there and open to all, {_HELP}"
        ) from None
    try:
        store = fresh_store(store, world.rank, world.size, join_timeout)
        _absent(store, "join", world, join_timeout)  # each tells its machine
    except (RunFailure, distributed.DistError) as error:  # DistError: without torchrun the first process has the store
        told = error if isinstance(error, RunFailure) else "lost process 0"
        raise RunFailure(
            f"{here} {told}; check that torchrun runs on every node with the same --nnodes and --nproc_per_node, and "
            f"what it says there, {_HELP}"
        ) from None
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout),
        )
    except RuntimeError as error:
        raise RunFailure(
            f"{here} found the others at {place} but cannot connect to them ({_first_line(error)}); set "
            f"GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface between the nodes, {_HELP}"
        ) from None
    return store, tuple(store.get(f"join/{rank}").decode() for rank in range(world.size))


def _absent(store: Store, occasion: str, world: World, seconds: float) -> list[int]:
    """Tell that this process is here; return the ranks of those that do not within some seconds."""
    names = [f"{occasion}/{rank}" for rank in range(world.size)]
    deadline = time.monotonic() + seconds
    try:
        store.set(names[world.rank], socket.gethostname())
        while not store.check(names):
            if time.monotonic() > deadline:
                return [rank for rank, name in enumerate(names) if not store.check([name])]
            time.sleep(0.05)  # rather than ``store.wait``, during which no other thread can use it
    except RuntimeError:  # without torchrun the first process has the store
        return [0]
    return []


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def close_world() -> None:
    """Leave the process group, if one was joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def describe_world(cfg: CfgNode, world: World, num_videos: int) -> str:
    """Return a line for each process and one for what a step is; all processes must call it.

    Args:
        num_videos: of the training list.
    """
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    places = gather_objects(f"host {socket.gethostname()}, device {world.device} {gpu}".rstrip(), world)
    parts = cfg.TRAIN.ACCUMULATION_STEPS
    kind = "" if world.size == 1 else f", {cfg.TRAIN.PARALLEL}"
    lines = [f"process {rank} of {world.size}: {place}" for rank, place in enumerate(places)]
    lines.append(
        f"a step: {cfg.TRAIN.BATCH_SIZE} clips = world size {world.size} x {parts} accumulation steps x "
        f"{cfg.TRAIN.BATCH_SIZE // (world.size * parts)}{kind}, "
        f"{str(autocast_dtype(cfg.TRAIN.PRECISION, world.device)).removeprefix('torch.')}; "
        f"peak learning rate {cfg.SOLVER.BASE_LR * learning_rate_factor(cfg):g} for any world size; "
        f"{num_videos} training videos"
    )
    return "\n".join(lines)


def parallelize(model: nn.Module, cfg: CfgNode, world: World) -> nn.Module:
    """Spread the training of a model over the processes, before its optimiser is made; the model knows none of it.

    In this order: activation checkpointing (TRAIN.ACTIVATION_CHECKPOINTING) of each block, its compilation
    (TRAIN.COMPILE), then DDP or FSDP2 (TRAIN.PARALLEL). Parameters keep their names. What is returned is called as the
    model is; under FSDP2 it is the model, whose parameters are sharded from here on.

    Args:
        model: on ``world.device``, the same in all processes.
    """
    blocks = _blocks(model)
    for block in blocks:
        checkpoint_activations(block, cfg.TRAIN.ACTIVATION_CHECKPOINTING)
    if cfg.TRAIN.COMPILE:
        compile_blocks(blocks)
    if world.size == 1:
        if cfg.TRAIN.PARALLEL != "ddp":
            logger.warning("TRAIN.PARALLEL %s: one process has nothing to spread, ignored", cfg.TRAIN.PARALLEL)
        return model
    if cfg.TRAIN.PARALLEL == "fsdp":
        return _shard(model, blocks, cfg, world)
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    temporal = getattr(model, "temporal", None)
    return [*model.blocks, *(temporal.blocks if temporal is not None else [])]  # type: ignore[misc]


def _entry(block: nn.Module) -> str:
    """Return the name of the method by which the model calls a block."""
    return "forward_merging" if hasattr(block, "forward_merging") else "forward"


def checkpoint_activations(block: nn.Module, kind: str) -> None:
    """Have a block keep less for backward, which computes it again.

    Args:
        kind: "none"; "write_back": nothing of what LookupViT's block does to its many lookup tokens after the gather;
            "selective": of the whole block ``_KEPT`` alone; "full": the block's inputs alone.
    """
    name = "write_back" if kind == "write_back" else _entry(block)
    if kind == "none" or not hasattr(block, name):  # a temporal encoder's blocks have no way back
        return
    plain: Callable[..., Any] = getattr(block, name)
    checkpointed = partial(checkpoint, plain, use_reentrant=False)
    if kind == "selective":
        checkpointed = partial(checkpointed, context_fn=partial(create_selective_checkpoint_contexts, _KEPT))
    setattr(block, name, checkpointed)  # no wrapper around the module, which would change names


def compile_blocks(blocks: list[nn.Module], backend: str = "inductor", dynamic: bool | None = None) -> None:
    """Compile each block's forward in place; equal blocks share the code.

    A size that changes from call to call (another compressed grid, a last batch) is free from the second value on, so
    the number of compilations does not grow with the number of grids. Past a limit a block runs uncompiled.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _COMPILATIONS_PER_BLOCK * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in blocks:  # the method rather than the module, so that FSDP's hooks stay outside
        setattr(block, _entry(block), torch.compile(getattr(block, _entry(block)), backend=backend, dynamic=dynamic))


def _shard(model: nn.Module, blocks: list[nn.Module], cfg: CfgNode, world: World) -> nn.Module:
    """Spread parameters, gradients and optimiser state over all processes, with each block as a unit (FSDP2).

    In lower precision the blocks' parameters travel in it and gradients are summed in float32; what is outside the
    blocks stays float32, since positions in bfloat16 would take the residual stream with them. Inputs are left to
    autocast, as under DDP.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    dtype = autocast_dtype(cfg.TRAIN.PRECISION, world.device)
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    lower = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if cfg.TRAIN.CPU_OFFLOAD and world.device.type == "cuda" else OffloadPolicy()
    if cfg.TRAIN.CPU_OFFLOAD and world.device.type != "cuda":
        logger.warning("TRAIN.CPU_OFFLOAD: there is no GPU here whose memory it would spare, ignored")
    for block in blocks:
        policy = lower if world.device.type == "cuda" else whole  # a CPU's layer norm takes no second dtype
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
        if _entry(block) != "forward":
            register_fsdp_forward_method(block, _entry(block))
    fully_shard(model, mesh=mesh, mp_policy=whole, offload_policy=offload, reshard_after_forward=False)
    return model


def _plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let each process use a sharded model on its own inside, for evaluation; others are whole already.

    All processes must enter and leave. Inside, a forward needs no other process, so that their number of batches may
    differ, and each of them has all parameters in memory.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_reshard_after_forward(False)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
    try:
        yield
    finally:
        model.set_reshard_after_forward(True)
        model.set_reshard_after_forward(False, recurse=False)  # as ``_shard`` made it
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


@contextmanager
def synchronizing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Let the backward pass inside average gradients over the processes, or not yet (gradient accumulation)."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
        yield
    elif wanted or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit`` (0: as it is); return the norm before.

    Under FSDP2 the norm is that of all shards. All processes must call it.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit:
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor().to(norm.device_mesh.device_type)  # offloaded gradients have theirs in RAM
    return norm


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the unsharded state of a model and its optimiser, on the CPU, whatever ``parallelize`` did.

    All processes must call it, and the main one gets it: the others, empty dicts. Names are those of the plain model,
    in the optimiser's part too ({"state": {name: ...}, "param_groups": [{"params": [name, ...], ...}]}). No memory is
    shared with what goes on training.

    Args:
        model: what ``parallelize`` returned.
    """
    weights = _copied(get_model_state_dict(model, options=_WHOLE))
    if optimizer is None:
        return weights, None
    if not optimizer.state:  # no step was made yet, and torch would count its asking as one
        return weights, {"state": {}, "param_groups": []}
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    return weights, {"state": _copied(state["state"]), "param_groups": state["param_groups"]} if state else {}


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Move entries to a new dict, with copies of their tensors."""
    return {name: tree_map_only(Tensor, Tensor.clone, state.pop(name)) for name in list(state)}


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put the optimiser's part of a ``full_state`` back, under any kind of parallelism and number of processes.

    All processes must call it, each with the whole state.

    Args:
        model: what ``parallelize`` returned.
    """
    if not state["state"]:
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    for name, parameter in _plain(model).named_parameters():
        if name not in state["state"]:  # it had no step yet, and torch counts one
            optimizer.state.pop(parameter, None)


def gather_objects(value: T, world: World) -> list[T]:
    """Return every process's value, by rank, in every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    distributed.all_gather_object(values, value)
    return values


def check_in(world: World, where: str, seconds: float) -> None:
    """Wait until all processes are here, by a way that needs none of them to work: where they met.

    Args:
        where: names this place and time, the same in all processes and never used before.
        seconds: how long.

    Raises:
        RunFailure: in all that are here; names those that are not.
    """
    missing = _absent(world.store, where, world, seconds) if world.store else []
    if missing:
        raise RunFailure(f"{where}: {_gone(missing, world, seconds)}")


def _gone(missing: list[int], world: World, seconds: float) -> str:
    names = ", ".join(map(world.name, missing))
    return f"no answer within {seconds:g} s from {names}: hangs or is gone, see its log and its machine, {_HELP}"


@contextmanager
def lost_processes_told(world: World, seconds: float = 30.0) -> Iterator[None]:
    """Turn what torch raises when processes lose one another into one line that names who is missing.

    Args:
        seconds: that those who notice wait for the others to answer.

    Raises:
        RunFailure: in its place.
    """
    try:
        yield
        return
    except RunFailure:
        raise
    except RuntimeError as error:  # torch's errors of the network are such
        told = _first_line(error)
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
    missing = _absent(world.store, "lost contact", world, seconds) if world.store else []
    cause = _gone(missing, world, seconds) if missing else f"all processes answer: see the network, {_HELP}"
    raise RunFailure(f"lost contact ({told}); {cause}")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of TRAIN.PRECISION: "auto" is bfloat16 on GPUs that compute in it, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
