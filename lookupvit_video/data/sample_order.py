"""Which videos an epoch holds, and in which order: a function of seed and epoch alone.

An order is a list of keys (pass, row). No key is ever repeated in a training, so that a video that is drawn more often
is cut and augmented in another way each time (see ``VideoDataset``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
import torch

from lookupvit_video.seeding import mix_seed


@dataclass(frozen=True, eq=False)
class Keys(Sequence[tuple[int, int]]):
    """The keys (pass, row) of an epoch: two columns of int32, since a million pairs take 100 MB."""

    turns: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, at: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        """Return a key, or a list of keys."""
        if isinstance(at, slice):
            return list(zip(self.turns[at].tolist(), self.rows[at].tolist(), strict=True))
        return int(self.turns[at]), int(self.rows[at])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), 4096):
            yield from self[first : first + 4096]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keys):
            return NotImplemented
        return np.array_equal(self.turns, other.turns) and np.array_equal(self.rows, other.rows)

    __hash__ = None  # type: ignore[assignment]  # as lists


Order = Callable[[int], Keys]
"""Epoch -> its keys."""


def sample_order(rule: str, labels: Sequence[int] | np.ndarray, seed: int) -> Order:
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
    of_row = np.asarray(labels)
    rows_of = {label: np.flatnonzero(of_row == label).astype(np.int32) for label in np.unique(of_row).tolist()}
    wanted = np.array([len(rows) ** (0.5 if rule == "square_root" else 0.0) for rows in rows_of.values()])
    return partial(_by_class, list(rows_of.values()), _quotas(wanted, len(labels)), seed)


def shuffled(num_videos: int, seed: int) -> Order:
    """Return the order in which each epoch holds each video once."""

    def order(epoch: int) -> Keys:
        return Keys(np.broadcast_to(np.int32(epoch), num_videos), _permutation(num_videos, seed, epoch))

    return order


def _permutation(count: int, *seed: int) -> np.ndarray:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(*seed))).numpy()
    return order.astype(np.int32)


def _quotas(wanted: np.ndarray, total: int) -> list[int]:
    """Return whole numbers in the given proportion that sum to ``total``, each at least 1 (largest remainders)."""
    exact = np.maximum(wanted / wanted.sum() * total, 1)
    quotas = np.floor(exact).astype(int)
    for at in np.argsort(quotas - exact, kind="stable")[: max(total - quotas.sum(), 0)]:
        quotas[at] += 1
    while quotas.sum() > total:
        quotas[quotas.argmax()] -= 1
    return [int(quota) for quota in quotas]


def _by_class(rows_of: Sequence[np.ndarray], quotas: Sequence[int], seed: int, epoch: int) -> Keys:
    turns, drawn = [], []
    for number, (rows, quota) in enumerate(zip(rows_of, quotas, strict=True)):
        # the draws of a class over the whole training: one shuffled pass over its videos after the other
        first, last = epoch * quota, (epoch + 1) * quota
        for turn in range(first // len(rows), -(-last // len(rows))):
            order = _permutation(len(rows), seed, 3, number, turn)
            begin = turn * len(rows)
            drawn.append(rows[order[max(first - begin, 0) : last - begin]])
            turns.append(np.full(len(drawn[-1]), turn, np.int32))
    rows, passes = np.concatenate(drawn), np.concatenate(turns)
    order = _permutation(len(rows), seed, epoch)
    return Keys(passes[order], rows[order])
