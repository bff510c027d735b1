"""Probes in units of a model's tubelets: parts of a clip are replaced, moved, or taken out of order.

Corrupted patches: Gu et al. (ECCV 2022, arXiv 2111.10659), here tubelets of video, on the grid of the tokens or shifted
off it. Shuffled blocks of falling size: what a model can do without the global arrangement; without texture synthesis,
which DiSRT (arXiv 2506.00718) uses. Shapes as in ``pixels``.
"""

import numpy as np

Tubelet = tuple[int, int, int]
"""Frames, height and width of one token."""


def noisy_tubelets(
    frames: np.ndarray, share: float, rng: np.random.Generator, *, tubelet: Tubelet, shifted: bool
) -> np.ndarray:
    """Replace a share of the tubelets, at least one, by noise.

    Args:
        shifted: half a tubelet off the grid in time and space, so that each lies in several tokens.
    """
    out = frames.copy()
    starts = [np.arange(side // 2 * shifted, length - side + 1, side) for side, length in _sides(frames, tubelet)]
    places = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3)
    if not len(places):
        return out
    for t, y, x in rng.permutation(places)[: max(1, round(share * len(places)))]:
        part = out[t : t + tubelet[0], y : y + tubelet[1], x : x + tubelet[2]]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    return out


def shuffled_blocks(frames: np.ndarray, blocks: int, rng: np.random.Generator, *, tubelet: Tubelet) -> np.ndarray:
    """Move the blocks of the picture to other places, in all frames the same.

    Args:
        blocks: along each side; a block holds complete tubelets, and at least one.
    """
    (_, (tall, height), (wide, width)) = _sides(frames, tubelet)
    tall, wide = (side * max(1, length // side // blocks) for side, length in ((tall, height), (wide, width)))
    rows, columns = height // tall, width // wide
    out = frames.copy()
    for to, of in enumerate(rng.permutation(rows * columns)):
        (y, x), (v, u) = (divmod(int(place), columns) for place in (to, of))
        source = frames[:, v * tall : (v + 1) * tall, u * wide : (u + 1) * wide]
        out[:, y * tall : (y + 1) * tall, x * wide : (x + 1) * wide] = source
    return out


def shuffled_frames(frames: np.ndarray, _: int, rng: np.random.Generator) -> np.ndarray:
    """Show the frames of the clip in another order, never the real one; also takes the numbers (T,) of the frames."""
    real = np.arange(len(frames))
    order = real
    while len(frames) > 1 and (order == real).all():
        order = rng.permutation(len(frames))
    return frames[order]


def frozen_frames(frames: np.ndarray, place: float, _rng: np.random.Generator) -> np.ndarray:
    """Show one frame of the clip all the time; also takes the numbers (T,) of the frames.

    Args:
        place: of that frame, from 0 at the first to 1 past the last.
    """
    at = int(place * len(frames))
    return np.repeat(frames[at : at + 1], len(frames), 0)


def _sides(frames: np.ndarray, tubelet: Tubelet) -> list[tuple[int, int]]:
    """Return (side of a tubelet, length of the clip) in time, height and width."""
    return list(zip(tubelet, frames.shape[:3], strict=True))
