"""The code, packages and machine with which a figure was measured, so that it can be measured again."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy
import torch

from lookupvit_video import __version__


def measured_with(device: torch.device) -> dict[str, Any]:
    """Return the version and commit of this package, versions, processor or GPU, and threads, as JSON holds them."""
    import torchvision  # takes longer than all else that a test imports

    packages = (torch, torchvision, av, numpy)
    return {
        "version": __version__,
        "commit": commit(),
        **{package.__name__: package.__version__ for package in packages},  # "+cu130" and the like with it
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
    }


@cache
def commit(folder: Path = Path(__file__).parents[1]) -> str:
    """Return the commit that a folder has checked out, "+changes" where files differ from it; else this version."""
    if (folder / ".git").exists():  # else git would look in the folders above, which may be another repository
        found = _git(folder, "rev-parse", "--short=7", "HEAD")
        if found:
            return found + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    return f"version {__version__}"


def _git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints; empty where there is no git, or it fails."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def processor() -> str:
    """Return the name of this machine's processor and the widest instructions that torch uses on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"  # other instructions round otherwise
