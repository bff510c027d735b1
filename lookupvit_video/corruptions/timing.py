"""Corruptions of time: which frame of the video is shown in the place of each.

Each function takes the order of the frames (N,), so far 0 to N - 1, a strength and a generator, and returns the numbers
(N,) of the frames to show instead. Kinetics400-P applies them to the frames of a clip, of which stride 32 leaves one in
16; here they apply to the frames of the file, which is independent of how a model samples them.
"""

import numpy as np


def sampling(order: np.ndarray, stride: int, _rng: np.random.Generator) -> np.ndarray:
    """Show each ``stride``-th frame until the next one."""
    return order[np.arange(len(order)) // stride * stride]


def reverse_sampling(order: np.ndarray, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Show each ``stride``-th frame, backwards."""
    return sampling(order, stride, rng)[::-1]


def jumble(order: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the frames within each segment of a length."""
    return np.concatenate([rng.permutation(part) for part in _segments(order, length)])


def box_jumble(order: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle segments of a length; the frames within each stay in order."""
    parts = _segments(order, length)
    return np.concatenate([parts[at] for at in rng.permutation(len(parts))])


def _segments(order: np.ndarray, length: int) -> list[np.ndarray]:
    return [order[first : first + length] for first in range(0, len(order), length)]


def freeze(order: np.ndarray, kept: tuple[float, int], rng: np.random.Generator) -> np.ndarray:
    """Show some random frames, each until the next one; the first of them from the start.

    Args:
        kept: share of the frames, and the least number.
    """
    count = min(max(int(kept[0] * len(order)), kept[1]), len(order))
    return _held(order, np.sort(rng.choice(len(order), count, replace=False)))


def drop_frames(order: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lose a share of the frames; the one before a gap is shown until the next one."""
    return _held(order, np.flatnonzero(rng.random(len(order)) >= share))


def frame_rate(order: np.ndarray, rates: tuple[int, int], _rng: np.random.Generator) -> np.ndarray:
    """Show fewer frames a second, at even distances.

    Args:
        rates: frames a second of the corrupted and of the published original video. Their ratio counts, so that a
            video of another rate is corrupted as much.
    """
    new, old = rates
    ticks = np.arange(len(order)) * new // old
    shown: np.ndarray = order[-(-ticks * old // new)]
    return shown


def _held(order: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Show only the frames at some ascending places, each until the next one."""
    if not len(kept):
        return np.repeat(order[:1], len(order))
    held: np.ndarray = order[kept[np.maximum(np.searchsorted(kept, np.arange(len(order)), side="right") - 1, 0)]]
    return held
