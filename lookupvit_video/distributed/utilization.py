"""How much of a device's peak speed a training uses."""

import torch

from lookupvit_video.distributed.world import World

# Dense tensor-core peak in bfloat16 or float16 with float32 sums, TFLOP/s, by a part of the name that torch gives the
# device; the maker's data sheets, SXM form where there are several. The first that matches counts.
PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H800": 989, "H20": 148, "A100": 312,
    "A800": 312, "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "V100": 125, "T4": 65, "RTX 4090": 165,
    "RTX 3090": 71,
}  # fmt: skip
BACKWARD = 2  # a backward pass costs twice the forward pass


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a device's peak speed in 16 bits, in operations/s; None where it is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def utilization(macs: int, seconds: float, world: World, dtype: torch.dtype) -> float | None:
    """Return the model FLOPs utilization (MFU, PaLM, arXiv 2204.02311, appendix B); None where it is not defined.

    A multiply-accumulate is two operations, a backward pass costs twice the forward. What activation checkpointing
    recomputes does not count, nor does a teacher.

    Args:
        macs: of the forward passes of all clips in these seconds, over all processes.
    """
    peak = peak_flops(world.device, dtype)
    return 2 * (1 + BACKWARD) * macs / (seconds * peak * world.size) if peak and macs else None
