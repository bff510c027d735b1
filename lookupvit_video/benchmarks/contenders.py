"""The models that a benchmark compares: LookupViT, a dense ViT, and what users would pick instead."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit_video.config import get_defaults
from lookupvit_video.distributed.parallel import checkpoint_activations, compile_blocks
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.models import kernels
from lookupvit_video.models.attention import set_kernel
from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.complexity import measured_macs
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.pretexts.masked import MaskedModel
from lookupvit_video.models.tokenizer import Grid
from lookupvit_video.models.vit import ViT
from lookupvit_video.registry import VIT_SIZES
from lookupvit_video.text import grid_name
from lookupvit_video.training.pretraining.masked import changes, masked_error

NUM_CLASSES, TUBELET, PEERS_PATCH = 400, (2, 16, 16), 16
DENSE = "dense ViT"  # speed-ups are over this one; its attention is torch's SDPA
DENSE_BY_HEADS = "dense ViT, own attention"
MASKED, MASK_RATIO = "masked pre-training", 0.9  # the share that VideoMAE masks
VIDEOMAE, VIVIT = "VideoMAE's ViT (Hugging Face)", "ViViT (Hugging Face)"


@dataclass(frozen=True)
class Setting:
    """What all contenders of a comparison share."""

    mode: str  # inference or train
    frames: int
    size: int
    batch: int
    threads: int

    def clips(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return normalized clips (B, C, T, H, W) of noise."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.frames, self.size, self.size, generator=generator).to(device, dtype)


@dataclass
class Contender:
    """A model and how to call it on a clip (B, C, T, H, W) for the logits (B, K) of each of its heads."""

    name: str
    model: nn.Module
    call: Callable[[nn.Module, Tensor], Sequence[Tensor]]
    grid: Grid | None = None
    macs: int = 0
    optimizer: torch.optim.Optimizer | None = None
    loss: Callable[[nn.Module, Tensor], Tensor] | None = None
    """Of a training step on clips; None: cross-entropy of each head."""


def heads_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the logits (B, K) of each head of one of this project's models."""
    return output if isinstance(output, tuple) else (output,)


