"""The states of all random generators of a process, as plain data that a checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch

from lookupvit_video.distributed.world import World


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators (and the GPU's) as numbers, text and tensors."""
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, gauss = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(states: list[dict[str, Any]], world: World) -> None:
    """Restore the state that ``random_state`` returned in this process.

    Args:
        states: by rank. A new rank keeps its own state: each step seeds the generators from (RNG_SEED, step, rank), so
            nothing in this package depends on it.
    """
    if world.rank >= len(states):
        return
    state = states[world.rank]
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and world.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], world.device)
