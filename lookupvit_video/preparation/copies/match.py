"""Which fingerprints are of copies: likely pairs by short windows, then one alignment over all they share.

Shape letters: R versions, T frames, D numbers of a frame, L lags, W windows, Q windows asked about, P numbers of one.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lookupvit_video.preparation.copies.fingerprint import MIRROR, Fingerprint

LIKE = 0.75  # likeness from which two videos are copies; tests/copies.py measures it
_SPEEDS = np.geomspace(0.76, 1.32, 25)
_COARSE = 4  # of these, every fourth is tried first
_WORTH = 0.3  # likeness then, from which those in between are tried
_SHARED = 0.5  # of the shorter video, that must be alike
_NOISE = 1e-4  # squared change of a frame by compression alone: without it, still videos would compare noise
_CANDIDATES = 16  # videos that are compared with each
_DIMENSIONS = 32  # P
_BETWEEN = 4  # frames from each to the next of a window's three
_PLACES = (0.2, 0.4, 0.6, 0.8)  # windows asked about, as parts of the video


class Match(NamedTuple):
    """How a video is a copy of another one."""

    likeness: float
    """Correlation, at most 1: the lower of what is seen and of what changes."""
    start: float
    """Second of the other video at which it begins; negative: before it."""
    speed: float
    """Seconds of the other video in one of its own."""
    mirrored: bool

    def __str__(self) -> str:
        parts = [f"likeness {self.likeness:.2f}", f"begins at its {self.start:.1f} s"]
        parts += [f"{self.speed:.2f} times as fast"] * (abs(self.speed - 1) > 0.03)
        return ", ".join([*parts, *["mirrored"] * self.mirrored])


def compare(known: Fingerprint, video: Fingerprint, flips: tuple[bool, ...] = (False, True)) -> Match:
    """Return the best alignment in time of a video with a known one.

    Args:
        flips: whether to mirror it.
    """
    best = Match(-1.0, 0.0, 1.0, False)
    for mine in known.frames.astype(np.float32):
        for other in video.frames.astype(np.float32):
            for flip in flips:
                turned = other * MIRROR if flip else other
                coarse = [_at_speed(mine, turned, known.rate, video.rate, speed) for speed in _SPEEDS[::_COARSE]]
                near = _COARSE * int(np.argmax([likeness for likeness, _, _ in coarse]))
                fine = _SPEEDS[max(0, near - _COARSE + 1) : near + _COARSE]
                if max(coarse)[0] > _WORTH:
                    coarse += [_at_speed(mine, turned, known.rate, video.rate, speed) for speed in fine]
                best = max(best, Match(*max(coarse), flip))
    return best


def _at_speed(
    mine_TD: np.ndarray, other_TD: np.ndarray, rate: float, other_rate: float, speed: float
) -> tuple[float, float, float]:
    """Return the best likeness of two videos, each at its rate in frames/s, with its ``start`` and ``speed``."""
    likeness_L, lags = _correlations(mine_TD, _resampled(other_TD, other_rate / (rate * speed)))
    at = int(likeness_L.argmax())
    return float(likeness_L[at]), lags[at] / rate, float(speed)


def _resampled(frames_TD: np.ndarray, step: float) -> np.ndarray:
    """Return frames that are ``step`` frames apart, linear in between."""
    at = np.arange(0, len(frames_TD) - 1 + 1e-6, step)
    low = np.minimum(at.astype(int), len(frames_TD) - 2)
    part = (at - low)[:, None].astype(np.float32)
    found: np.ndarray = frames_TD[low] * (1 - part) + frames_TD[low + 1] * part
    return found


def _correlations(a_TD: np.ndarray, b_TD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeness (L,) of a[t + lag] and b[t] over all t, and the lags (L,) at which enough is shared."""
    size = 1 << (len(a_TD) + len(b_TD)).bit_length()
    spectrum = (np.fft.rfft(a_TD, size, axis=0) * np.fft.rfft(b_TD, size, axis=0).conj()).sum(1)
    lags = np.arange(1 - len(b_TD), len(a_TD))
    first, after = np.maximum(lags, 0), np.minimum(lags + len(b_TD), len(a_TD))
    enough = after - first >= _SHARED * min(len(a_TD), len(b_TD))
    lags, first, after = lags[enough], first[enough], after[enough]
    dots = np.fft.irfft(spectrum, size)[lags]
    count = after - first
    sums_a, squares_a = _sums(a_TD, first, after)
    sums_b, squares_b = _sums(b_TD, first - lags, after - lags)
    seen = dots / np.sqrt(squares_a * squares_b + 1e-9)
    noise = _NOISE * count
    changes_a, changes_b = (
        np.maximum(squares - (sums**2).sum(1) / count, 0) + noise
        for sums, squares in ((sums_a, squares_a), (sums_b, squares_b))
    )
    together = dots - (sums_a * sums_b).sum(1) / count + noise
    return np.minimum(seen, together / np.sqrt(changes_a * changes_b)), lags