def our_arguments(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of one of this project's models."""
    dim, depth, num_heads = VIT_SIZES[arguments.variant]
    return {
        "num_classes": NUM_CLASSES, "num_frames": setting.frames, "size": setting.size, "tubelet": TUBELET,
        "dim": arguments.dim or dim, "depth": arguments.depth or depth,
        "num_heads": arguments.dim // 64 if arguments.dim else num_heads,
    }  # fmt: skip


def lookupvits(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """One model for each kernel and checkpointing; its grids share the weights, as in a multi-resolution model."""
    checkpointings = arguments.checkpointing if setting.mode == "train" else ["none"]
    for kernel, checkpointing in product(arguments.kernels, checkpointings):
        model = LookupViT(
            compressed_grid=arguments.grids[0],
            grids=arguments.grids[1:],
            inference_head=arguments.head,
            options=BlockOptions(reverse=arguments.reverse),
            **our_arguments(setting, arguments),
        )
        set_kernel(kernels.optimize(model), kernel)
        for block in model.blocks:
            checkpoint_activations(block, checkpointing)
        extra = [kernel] if len(arguments.kernels) > 1 else []
        extra += [] if checkpointing == "none" else [f"{checkpointing} recomputed"]
        for grid in arguments.grids:
            name = ", ".join([f"LookupViT {grid_name(grid)}", *extra])

            def call(model: nn.Module, clips: Tensor, grid: Grid = grid) -> tuple[Tensor, ...]:
                return heads_of(model(clips, grid))

            yield Contender(name, model, call, grid)


def masked(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """LookupViT in masked pre-training with the decoder of the default config, for training steps only."""
    if setting.mode != "train":
        return
    keys = get_defaults().PRETRAIN
    encoder = LookupViT(
        compressed_grid=arguments.grids[0], grids=arguments.grids[1:], **our_arguments(setting, arguments)
    )
    model = MaskedModel(encoder, ratio=MASK_RATIO, width=keys.DECODER_WIDTH, depth=keys.DECODER_DEPTH)
    for grid in arguments.grids:

        def call(model: nn.Module, clips: Tensor, grid: Grid = grid) -> tuple[Tensor]:
            return (model(clips, grid).changes,)

        def loss(model: nn.Module, clips: Tensor, grid: Grid = grid) -> Tensor:
            return masked_error(model(clips, grid), changes(encoder.tokenizer, clips)).mean()

        yield Contender(f"LookupViT {grid_name(grid)}, {MASKED}", model, call, loss=loss)


def vit(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """This project's dense ViT: with torch's SDPA and, where that differs, with this project's attention."""
    for name, kernel in ((DENSE, "fused"), (DENSE_BY_HEADS, "auto")):
        model = ViT(**our_arguments(setting, arguments))
        set_kernel(kernels.optimize(model), kernel)
        if kernel == "fused" or (torch.device(arguments.device).type == "cpu" and setting.mode == "inference"):
            yield Contender(name, model, lambda model, clips: heads_of(model(clips)))


def hugging_face(name: str, setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """VideoMAE's ViT or ViViT from transformers, with SDPA, their fastest attention for these shapes."""
    import transformers

    dim, depth, num_heads = (our_arguments(setting, arguments)[key] for key in ("dim", "depth", "num_heads"))
    shape = {
        "image_size": setting.size, "num_frames": setting.frames, "num_labels": NUM_CLASSES, "hidden_size": dim,
        "num_hidden_layers": depth, "num_attention_heads": num_heads, "intermediate_size": 4 * dim,
    }  # fmt: skip
    classes: dict[str, tuple[Any, Any, str]] = {
        "videomae": (transformers.VideoMAEForVideoClassification, transformers.VideoMAEConfig, VIDEOMAE),
        "vivit": (transformers.VivitForVideoClassification, transformers.VivitConfig, VIVIT),
    }
    kind, config, title = classes[name]
    model = kind._from_config(config(**shape), attn_implementation="sdpa")
    yield Contender(title, model, lambda model, clips: (model(clips.transpose(1, 2)).logits,))


def mvit(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """PyTorchVideo's MViT-B."""
    from lookupvit_video.models.pytorchvideo_models import MViT

    model = MViT(num_classes=NUM_CLASSES, num_frames=setting.frames, size=setting.size)
    yield Contender("MViT-B (PyTorchVideo)", model, lambda model, clips: heads_of(model(clips)))


def timm_vit(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """timm's image ViT on every second frame (as many tokens as tubelets), logits averaged."""
    import timm

    dim, depth, num_heads = (our_arguments(setting, arguments)[key] for key in ("dim", "depth", "num_heads"))
    model = timm.models.VisionTransformer(
        img_size=setting.size, patch_size=PEERS_PATCH, num_classes=NUM_CLASSES, embed_dim=dim, depth=depth,
        num_heads=num_heads,
    )  # fmt: skip

    def call(model: nn.Module, clips: Tensor) -> tuple[Tensor]:
        frames = clips[:, :, ::2].transpose(1, 2)
        return (model(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1),)

    yield Contender("ViT on frames (timm)", model, call)


def contenders(setting: Setting, arguments: argparse.Namespace, device: torch.device) -> list[Contender]:
    """Return every contender of --only that can take the setting, counted and placed on the device."""
    makers: dict[str, Callable[..., Iterator[Contender]]] = {
        "lookupvit": lookupvits, "masked": masked, "vit": vit, "mvit": mvit, "timm": timm_vit,
        **{name: lambda *others, name=name: hugging_face(name, *others) for name in ("videomae", "vivit")},
    }  # fmt: skip
    found: list[Contender] = []
    for family in arguments.only:
        try:
            found += makers[family](setting, arguments)
        except ImportError as error:
            print(f"left out: {family}: {error} (pip install 'lookupvit_video[test]')", file=sys.stderr)
    for contender in found:
        meta = deepcopy(contender.model).to("meta")
        clip = torch.empty(1, 3, setting.frames, setting.size, setting.size, device="meta")
        contender.macs = measured_macs(_Called(meta, contender.call), clip)
    dtype = autocast_dtype(arguments.precision, device)
    for model in {id(contender.model): contender.model for contender in found}.values():
        model.to(device, dtype if setting.mode == "inference" else None).train(setting.mode == "train")
    return found


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the longest row of modules of one class: a transformer's blocks, whatever its code calls them."""
    rows = [list(module) for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return max((row for row in rows if len({type(module) for module in row}) == 1), key=len)


def compile_contenders(found: list[Contender], mode: str) -> None:
    """Compile every model: its blocks one by one, as training does ("blocks"), or completely in a mode of torch's."""
    torch._dynamo.reset()  # sizes of an earlier setting would make those of this one free, and the code slower
    compiled: dict[int, nn.Module] = {}
    for contender in found:
        key = id(contender.model)
        if key not in compiled and mode == "blocks":
            compile_blocks(blocks_of(contender.model), dynamic=False)
            compiled[key] = contender.model
        elif key not in compiled:
            compiled[key] = torch.compile(contender.model, mode=mode, dynamic=False)  # type: ignore[assignment]
        contender.model = compiled[key]


class _Called(nn.Module):
    """A model with its way of being called, for the counter."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Sequence[Tensor]]):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, clips: Tensor) -> Sequence[Tensor]:
        return self.call(self.model, clips)
