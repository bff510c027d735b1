"""Corruptions of the pixels of a clip: noise, weather, color, compressed stills and a moving camera.

Each function takes frames (T, H, W, 3) uint8, a strength and a generator, and returns new frames of the same shape.
Lengths in pixels are those of a picture of 224 x 224, as published; they shrink with smaller pictures.
Sources: ImageNet-C (arXiv 1903.12261), whose definitions Mini Kinetics-C (NeurIPS 2021 data sets track, Yi et al.) and
Kinetics400-P (CVPR 2023, Schiappa et al.) use with other strengths.
"""

import io

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter

SIDE = 224
"""Pixels of the pictures that the published lengths are for."""


def pixel_scale(frames: np.ndarray) -> float:
    """Return how long a published pixel is in these frames."""
    return float(min(frames.shape[1:3]) / SIDE)


def as_pixels(values: np.ndarray) -> np.ndarray:
    """Round values on a scale of 0 to 255 to uint8."""
    pixels: np.ndarray = np.rint(values).clip(0, 255).astype(np.uint8)
    return pixels


# Noise --------------------------------------------------------------------------------------------------------------


def gaussian_noise(frames: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise of a standard deviation, as a share of white."""
    return as_pixels(frames + 255 * deviation * _normal(frames, rng))


def speckle_noise(frames: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise in proportion to the pixel."""
    return as_pixels(frames * (1 + deviation * _normal(frames, rng)))


def shot_noise(frames: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Draw each pixel from a Poisson distribution; white is this many photons."""
    return as_pixels(rng.poisson(frames * (photons / 255)) * (255 / photons))


def impulse_noise(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Set a share of the values to 0 or 255."""
    draw, out = rng.random(frames.shape, np.float32), frames.copy()
    out[draw < share] = 0
    out[draw < share / 2] = 255
    return out


def _normal(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(frames.shape, np.float32)


# Weather ------------------------------------------------------------------------------------------------------------


def fog(frames: np.ndarray, strength: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Add one layer of plasma to all frames.

    Args:
        strength: weight of the layer, and how fast its detail fades (larger: smoother).
    """
    weight, decay = strength
    layer = Image.fromarray(_plasma(256, decay, rng)[:SIDE, :SIDE].astype(np.float32))
    height, width = frames.shape[1:3]
    layer_HW1 = weight * np.asarray(layer.resize((width, height), Image.Resampling.BOX), np.float32)[..., None]
    brightest = frames.max((1, 2, 3), keepdims=True) / np.float32(255)
    return as_pixels((frames + 255 * layer_HW1) * (brightest / (brightest + weight)))


def _plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return a fractal height map (side, side) from 0 to 1, by the diamond-square algorithm on a torus."""
    heights = np.zeros((side, side))
    step, wobble = side, 100.0
    while step > 1:
        half, spread = step // 2, wobble * wobble
        corners = heights[::step, ::step]
        across = corners + np.roll(corners, -1, 0)
        centers = (across + np.roll(across, -1, 1)) / 4 + rng.uniform(-spread, spread, corners.shape)
        heights[half::step, half::step] = centers
        beside = centers + np.roll(centers, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = beside / 4 + rng.uniform(-spread, spread, corners.shape)
        below = centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = below / 4 + rng.uniform(-spread, spread, corners.shape)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    lifted: np.ndarray = heights / heights.max()
    return lifted


def rain(frames: np.ndarray, strength: tuple[int, int, float], rng: np.random.Generator) -> np.ndarray:
    """Draw light streaks, others in each frame, blur below them and darken.

    Args:
        strength: length of a streak; pixels for one streak; factor on the contrast.
    """
    length, area, darken = strength
    scale = pixel_scale(frames)
    mask_THW1 = np.stack([_streaks(frames.shape[1:3], length * scale, area / scale, rng) for _ in frames])[..., None]
    light, mean = frames.astype(np.float32), frames.mean((1, 2, 3), keepdims=True, dtype=np.float64) / 255
    lit = light + mask_THW1 * (1 - light / 255) * (1 - mean)
    blurred = uniform_filter(lit, (1, 3, 3, 1), mode="mirror")
    wet = blurred * (mask_THW1 / 255) + light * (1 - mask_THW1 / 255)
    middle = wet.mean((1, 2), keepdims=True, dtype=np.float64)
    return as_pixels((wet - middle) * darken + middle)


def _streaks(size: tuple[int, ...], length: float, area: float, rng: np.random.Generator) -> np.ndarray:
    """Return a picture (H, W) with slanted lines of brightness 220."""
    height, width = size
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    count = max(1, round(height * width / area))
    for x, y in zip(rng.uniform(0, width, count), rng.uniform(0, max(height - length, 1), count), strict=True):
        draw.line((x, y, x - length / 20, y + length), 220)
    return np.asarray(picture, np.float32)


# Color --------------------------------------------------------------------------------------------------------------


def contrast(frames: np.ndarray, factor: float, _rng: np.random.Generator) -> np.ndarray:
    """Pull each channel toward its mean over a frame."""
    middle = frames.mean((1, 2), keepdims=True)
    return as_pixels((frames - middle) * factor + middle)


def brightness(frames: np.ndarray, added: float, _rng: np.random.Generator) -> np.ndarray:
    """Add to the value of HSV: hue and saturation stay."""
    value = frames.max(-1, keepdims=True).astype(np.float32)
    lifted = np.minimum(value + 255 * added, 255)
    return as_pixels(np.where(value > 0, frames * (lifted / np.maximum(value, 1)), lifted))


def saturate(frames: np.ndarray, strength: tuple[float, float], _rng: np.random.Generator) -> np.ndarray:
    """Multiply the saturation of HSV and add to it; a gray pixel has hue 0, which is red."""
    value, lowest = frames.max(-1, keepdims=True).astype(np.float32), frames.min(-1, keepdims=True)
    before = (value - lowest) / np.maximum(value, 1)
    after = (before * strength[0] + strength[1]).clip(0, 1)
    colored = value - (value - frames) * (after / np.maximum(before, 1e-9))
    red = value * np.concatenate([np.ones_like(after), 1 - after, 1 - after], -1)
    return as_pixels(np.where(before > 0, colored, red))


def jpeg(frames: np.ndarray, quality: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress each frame as a JPEG."""
    out = np.empty_like(frames)
    for frame, target in zip(frames, out, strict=True):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        target[:] = np.asarray(Image.open(file))
    return out


# Camera -------------------------------------------------------------------------------------------------------------


def static_rotate(frames: np.ndarray, degrees: float, _rng: np.random.Generator) -> np.ndarray:
    """Turn all frames by the same angle; black fills the corners."""
    return np.stack([_turned(frame, degrees) for frame in frames])


def rotate(frames: np.ndarray, degrees: int, rng: np.random.Generator) -> np.ndarray:
    """Turn each frame by its own angle: up to this many degrees either way."""
    return np.stack([_turned(frame, int(angle)) for frame, angle in zip(frames, _angles(frames, degrees, rng),
                                                                         strict=True)])  # fmt: skip


def _angles(frames: np.ndarray, degrees: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-degrees, degrees, len(frames), endpoint=True)


def _turned(frame: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).rotate(degrees))


def translate(frames: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Move all frames by the same offset, up to this many pixels each way; the border is repeated."""
    return _moved(frames, np.repeat(rng.uniform(-1, 1, (1, 2)), len(frames), 0) * pixels)


def shake(frames: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Move each frame by its own offset."""
    return _moved(frames, rng.uniform(-1, 1, (len(frames), 2)) * pixels)


def _moved(frames: np.ndarray, offsets_T2: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    out = np.empty_like(frames)
    for frame, target, (down, right) in zip(frames, out, np.rint(offsets_T2 * pixel_scale(frames)), strict=True):
        rows = (np.arange(height) - int(down)).clip(0, height - 1)
        target[:] = frame[rows][:, (np.arange(width) - int(right)).clip(0, width - 1)]
    return out
