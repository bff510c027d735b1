"""The one place where a config becomes a model's plain arguments."""

import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lookupvit_video.config import token_grid
from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels
from lookupvit_video.models.adapters import WIDTHS, add_adapters, is_adapter
from lookupvit_video.models.blocks import BlockOptions, TemporalEncoder, TransformerBlock
from lookupvit_video.models.budget import Budget, all_budgets
from lookupvit_video.models.complexity import Shape, lookupvit_macs, tokens_within
from lookupvit_video.models.contract import VideoModel
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.pretexts.masked import MaskedModel
from lookupvit_video.models.pretexts.moving import MovingModel
from lookupvit_video.models.pretexts.pretext import Pretext
from lookupvit_video.models.streaming.model import StreamingLookupViT
from lookupvit_video.models.vit import ViT
from lookupvit_video.registry import MODELS, ModelEntry, imported, list_models

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """All that a config says about a model, as plain values."""

    arch: str
    arguments: Mapping[str, Any]
    """Of every model; each takes those that its signature names."""
    token_grid: tuple[int, int, int]
    """t x h x w of the lookup tokens; streaming, of those of a step."""
    grids: tuple[tuple[int, ...], ...]
    """Every compressed grid of training and test, the default one first; empty for models without."""
    keeps: tuple[tuple[float, ...], ...]
    """Every list of shares of the lookup tokens, the default one first."""
    adapter: str
    adapter_width: int
    adapter_scale: float
    frozen: str
    """What never trains: "" (all trains), "encoder" or "spatial" (tokenizer and blocks)."""
    train_norms: bool
    temporal_init: str

    @property
    def entry(self) -> ModelEntry:
        """The model's entry in the registry."""
        return MODELS[self.arch]

    @property
    def is_streaming(self) -> bool:
        """Whether tokens are carried from step to step."""
        return bool(self.arguments["encoder"] == "streaming")

    @property
    def shape(self) -> Shape:
        """What the cost of the models with tubelets depends on."""
        names = ("tubelet", "dim", "depth", "num_heads", "num_classes", "encoder", "temporal_depth", "pool",
                 "registers")  # fmt: skip
        return Shape(
            grid=(self.arguments["num_frames"] // self.arguments["tubelet"][0], *self.token_grid[1:]),
            lookup_conv=self.arguments["options"].lookup_conv,
            convolutional_tokenizer=self.arguments["options"].convolutional_tokenizer,
            adapter=self.adapter,
            adapter_width=self.adapter_width or WIDTHS.get(self.adapter, 0),
            temporal_adapter=self.adapter != "none" and self.adapted_stages[-1].startswith("temporal"),
            **{name: self.arguments[name] for name in names},
        )

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Every budget that ``forward`` takes, the default one first; empty for models without compressed tokens."""
        depth, exits = self.shape.depth if self.grids else 0, self.arguments["exits"]
        return all_budgets(self.grids, exits, self.keeps, math.prod(self.shape.block_grid), depth) if depth else ()

    @property
    def settings_not_in_weights(self) -> dict[str, Any]:
        """The MODEL settings that change what weights compute but not their shapes, so that loading cannot see them."""
        if not self.entry.tubelets:
            return {}
        names = ("num_heads", "pool", "resize", "input")
        options = self.arguments["options"]
        return {
            **{name.upper(): self.arguments[name] for name in names if name in self.arguments},
            "REVERSE_WEIGHTS": options.reverse,
            "POSITIONS": "rotary" if options.rotary else "learned",
            "ACTIVATION": options.activation,
            "NORM_EPS": options.norm_eps,
            "ADAPTER_SCALE": self.adapter_scale,
            **({"ROTARY": options.rotary} if options.rotary else {}),
            **({"STREAM_RESET": self.arguments["reset"]} if self.is_streaming else {}),
        }

    def macs(self, **changed: Any) -> dict[str, int]:
        """Return the closed-form multiply-accumulates of one view by part; empty where they can only be measured.

        Args:
            changed: arguments that differ, such as ``inference_head``.
        """
        if not self.entry.closed_form:
            return {}
        closed_form: Callable[..., dict[str, int]] = imported(self.entry.closed_form)
        return closed_form(self.shape, **_named(closed_form, {**self.arguments, **changed}))

    def budget_macs(self, budget: Budget, **changed: Any) -> dict[str, int]:
        """Return ``macs`` of a pass within a budget."""
        return self.macs(compressed_grid=budget.grid, blocks=budget.blocks, keep=budget.keep, **changed)

    def step_macs(self) -> dict[str, int]:
        """Return the closed-form multiply-accumulates of one step of a streaming model by part."""
        return replace(self, arguments={**self.arguments, "num_frames": self.arguments["tubelet"][0]}).macs()

    def build(self) -> VideoModel:
        """Build the model, freshly initialized from torch's current seed, with its adapters."""
        model_class = StreamingLookupViT if self.is_streaming else self.entry.model_class
        model = _made(self.entry, _named(model_class, self.arguments), model_class)
        if self.temporal_init == "identity":
            init_temporal_identity(model.get_submodule("temporal"))
        if self.adapter != "none":
            for stage in self.adapted_stages:
                add_adapters(model.get_submodule(stage), self.adapter, self.adapter_width, self.adapter_scale)
        return model

    @property
    def adapted_stages(self) -> list[str]:
        """Where adapters are, if there are any: the temporal blocks train themselves if the spatial ones are frozen."""
        if self.adapter == "connector":
            return ["temporal"]
        temporal = self.arguments["encoder"] == "factorised" and self.frozen != "spatial"
        return ["blocks", "temporal.blocks"] if temporal else ["blocks"]

    def is_frozen(self, name: str) -> bool:
        """Whether the parameter of that name does not train, or not in the first SOLVER.FREEZE_EPOCHS."""
        if name.startswith(("head.", "heads.", "exits.")) or is_adapter(name) or (self.train_norms and "norm" in name):
            return False
        if self.frozen == "spatial":
            # A norm that trains would keep all tokens of the frozen stage for the backward pass.
            norms = ("frame_norm",) if self.adapter == "connector" else ()
            return name.startswith(("tokenizer.", "blocks.", *norms))
        return self.frozen == "encoder" or self.adapter != "none"


def model_spec(cfg: CfgNode) -> ModelSpec:
    """Return what ``MODEL`` and ``DATA`` say about the model."""
    model, entry = cfg.MODEL, MODELS[cfg.MODEL.ARCH]
    arguments = dict(entry.variants[model.VARIANT][1])
    sizes = {"dim": model.DIM, "depth": model.DEPTH, "num_heads": model.NUM_HEADS}
    if entry.tubelets:
        arguments |= {name: size for name, size in sizes.items() if size}
    arguments |= {
        "num_classes": model.NUM_CLASSES,
        "num_frames": cfg.DATA.NUM_FRAMES,
        "size": cfg.DATA.TRAIN_CROP_SIZE,
        "tubelet": tuple(model.TUBELET),
        "compressed_grid": tuple(model.COMPRESSED_GRID),
        "input": model.INPUT,
        "resize": model.RESIZE,
        "encoder": "streaming" if model.STREAMING else model.ENCODER,
        "reset": model.STREAM_RESET,
        "temporal_depth": model.TEMPORAL_DEPTH,
        "pool": model.POOL,
        "registers": model.REGISTERS,
        "drop_path": model.DROP_PATH,
        "dropout": model.DROPOUT_RATE,
        "options": BlockOptions(
            activation=model.ACTIVATION,
            norm_eps=model.NORM_EPS,
            layer_scale=model.LAYER_SCALE,
            qk_norm=model.QK_NORM,
            reverse=model.REVERSE_WEIGHTS,
            lookup_conv=tuple(model.LOOKUP_CONV),
            rotary=model.ROTARY if model.POSITIONS == "rotary" else "",
            pre_norm=model.PRE_NORM,
            convolutional_tokenizer=model.TOKENIZER == "convolutional",
        ),
        "heads": tuple(model.HEADS),
        "inference_head": model.INFERENCE_HEAD,
        "exits": tuple(model.EXITS),
        "keep": tuple(model.KEEP),
        "keep_by": model.KEEP_BY,
    }
    grids = map(tuple, [model.COMPRESSED_GRID, *model.COMPRESSED_GRIDS, *cfg.TEST.GRIDS])
    spec = ModelSpec(
        arch=model.ARCH,
        arguments=arguments,
        token_grid=token_grid(cfg.MODEL, cfg.DATA),
        grids=tuple(dict.fromkeys(grids)) if entry.compressed_grids else (),
        keeps=tuple(map(tuple, [model.KEEP, *model.KEEPS])),
        adapter=model.ADAPTER,
        adapter_width=model.ADAPTER_WIDTH,
        adapter_scale=model.ADAPTER_SCALE,
        frozen="spatial" if model.FREEZE_SPATIAL else "encoder" if model.FREEZE_ENCODER else "",
        train_norms=model.TRAIN_NORMS,
        temporal_init=model.TEMPORAL_INIT,
    )
    arguments["grids"] = spec.grids[1:]
    if entry.reduces_tokens:
        arguments |= {"tokens": model.TOKENS, "keep_tokens": model.KEEP_TOKENS, "merge_tokens": model.MERGE_TOKENS}
        name = {"random": "keep_tokens", "merge": "merge_tokens"}.get(model.TOKENS, "")
        if name and not arguments[name]:
            arguments[name] = _tokens_for_equal_macs(spec)
    return spec


def build_model(cfg: CfgNode, *, empty: bool = False) -> VideoModel:
    """Build the model that ``MODEL`` and ``DATA`` describe, freshly initialized from torch's current seed.

    What is never trained has ``requires_grad`` off.

    Args:
        empty: leave the parameters without memory and values (on the meta device), for a checkpoint's to be assigned.
    """
    spec = model_spec(cfg)
    with _without_parameters() if empty else nullcontext():
        model = spec.build()
    if not cfg.SOLVER.FREEZE_EPOCHS:
        for name, parameter in model.named_parameters():
            if spec.is_frozen(name):
                parameter.requires_grad_(False)
    return model


def for_pretraining(model: VideoModel, task: str, PRETRAIN: Mapping[str, Any]) -> Pretext:
    """Return a model with what it is trained with, whose start follows from torch's current seed.

    Args:
        task: TRAIN.TASK.
    """
    assert isinstance(model, LookupViT | ViT)
    if task == "moving":
        return MovingModel(model)
    ratio, width, depth = (PRETRAIN[name] for name in ("MASK_RATIO", "DECODER_WIDTH", "DECODER_DEPTH"))
    return MaskedModel(model, ratio=ratio, width=width, depth=depth)


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Put the parameters of the modules that this thread makes on the meta device; buffers get their values."""
    thread = threading.get_ident()

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None  # no change
        return nn.Parameter(parameter.detach().to("meta"))

    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]  # it may return one
    try:
        yield
    finally:
        hook.remove()


def create_model(name: str, **arguments: Any) -> VideoModel:
    """Build a model by its name in ``list_models``, such as "lookupvit_base_16x2".

    Args:
        arguments: of the model's class, such as ``num_frames`` and ``num_classes`` (default: Kinetics' 400).

    Raises:
        UserError: there is no such name.
    """
    for entry in MODELS.values():
        for own_name, defaults in entry.variants.values():
            if own_name == name:
                return _made(entry, {"num_classes": 400, **defaults, **arguments}, entry.model_class)
    raise UserError(f"model {name!r}: choose one of {', '.join(list_models())}")


def _made(entry: ModelEntry, arguments: Mapping[str, Any], model_class: Any) -> VideoModel:
    model: VideoModel = model_class(**arguments)
    return kernels.optimize(model) if entry.tubelets else model


def _named(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that a function's signature names."""
    return {name: arguments[name] for name in inspect.signature(function).parameters if name in arguments}


def _tokens_for_equal_macs(spec: ModelSpec) -> int:
    """Return how many tokens a ViT keeps (or merges per block) to cost what this config's LookupViT costs."""
    shape, tokens = replace(spec.shape, adapter="none"), spec.arguments["tokens"]  # adapters change no number of tokens
    budget = sum(lookupvit_macs(shape, **_named(lookupvit_macs, spec.arguments)).values())
    count = tokens_within(budget, shape, tokens)
    if not count:
        logger.warning("MODEL.TOKENS %s: even the cheapest, used here, costs more than the LookupViT", tokens)
        return 1 if tokens == "random" else math.prod(shape.grid) // 2
    return count


@torch.no_grad()
def init_temporal_identity(temporal: nn.Module) -> None:
    """Make a fresh temporal transformer nearly the identity, so that the head sees the frames as they are.

    The last layer of each residual branch is zero, and positions are as small as ViViT's are at first (0.02).
    """
    assert isinstance(temporal, TemporalEncoder)
    temporal.positions.mul_(0.02)
    for block in temporal.blocks:
        assert isinstance(block, TransformerBlock)
        for last in (block.attention.projection, block.mlp[2]):
            for parameter in last.parameters():
                parameter.zero_()
