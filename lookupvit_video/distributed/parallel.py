"""Training spread over processes: activation checkpointing, compilation, DDP or FSDP2, and the unsharded state.

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

from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.distributed.world import World
from lookupvit_video.models.kernels.compiler import require_compiler

logger = logging.getLogger(__name__)
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
# Selective checkpointing keeps the outputs of linear layers and of fused attention, which cost most to recompute, but
# not the M x N scores of the cross-attention, which take most memory.
_KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
_COMPILATIONS_PER_BLOCK = 8  # training and evaluation, with fixed and with dynamic sizes


def parallelize(model: nn.Module, cfg: CfgNode, world: World) -> nn.Module:
    """Spread the training of a model over the processes, before its optimizer is made; the model knows none of it.

    In this order: activation checkpointing (TRAIN.ACTIVATION_CHECKPOINTING) of each block, its compilation
    (TRAIN.COMPILE), then DDP or FSDP2 (TRAIN.PARALLEL). Parameters keep their names. The result is called as the model
    is; under FSDP2 it is the same object, with sharded parameters.

    Args:
        model: on ``world.device``, the same in all processes.
    """
    blocks = _blocks(model)
    checkpoint_blocks(model, cfg.TRAIN.ACTIVATION_CHECKPOINTING)
    if cfg.TRAIN.COMPILE:
        require_compiler("TRAIN.COMPILE", world.device.type, "TRAIN.COMPILE False trains without one")
        compile_blocks(blocks)
    if world.size == 1:
        if cfg.TRAIN.PARALLEL != "ddp":
            logger.warning("TRAIN.PARALLEL %s is ignored: there is only one process", cfg.TRAIN.PARALLEL)
        return model
    if cfg.TRAIN.PARALLEL == "fsdp":
        dtype = autocast_dtype(cfg.TRAIN.PRECISION, world.device)
        return _shard(model, blocks, world, dtype, cpu_offload=cfg.TRAIN.CPU_OFFLOAD)
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    statistics = any(isinstance(module, _BatchNorm) for module in model.modules())  # other buffers never change
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        broadcast_buffers=statistics,
        find_unused_parameters=cfg.SOLVER.FREEZE_EPOCHS > 0,  # frozen parameters have no gradient
    )


def _blocks(model: nn.Module) -> list[nn.Module]:
    parts = getattr(model, "parts", (model,))  # in pre-training an encoder and its decoder
    with_blocks = [*parts, *filter(None, (getattr(part, "temporal", None) for part in parts))]
    return [block for part in with_blocks for block in part.blocks]


def _entry(block: nn.Module) -> str:
    """Return the name of the method by which the model calls a block."""
    return "forward_merging" if hasattr(block, "forward_merging") else "forward"


def checkpoint_blocks(model: nn.Module, kind: str) -> None:
    """Checkpoint the activations of each block, see ``checkpoint_activations``."""
    for block in _blocks(model):
        checkpoint_activations(block, kind)


def checkpoint_activations(block: nn.Module, kind: str) -> None:
    """Checkpoint a block's activations: keep less for the backward pass, which recomputes it.

    Args:
        kind: "none"; "write_back": keep nothing of what LookupViT's block does to the lookup tokens after the gather;
            "selective": keep ``_KEPT`` only; "full": keep the block's inputs only.
    """
    name = "write_back" if kind == "write_back" else _entry(block)
    if kind == "none" or not hasattr(block, name):  # the blocks of a temporal encoder have no write-back
        return
    plain: Callable[..., Any] = getattr(block, name)
    checkpointed = partial(checkpoint, plain, use_reentrant=False)
    if kind == "selective":
        checkpointed = partial(checkpointed, context_fn=partial(create_selective_checkpoint_contexts, _KEPT))
    setattr(block, name, checkpointed)  # no wrapper around the module, which would change names


def compile_blocks(blocks: list[nn.Module], backend: str = "inductor", dynamic: bool | None = None) -> None:
    """Compile each block's forward in place; equal blocks share the code.

    A size that changes from call to call (another compressed grid, a last batch) becomes dynamic at its second value,
    so the number of compilations does not grow with the number of grids. Past a limit a block runs uncompiled.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _COMPILATIONS_PER_BLOCK * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in blocks:  # the method rather than the module, so that FSDP's hooks stay outside
        setattr(block, _entry(block), torch.compile(getattr(block, _entry(block)), backend=backend, dynamic=dynamic))


def _shard(
    model: nn.Module, blocks: list[nn.Module], world: World, dtype: torch.dtype, *, cpu_offload: bool = False
) -> nn.Module:
    """Spread parameters, gradients and optimizer state over all processes, with each block as a unit (FSDP2).

    In lower precision the blocks' parameters are sent in it and gradients are summed in float32. Parameters outside the
    blocks stay float32: positions in bfloat16 would lower the precision of the residual stream. Inputs are left to
    autocast, as under DDP.
    """
    mesh, on_gpu = init_device_mesh(world.device.type, (world.size,)), world.device.type == "cuda"
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    lower = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if cpu_offload and on_gpu else OffloadPolicy()
    if cpu_offload and not on_gpu:
        logger.warning("TRAIN.CPU_OFFLOAD is ignored: there is no GPU here whose memory it would save")
    for block in blocks:
        policy = lower if on_gpu else full  # a CPU's layer norm takes no second dtype
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
        if _entry(block) != "forward":
            register_fsdp_forward_method(block, _entry(block))
    fully_shard(model, mesh=mesh, mp_policy=full, offload_policy=offload, reshard_after_forward=False)
    return model


def _plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let each process use a sharded model on its own inside, for evaluation; other models are left as they are.

    All processes must enter and leave. Inside, a forward pass needs no other process, so the number of batches may
    differ, and each process has all parameters in memory.
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
    """Let the backward pass inside average gradients over the processes, or not (gradient accumulation)."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
        yield
    elif wanted or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit`` (0: do not); return the norm before.

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
    """Return the unsharded state of a model and its optimizer, on the CPU, whatever ``parallelize`` did.

    All processes must call it; the main one gets the state, the others empty dicts. Names are those of the plain model,
    in the optimizer's part too ({"state": {name: ...}, "param_groups": [{"params": [name, ...], ...}]}). The state is a
    copy: training does not change it.

    Args:
        model: what ``parallelize`` returned.
    """
    weights = _copied(get_model_state_dict(model, options=_FULL))
    if optimizer is None:
        return weights, None
    if not optimizer.state:  # before the first step; torch would count the query as a step
        return weights, {"state": {}, "param_groups": []}
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FULL)
    return weights, {"state": _copied(state["state"]), "param_groups": state["param_groups"]} if state else {}


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Move entries to a new dict, with copies of their tensors."""
    return {name: tree_map_only(Tensor, Tensor.clone, state.pop(name)) for name in list(state)}


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimizer's part of a ``full_state``, under any kind of parallelism and number of processes.

    All processes must call it, each with the complete state.

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
        if name not in state["state"]:  # it had no step yet, but torch counts one
            optimizer.state.pop(parameter, None)
