"""The machine that figures belong to, and its clock."""

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lookupvit_video.provenance import processor

PACKAGES = ("torch", "torchvision", "av", "decord", "torchcodec", "pytorchvideo", "transformers", "timm", "triton")


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Return processor or GPU, cores, and the versions of the packages that are measured (None: not installed)."""
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    is_gpu = device is not None and device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else processor()
    return {"processor": name, "cores": os.cpu_count(), "python": platform.python_version(), "packages": packages}


def show_versions(machine: dict[str, Any]) -> str:
    """Return the packages that are installed, with their versions, in one line."""
    return ", ".join(f"{name} {number}" for name, number in machine["packages"].items() if number)


def seconds_per_run(
    run: Callable[[], object], times: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one of ``times`` runs in a row."""
    wait_for(device)
    start = clock()
    for _ in range(times):
        run()
    wait_for(device)
    return (clock() - start) / times


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
