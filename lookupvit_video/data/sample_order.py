"""Which videos an epoch holds, and in which order: a function of seed and epoch alone.

An order is a list of keys (pass, row). No key is ever repeated in a training, so that a video that is drawn more often
is cut and augmented in another way each time (see ``VideoDataset``).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from lookupvit_video.seeding import mix_seed

Order = Callable[[int], list[tuple[int, int]]]
"""Epoch -> its keys (pass, row)."""


def sample_order(rule: str, labels: Sequence[int], seed: int) -> Order:
    """Return the order of DATA.SAMPLER.

    Each epoch is as long as the list. balanced draws all classes equally often, square_root in proportion to the root
    of their number of videos; both take the videos of a class in turn, shuffled, so that over the training their
    numbers differ by one at most.

    Args:
        rule: shuffled, balanced or square_root.
        labels: of the list's videos.
    """
    if rule == "shuffled":
        return shuffled(len(labels), seed)
    rows_of = {label: np.flatnonzero(np.array(labels) == label) for label in sorted(set(labels))}
    wanted = np.array([len(rows) ** (0.5 if rule == "square_root" else 0.0) for rows in rows_of.values()])
    return partial(_by_class, list(rows_of.values()), _quotas(wanted, len(labels)), seed)


def shuffled(num_videos: int, seed: int) -> Order:
    """Return the order in which each epoch holds each video once."""
    return lambda epoch: [(epoch, row) for row in _permutation(num_videos, seed, epoch)]


def _permutation(count: int, *seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(*seed))).tolist()
    return order


def _quotas(wanted: np.ndarray, total: int) -> list[int]:
    """Return whole numbers in the given proportion that sum to ``total``, each at least 1 (largest remainders)."""
    exact = np.maximum(wanted / wanted.sum() * total, 1)
    quotas = np.floor(exact).astype(int)
    for at in np.argsort(quotas - exact, kind="stable")[: max(total - quotas.sum(), 0)]:
        quotas[at] += 1
    while quotas.sum() > total:
        quotas[quotas.argmax()] -= 1
    return [int(quota) for quota in quotas]


def _by_class(rows_of: Sequence[np.ndarray], quotas: Sequence[int], seed: int, epoch: int) -> list[tuple[int, int]]:
    keys = []
    for number, (rows, quota) in enumerate(zip(rows_of, quotas, strict=True)):
        # the draws of a class over the whole training: one shuffled pass over its videos after the other
        first, last = epoch * quota, (epoch + 1) * quota
        for turn in range(first // len(rows), -(-last // len(rows))):
            order = _permutation(len(rows), seed, 3, number, turn)
            begin = turn * len(rows)
            keys += [(turn, int(rows[at])) for at in order[max(first - begin, 0) : last - begin]]
    return [keys[at] for at in _permutation(len(keys), seed, epoch)]