def _sums(frames_TD: np.ndarray, first: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums (L, D) of frames first to after, and the sums (L,) of their squares."""
    wide = np.pad(frames_TD, ((1, 0), (0, 0))).astype(np.float64)
    sums, squares = wide.cumsum(0), (wide**2).sum(1).cumsum()
    return sums[after] - sums[first], squares[after] - squares[first]


# Likely pairs ---------------------------------------------------------------------------------------------------------


def find_copies(
    videos: Mapping[str, Fingerprint], known: Mapping[str, Fingerprint], like: float = LIKE
) -> Iterator[list[tuple[str, str, Match]]]:
    """Yield, for each of some videos, the known ones that it is a copy of: (its name, the known one's, how).

    Each is compared with the known ones of the most similar windows only. A name in both is not compared with itself.
    """
    if not known:
        return
    names, windows = list(known), [_windows(fingerprint) for fingerprint in known.values()]
    borders = np.cumsum([0, *map(len, windows)])
    every_WD = np.concatenate(windows)
    sample = every_WD[np.random.default_rng(0).permutation(len(every_WD))[:4096]]
    axes_DP = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:_DIMENSIONS].T
    every_WP = every_WD @ axes_DP
    sizes_W = (every_WP**2).sum(1)
    for name, video in videos.items():
        likely: dict[tuple[str, bool], float] = {}
        for flip in (False, True):
            apart = _distances(_asked(video, flip) @ axes_DP, every_WP, sizes_W, borders)
            likely |= {(other, flip): float(far) for other, far in zip(names, apart, strict=True) if other != name}
        nearest = sorted(likely, key=likely.__getitem__)[:_CANDIDATES]
        matches = [(name, other, compare(known[other], video, (flip,))) for other, flip in nearest]
        yield [match for match in matches if match[2].likeness >= like]


def _windows(video: Fingerprint, step: float = 1.0, at: np.ndarray | None = None) -> np.ndarray:
    """Return windows (W, 3 D) of all versions: three frames, the second and third ``_BETWEEN * step`` frames later.

    Args:
        at: frames at which they begin; None: every other one.
    """
    frames_RTD = video.frames.astype(np.float32)
    last = frames_RTD.shape[1] - 1
    at = np.arange(0, max(1, last + 1 - 2 * _BETWEEN), 2) if at is None else at
    places_W3 = np.minimum(np.round(at[:, None] + step * _BETWEEN * np.arange(3)), last).astype(int)
    return frames_RTD[:, places_W3].reshape(-1, 3 * frames_RTD.shape[2])


def _asked(video: Fingerprint, flip: bool) -> np.ndarray:
    """Return the windows (speeds, Q, 3 D) of a video that are searched for."""
    if flip:
        video = video._replace(frames=video.frames * MIRROR)
    room = max(0, video.frames.shape[1] - 1 - 2 * _BETWEEN)
    at = np.unique(np.round(room * np.array(_PLACES)))
    return np.stack([_windows(video, step, at) for step in (0.8, 1.0, 1.25)])


def _distances(asked_SQP: np.ndarray, every_WP: np.ndarray, sizes_W: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Return how far each known video is: the mean over the nearer half of the windows, each at its best speed."""
    asked_QP = asked_SQP.reshape(-1, asked_SQP.shape[-1])
    apart_QW = sizes_W - 2 * asked_QP @ every_WP.T + (asked_QP**2).sum(1)[:, None]
    nearest = np.minimum.reduceat(apart_QW, borders[:-1], axis=1).reshape(*asked_SQP.shape[:2], -1).min(0)
    found: np.ndarray = np.sort(nearest, axis=0)[: max(1, len(nearest) // 2)].mean(0)
    return found
