"""Which times make a clip: random clips, uniform segments, k test views; on PyTorchVideo's clip samplers.

All times are seconds from the start of the sampled span. A span shorter than the clip gives times past its end; the
readers answer those with the last frame.
"""

import random
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode


@cache
def _samplers() -> Any:
    """Return the module ``pytorchvideo.data.clip_sampling``, without importing ``pytorchvideo.data``.

    The module needs nothing but Python; its package needs torchvision and torch's compiler, two seconds that each
    command and each reading process would wait for.
    """
    package = find_spec("pytorchvideo.data")
    assert package is not None
    file = Path((package.submodule_search_locations or [""])[0], "clip_sampling.py")
    spec = spec_from_file_location(f"{__name__}.clip_sampling", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class TimeSampler:
    """Chooses the times of the frames of each clip drawn from a video.

    Args:
        num_frames: T.
        step: seconds between two frames of a clip (mode "clip" only).
        mode: "clip": frames ``step`` apart; "segments": one frame from each of T equal parts of the span, as
            Something-Something is read.
        num_clips: clips per video.
        training: random times; otherwise ``num_clips`` fixed ones, spread evenly.
        single_frame: repeat one frame T times (a control without information in time).
    """

    num_frames: int
    step: float
    mode: str = "clip"
    num_clips: int = 1
    training: bool = False
    single_frame: bool = False

    def __call__(self, duration: float) -> np.ndarray:
        """Return times (num_clips, T) in seconds for a span of ``duration`` seconds.

        In training the draws come from the state of Python's ``random``, as those of PyTorchVideo's samplers do.
        """
        times = self._segments(duration) if self.mode == "segments" else self._clips(duration)
        if self.single_frame:
            column = random.randrange(self.num_frames) if self.training else self.num_frames // 2
            times = np.repeat(times[:, column : column + 1], self.num_frames, axis=1)
        return times

    def _clips(self, duration: float) -> np.ndarray:
        length = Fraction(self.step) * self.num_frames
        if self.training:
            sampler = _samplers().RandomClipSampler(length)
            starts = [sampler(0, duration, {}).clip_start_sec for _ in range(self.num_clips)]
        else:
            # PyTorchVideo's sampler starts its clips at the left ends of equal parts of the possible starts, so one
            # view would always be the video's beginning; every second of twice as many are the parts' centers.
            sampler = _samplers().ConstantClipsPerVideoSampler(length, 2 * self.num_clips)
            starts = [sampler(0, duration, {}).clip_start_sec for _ in range(2 * self.num_clips)][1::2]
        first = np.array([float(start) for start in starts])[:, None]
        times: np.ndarray = first + np.arange(self.num_frames) * self.step
        return times

    def _segments(self, duration: float) -> np.ndarray:
        sampler = _samplers().ConstantClipsPerVideoSampler(0, self.num_frames)
        starts = np.array([float(sampler(0, duration, {}).clip_start_sec) for _ in range(self.num_frames)])
        if self.training:
            offsets = np.array([[random.random() for _ in starts] for _ in range(self.num_clips)])
        else:
            offsets = (np.arange(self.num_clips)[:, None] + 0.5) / self.num_clips
        return starts + offsets * (duration / self.num_frames)


def within(seconds_VT: np.ndarray, start: float, end: float) -> np.ndarray:
    """Limit times to a span of a video: from its end on, its last frame is shown and none after it."""
    return seconds_VT.clip(max=max(start, end - 1e-4))  # less than any frame lasts


def build_time_sampler(cfg: CfgNode, *, training: bool, num_clips: int) -> TimeSampler:
    """Make the sampler that ``DATA`` describes."""
    return TimeSampler(
        num_frames=cfg.DATA.NUM_FRAMES,
        step=cfg.DATA.SAMPLING_RATE / cfg.DATA.TARGET_FPS,
        mode=cfg.DATA.SAMPLING,
        num_clips=num_clips,
        training=training,
        single_frame=cfg.DATA.SINGLE_FRAME,
    )
