"""What a step computes, and what part of the device's peak that is."""

import torch
from fvcore.common.config import CfgNode

from lookupvit_video.distributed.world import World
from lookupvit_video.models.build import model_spec

# Dense tensor-core peak in bfloat16 or float16 with float32 sums, TFLOP/s, by a part of the name that torch gives the
# device; the maker's data sheets, SXM form where there are several. The first that matches counts.
PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H800": 989, "H20": 148, "A100": 312,
    "A800": 312, "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "V100": 125, "T4": 65, "RTX 4090": 165,
    "RTX 3090": 71,
}  # fmt: skip
BACKWARD = 2  # a backward pass costs twice the forward pass


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second that a device can do at most in 16 bits; None where that is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def clip_macs(cfg: CfgNode, grid: tuple[int, ...] | None) -> int:
    """Return the closed-form multiply-accumulates of a training forward pass of one clip; 0 for models without one.

    Args:
        grid: of the compressed tokens; None: the config's.
    """
    spec = model_spec(cfg)
    changed = {"compressed_grid": grid} if grid else {}
    return sum(spec.macs(inference_head="average", **changed).values())  # all heads, not only those that answer


def utilisation(cfg: CfgNode, macs: int, seconds: float, world: World, dtype: torch.dtype) -> float | None:
    """Return the model FLOPs utilisation (MFU, PaLM, arXiv 2204.02311, appendix B); None where it has no meaning.

    Two operations to a multiply-accumulate and a backward pass of twice the forward; what activation checkpointing
    computes again does not count, nor does a teacher.

    Args:
        macs: of the forward passes of all clips in these seconds, over all processes.
    """
    frozen = cfg.MODEL.FREEZE_ENCODER or cfg.MODEL.FREEZE_SPATIAL or cfg.MODEL.ADAPTER != "none"
    peak = peak_flops(world.device, dtype)
    if not peak or not macs or frozen:
        return None
    return 2 * (1 + BACKWARD) * macs / (seconds * peak * world.size)
