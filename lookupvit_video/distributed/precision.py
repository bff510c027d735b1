"""The number format that a model computes in."""

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of TRAIN.PRECISION: "auto" is bfloat16 on GPUs that compute in it, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a model computes in a dtype; float32: as it is."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
