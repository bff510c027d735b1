"""A model's training spread over processes: activation checkpointing, compilation, DDP or FSDP2; the state of it all.

Reading order: ``parallelize``, ``synchronizing``, ``clip_gradients``, ``full_state``.
Sources: FSDP2 is ``torch.distributed.fsdp.fully_shard`` (ZeRO stage 3, arXiv 1910.02054); the order in which
``parallelize`` applies things is torchtitan's (arXiv 2410.06511).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lookupvit_video.distributed.world import World

logger = logging.getLogger(__name__)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
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
    statistics = any(isinstance(module, _BatchNorm) for module in model.modules())  # other buffers never change
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        broadcast_buffers=statistics,
        find_unused_parameters=cfg.SOLVER.FREEZE_EPOCHS > 0,  # what is frozen at first has no gradient then
    )


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
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    set_optimizer_state_dict(model, optimizer, state, options=options)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)  # the config's weight decay and betas, not those of the checkpoint
    for name, parameter in _plain(model).named_parameters():
        if name not in state["state"]:  # it had no step yet, and torch counts one
            optimizer.state.pop(parameter, None)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of TRAIN.PRECISION: "auto" is bfloat16 on GPUs that compute in it, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a model computes in a dtype; float32: as it is."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
