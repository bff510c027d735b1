"""A video -> its fingerprint over time: a few numbers for each of some frames a second, which copies share.

The numbers are a frame's lowest frequencies (cosine transform), as in perceptual hashes of pictures (Zauner,
"Implementation and benchmarking of perceptual image hash functions", 2010), but not rounded to bits: videos of one
camera differ by less. Libraries of such hashes (imagehash, pdqhash) give bits of single pictures only.

Shape letters: R versions (all of the picture; without its bars), T frames, D numbers of a frame.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from lookupvit_video.decoding.pyav_reader import PyAVReader

RATE = 8.0  # frames a second
MOST_FRAMES = 8192  # of a video: beyond 17 minutes, frames are farther apart
SIDE = 128  # pixels to which frames are reduced first
KEPT = 10  # lowest frequencies in each direction
_BARS = (12, 26)  # gray levels that a bar varies by, after mild and after strong compression


class Fingerprint(NamedTuple):
    """What copies of a video share."""

    frames: np.ndarray
    """(R, T, D) float16: all of the picture, then without its bars."""
    rate: float
    """Frames a second."""

    @property
    def seconds(self) -> float:
        """What the frames cover."""
        return float(self.frames.shape[1] / self.rate)


def fingerprint(path: str) -> Fingerprint:
    """Read a video and return its fingerprint.

    Raises:
        DecodeError: the video cannot be read.
    """
    with PyAVReader(path) as reader:
        count = max(2, min(round(reader.duration * RATE), MOST_FRAMES))
        rate = min(RATE, count / reader.duration) if count == MOST_FRAMES else RATE
        return fingerprint_of_frames(reader.walk(((np.arange(count) + 0.5) / rate).tolist()), rate)


def fingerprint_of_frames(frames: Iterable[np.ndarray], rate: float) -> Fingerprint:
    """Return the fingerprint of frames (H, W, 3) uint8, at ``rate`` a second."""
    gray_THW = np.stack([_reduced(frame) for frame in frames])
    cuts = [((0.0, float(SIDE)), (0.0, float(SIDE)))]
    for bar in _BARS:
        cut = (_between_bars(gray_THW, 2, bar), _between_bars(gray_THW, 1, bar))
        if all(np.abs(np.subtract(cut, other)).max() > 1 for other in cuts):
            cuts.append(cut)
    versions = [_frequencies(gray_THW, *cut) for cut in cuts]
    return Fingerprint(np.stack(versions).astype(np.float16), rate)


def _reduced(frame_HWC: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(frame_HWC).convert("L")
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def _between_bars(gray_THW: np.ndarray, across: int, bar: int) -> tuple[float, float]:
    """Return where the rows or columns between two bars begin and end, in pixels and parts of them.

    Args:
        across: the axis that is summed up: 2 for rows, 1 for columns.
        bar: gray levels that a bar varies by.
    """
    inside = np.flatnonzero(np.ptp(gray_THW, axis=(0, across)) > bar)  # what varies, in space or time
    if len(inside) < SIDE // 4:  # too little is left: a dark picture rather than a bar
        return 0.0, float(SIDE)
    contrast = gray_THW.std(axis=(0, across))
    first, last = int(inside[0]), int(inside[-1])
    # a pixel at the edge is part picture, part bar: as much of it as its contrast has of its neighbor's
    bare = (1 - min(1.0, float(contrast[at] / max(contrast[at + step], 1e-6))) for at, step in ((first, 1), (last, -1)))
    start, stop = first + next(bare) * (first > 0), last + 1 - next(bare) * (last < SIDE - 1)
    return start, stop


def _frequencies(gray_THW: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """Return the lowest frequencies (T, D) but the mean, weighted so that fine ones count as much as coarse ones."""
    found_TUV = _cosines(*rows) @ (gray_THW.astype(np.float32) / 255) @ _cosines(*columns).T
    u, v = np.mgrid[:KEPT, :KEPT]
    weighted: np.ndarray = (found_TUV * np.hypot(u, v)).reshape(len(gray_THW), -1)[:, 1:]
    return weighted


def _cosines(start: float, stop: float) -> np.ndarray:
    """Return the cosines (KEPT, SIDE) of a cut; a pixel that is part of it counts with the middle of that part."""
    pixels = np.arange(SIDE)
    low, high = np.maximum(pixels, start), np.minimum(pixels + 1, stop)
    places = ((low + high) / 2 - start) / (stop - start)
    waves = np.cos(math.pi * np.arange(KEPT)[:, None] * places) * (low < high)
    return (waves / (stop - start)).astype(np.float32)


MIRROR = np.where(np.arange(KEPT * KEPT) % KEPT % 2, -1, 1)[1:].astype(np.float32)
"""(D,): times these, a frame's numbers are those of the mirrored frame."""
