"""Corruptions that blur: over frames, along a line, out of focus, zoomed; shapes and sources as in ``pixels``.

The convolutions run in float64, so that rounding to uint8 gives the same bytes on every machine.
"""

import math

import numpy as np
from PIL import Image
from scipy import fft

from lookupvit_video.corruptions.pixels import as_pixels, pixel_scale


def frame_blur(frames: np.ndarray, reach: int, _rng: np.random.Generator) -> np.ndarray:
    """Show the mean of the 2 x ``reach`` frames around each; the first and last frame are repeated past the ends."""
    last, sums = len(frames) - 1, np.zeros(frames.shape[1:], np.int64)
    places = np.arange(-reach, last + reach + 1).clip(0, last)
    for place in places[: 2 * reach]:
        sums += frames[place]
    out = np.empty_like(frames)
    for at, target in enumerate(out):
        target[:] = (sums + reach) // (2 * reach)
        if at < last:
            sums += frames[places[at + 2 * reach]]
            sums -= frames[places[at]]
    return out


def motion_blur(frames: np.ndarray, strength: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smear each frame along its own direction within 45 degrees: half a Gaussian, as ImageMagick's motion blur.

    Args:
        strength: radius and deviation.
    """
    radius, deviation = strength
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    angles = np.deg2rad(rng.uniform(-45, 45, len(frames)))
    scale = pixel_scale(frames)
    taps = [np.stack([steps * np.sin(angle), steps * np.cos(angle)], -1) * scale for angle in angles]
    return _convolved(frames, [_kernel(places, weights) for places in taps])


def defocus_blur(frames: np.ndarray, strength: tuple[int, float], _rng: np.random.Generator) -> np.ndarray:
    """Spread each pixel over a disk.

    Args:
        strength: radius of the disk, and deviation of the Gaussian over 3 x 3 pixels (5 x 5 above radius 8) that
            softens its edge.
    """
    radius, soft = strength
    side = np.arange(-radius - 2, radius + 3)
    disk = (side[:, None] ** 2 + side**2 <= radius**2).astype(float)
    reach = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    edge = np.exp(-(reach**2) / (2 * soft**2))
    for axis in (0, 1):
        disk = np.apply_along_axis(np.convolve, axis, disk, edge / edge.sum(), "same")
    places = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2) * pixel_scale(frames)
    return _convolved(frames, [_kernel(places, disk.ravel())])


def _kernel(places_N2: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """Return a kernel (2 R + 1, 2 R + 1) of sum 1 from weights at (row, column) places around its center.

    A place between pixels is shared by the four around it, in proportion.
    """
    reach = math.ceil(np.abs(places_N2).max()) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    corner = np.floor(places_N2).astype(int)
    rest = places_N2 - corner
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - rest[:, 0]) * np.abs(1 - right - rest[:, 1])
            np.add.at(kernel, (corner[:, 0] + down + reach, corner[:, 1] + right + reach), weights_N * share)
    normalized: np.ndarray = kernel / kernel.sum()
    return normalized


def _convolved(frames: np.ndarray, kernels: list[np.ndarray]) -> np.ndarray:
    """Convolve each frame with its kernel, or all with the only one; the border is repeated."""
    out, transforms = np.empty_like(frames), {}
    height, width = frames.shape[1:3]
    for at, frame in enumerate(frames):
        kernel = kernels[min(at, len(kernels) - 1)]
        reach = len(kernel) // 2
        size = [fft.next_fast_len(length + 4 * reach, real=True) for length in (height, width)]
        padded = np.pad(frame, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        if id(kernel) not in transforms:
            transforms[id(kernel)] = fft.rfft2(kernel, size)[..., None]
        spectrum = fft.rfft2(padded.astype(np.float64), size, axes=(0, 1)) * transforms[id(kernel)]
        full = fft.irfft2(spectrum, size, axes=(0, 1))
        out[at] = as_pixels(full[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width].round(6))
    return out


def zoom_blur(frames: np.ndarray, strength: tuple[float, float], _rng: np.random.Generator) -> np.ndarray:
    """Average each frame with views of it that are zoomed in more and more.

    Args:
        strength: the largest zoom, not reached, and the step to it from 1.
    """
    factors = np.arange(1, *strength)
    height, width = frames.shape[1:3]
    out = np.empty_like(frames)
    for frame, target in zip(frames, out, strict=True):
        picture, total = Image.fromarray(frame), frame.astype(np.int32)
        for factor in factors:
            tall, wide = height / factor, width / factor
            box = ((width - wide) / 2, (height - tall) / 2, (width + wide) / 2, (height + tall) / 2)
            total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
        target[:] = as_pixels(total / (len(factors) + 1))
    return out
