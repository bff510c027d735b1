"""Varied small clips: backgrounds of several scales, moving at several speeds, with a square in front."""

import numpy as np
from PIL import Image


def varied_clips(count: int, *, frames: int = 12, side: int = 48) -> list[np.ndarray]:
    """Return clips (T, H, W, 3) uint8."""
    clips = []
    for number in range(count):
        rng = np.random.default_rng(number)
        cells = rng.integers(0, 256, (4 + number % 7, 5 + number % 5, 3), dtype=np.uint8)
        large = np.asarray(Image.fromarray(cells).resize((2 * side, 2 * side), Image.Resampling.BICUBIC))
        down, right = rng.integers(-2, 3, 2)
        color, place = rng.integers(0, 256, 3), rng.integers(0, side - 10)
        clip = np.empty((frames, side, side, 3), np.uint8)
        for at, frame in enumerate(clip):
            y, x = np.clip((side // 2 + down * at, side // 2 + right * at), 0, side)
            frame[:] = large[y : y + side, x : x + side]
            top = (place + 2 * at) % (side - 10)
            frame[top : top + 9, (number * at) % (side - 10) :][:, :9] = color
        clips.append(clip)
    return clips
