"""Small models whose every weight is random, and what is checked of a report on their loading."""

import safetensors.torch
import torch
from torch import nn

from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.vit import ViT

DIM, DEPTH, HEADS, CLASSES = 24, 3, 2, 5
SIZE, PATCH = 16, 4


def randomised(model):
    """Make every parameter random: zeros and ones would fit anywhere."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = 0.5 / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.3
            parameter.copy_(noise * spread + float("norm" in name and name.endswith("weight")))
    return model.eval()


def vit(*, num_frames=1, tubelet=(1, PATCH, PATCH), options=None, **changed):
    torch.manual_seed(0)
    arguments = {"num_classes": CLASSES, "size": SIZE, "dim": DIM, "depth": DEPTH, "num_heads": HEADS, **changed}
    return ViT(num_frames=num_frames, tubelet=tubelet, options=BlockOptions(**options or {}), **arguments).eval()


def lookupvit(*, num_frames=4, tubelet=(2, PATCH, PATCH), compressed_grid=(1, 2, 2), options=None, **changed):
    torch.manual_seed(0)
    arguments = {"num_classes": CLASSES, "size": SIZE, "dim": DIM, "depth": DEPTH, "num_heads": HEADS, **changed}
    return LookupViT(
        num_frames=num_frames,
        tubelet=tubelet,
        compressed_grid=compressed_grid,
        options=BlockOptions(**options or {}),
        **arguments,
    ).eval()


def saved(path, content):
    state = content.state_dict() if isinstance(content, nn.Module) else content
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def complete(report, model):
    """Every entry of the model's state is in one list, and only there."""
    told = [*report.loaded, *report.made, *report.resized, *report.fresh]
    assert sorted(told) == sorted(model.state_dict())
    return report
