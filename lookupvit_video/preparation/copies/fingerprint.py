"""A video -> its fingerprint over time: a few numbers for each of some frames a second, which copies share.

The numbers are a frame's lowest frequencies (cosine transform), as in perceptual hashes of pictures (Zauner,
"Implementation and benchmarking of perceptual image hash functions", 2010), but not rounded to bits: videos of one
camera differ by less. Libraries of such hashes (imagehash, pdqhash) give bits of single pictures only.

Shape letters: R versions (all of the picture; without its bars), T frames, D numbers of a frame.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from lookupvit_video.decoding.pyav_reader import PyAVReader

RATE = 8.0  # frames a second
MOST_FRAMES = 8192  # of a video: beyond 17 minutes, frames are farther apart
SIDE = 128  # pixels to which frames are reduced first
KEPT = 10  # lowest frequencies in each direction
_BAR = 12  # gray levels that a bar varies by, after any codec


class Fingerprint(NamedTuple):
    """What copies of a video share."""

    frames: np.ndarray
    """(R, T, D) float16."""
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
    rows, columns = (_without_bars(gray_THW, axis) for axis in (2, 1))
    versions = [_frequencies(gray_THW)]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height * width < 0.97 * SIDE**2:
        versions.append(_frequencies(gray_THW[:, rows, columns]))
    return Fingerprint(np.stack(versions).astype(np.float16), rate)


def _reduced(frame_HWC: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(frame_HWC).convert("L")
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def _without_bars(gray_THW: np.ndarray, across: int) -> slice:
    """Return the rows or columns between two bars: what varies, in space or time.

    Args:
        across: the axis that is summed up: 2 for rows, 1 for columns.
    """
    varies = np.ptp(gray_THW, axis=(0, across)) > _BAR
    inside = np.flatnonzero(varies)
    if len(inside) < SIDE // 4:  # too little is left: a dark picture rather than a bar
        return slice(0, SIDE)
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _frequencies(gray_THW: np.ndarray) -> np.ndarray:
    """Return the lowest frequencies (T, D) but the mean, weighted so that fine ones count as much as coarse ones."""
    height, width = gray_THW.shape[1:]
    found_TUV = _cosines(height) @ (gray_THW.astype(np.float32) / 255) @ _cosines(width).T
    u, v = np.mgrid[:KEPT, :KEPT]
    weighted: np.ndarray = (found_TUV * np.hypot(u, v)).reshape(len(gray_THW), -1)[:, 1:]
    return weighted


@cache
def _cosines(length: int) -> np.ndarray:
    places = (np.arange(length) + 0.5) / length
    return np.cos(math.pi * np.arange(KEPT)[:, None] * places).astype(np.float32) / length


MIRROR = np.where(np.arange(KEPT * KEPT) % KEPT % 2, -1, 1)[1:].astype(np.float32)
"""(D,): times these, a frame's numbers are those of the mirrored frame."""
