"""What can be classified -> its clips: files, open files, tensors of frames; with limits on their size.

Nothing here needs a model, so that worker processes can read files (``lookupvit_video.processes.pool``).
Shape letters: V views (times x crops), C channels, T frames, H W pixels.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from lookupvit_video.data.sampling import TimeSampler, build_time_sampler, within
from lookupvit_video.data.transforms import eval_transform
from lookupvit_video.decoding.backends import DecodeError, VideoReader, check_backend, open_video
from lookupvit_video.errors import UserError

Source = str | os.PathLike[str] | IO[bytes] | Tensor | np.ndarray
MAX_BYTES = 2 << 30  # of the frames decoded at once, and of all clips of a video
_USUAL_BYTES = 256 << 20  # of decoded frames, where views can be read in turn


class Views(NamedTuple):
    """The clips of one video."""

    name: str
    clips: np.ndarray
    """(V, C, T, H, W) uint8: the crops of one time next to each other."""
    times: list[tuple[float, float]]
    """Seconds of the first and the last frame of each clip in time."""
    note: str = ""
    """A remark for the reader of the answer."""
    seconds: Sequence[Sequence[float]] = ()
    """Those of the frames of each clip in time."""


class Failure(NamedTuple):
    """A video without an answer."""

    path: str
    error: str
    """Why not."""

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"path": self.path, "error": self.error}


@dataclass(frozen=True)
class Plan:
    """Which clips to take from each video, and how."""

    times: TimeSampler
    size: int
    """H and W of the clips."""
    short_side: int
    num_crops: int
    backend: str
    timeout: float
    """Seconds that opening a file, or decoding its clips, may take."""
    fps: float
    """The rate of a tensor's frames, where the caller gives none."""
    clip_seconds: float | None = None
    """Length of a clip; None: its frames are spread over the video."""
    video_seconds: float = 0.0
    """Then: usual length of the training videos; 0: unknown."""
    frame_rate: float = 0.0
    """Pictures a second of a folder of pictures; 0: not known."""
    index_cache: str = ""
    """Folder of frame times that earlier runs found; empty: none."""
    is_step: bool = False
    """Whether clips follow one another, see ``Predictor.window_plan``."""

    @property
    def num_views(self) -> int:
        """V."""
        return self.times.num_clips * self.num_crops

    def changed(
        self,
        num_views: int | None = None,
        num_crops: int | None = None,
        backend: str | None = None,
        timeout: float | None = None,
    ) -> "Plan":
        """Return the plan with other clips in time, crops in space, decoder or timeout, checked; None: as it is.

        Raises:
            UserError: the backend is not installed, or the views do not fit into memory.
        """
        plan = replace(
            self,
            times=self.times if num_views is None else replace(self.times, num_clips=num_views),
            num_crops=self.num_crops if num_crops is None else num_crops,
            backend=backend or self.backend,
            timeout=self.timeout if timeout is None else timeout,
        )
        check_backend(plan.backend)
        views = f"{plan.times.num_clips} x {plan.num_crops} views"
        if plan.times.num_clips < 1 or plan.num_crops not in (1, 3):
            raise UserError(f"{views}: there must be at least 1 in time, and 1 or 3 crops")
        if plan.num_views * 3 * plan.times.num_frames * plan.size**2 > MAX_BYTES:
            raise UserError(
                f"{views} of {plan.times.num_frames} frames of {plan.size} x {plan.size} pixels take more than "
                f"{MAX_BYTES >> 30} GiB; use fewer views"
            )
        return plan


def make_plan(cfg: CfgNode) -> Plan:
    """Return the views of the test in a checkpoint's config; ``Plan.changed`` checks them."""
    data, is_clip = cfg.DATA, cfg.DATA.SAMPLING == "clip"
    return Plan(
        times=build_time_sampler(cfg, training=False, num_clips=cfg.TEST.NUM_ENSEMBLE_VIEWS),
        size=data.TEST_CROP_SIZE,
        short_side=data.TEST_SHORT_SIDE or data.TEST_CROP_SIZE,
        num_crops=cfg.TEST.NUM_SPATIAL_CROPS,
        backend=data.DECODING_BACKEND,
        timeout=data.DECODE_TIMEOUT,
        fps=data.TARGET_FPS,
        frame_rate=data.FRAME_RATE,
        clip_seconds=data.NUM_FRAMES * data.SAMPLING_RATE / data.TARGET_FPS if is_clip else None,
        video_seconds=data.VIDEO_SECONDS,
        index_cache=data.INDEX_CACHE,
    )


def read_views(source: Source, plan: Plan, fps: float | None = None) -> Views:
    """Return the clips of a video.

    Args:
        source: a path; a file opened for reading bytes; or frames, uint8 (T, H, W, C) or (C, T, H, W), RGB, as a
            tensor or array.
        fps: frames a second of a tensor. None: its frames are one clip, as many as the model takes.

    Raises:
        DecodeError: the file cannot be read.
        UserError: not a source, or frames of another shape or type.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_file(os.fspath(source), plan)
    if isinstance(source, (Tensor, np.ndarray)):
        return views_of_frames(torch.as_tensor(source), plan, fps)
    if hasattr(source, "read"):
        return _read_open_file(source, plan)
    raise UserError(
        f"a video is a path, a file opened for reading bytes, or a uint8 tensor of frames; got {type(source).__name__}"
    )


def read_file(path: str, plan: Plan, check: Callable[[VideoReader], object] | None = None) -> Views:
    """Return the clips of a video file, see ``read_views``; a short video's last frame is repeated.

    Args:
        check: gets the open file before anything of it is decoded; what it raises is raised.

    Raises:
        DecodeError: the file cannot be read, or its frames are too large.
    """
    try:
        with open_video(path, plan.backend, timeout=plan.timeout, frame_rate=plan.frame_rate) as reader:
            if check is not None:
                check(reader)
            seconds_VT, end = plan.times(reader.duration), reader.duration
            shown_VT = within(seconds_VT, 0.0, end)
            width, height = reader.info.width, reader.info.height
            bytes_a_clip = 3 * width * height * shown_VT.shape[1]
            if bytes_a_clip > MAX_BYTES:
                raise DecodeError(
                    path,
                    f"its frames of {width} x {height} pixels are too large: a clip of {shown_VT.shape[1]} takes "
                    f"{bytes_a_clip / 2**30:.1f} GiB (limit {MAX_BYTES >> 30}); make it smaller, for example with "
                    "ffmpeg -i IN -vf scale=-2:1080 OUT",
                )
            clips = []
            at_once = max(1, _USUAL_BYTES // bytes_a_clip)
            for start in range(0, len(shown_VT), at_once):
                rows_VT = shown_VT[start : start + at_once]
                frames_THWC = reader.frames_at(rows_VT.ravel().tolist())
                clips += _crops(frames_THWC, rows_VT.shape[1], plan)
            damage = "; ".join(map(str, reader.damage))
    except OverflowError as error:  # a damaged header's numbers
        raise DecodeError(path, str(error)) from None
    views = _views(path, clips, seconds_VT, end)
    return views._replace(note="; ".join(filter(None, [f"damaged: {damage}" if damage else "", views.note])))


def views_of_frames(frames: Tensor, plan: Plan, fps: float | None = None, name: str = "tensor") -> Views:
    """Return the clips of frames in memory, see ``read_views``."""
    shape = tuple(frames.shape)
    if frames.dtype != torch.uint8 or len(shape) != 4 or 3 not in (shape[0], shape[-1]) or 0 in shape:
        raise UserError(
            f"frames must be uint8 RGB of shape (T, H, W, 3) or (3, T, H, W); got {frames.dtype} of shape {shape}"
        )
    frames_THWC = frames if frames.shape[-1] == 3 else frames.permute(1, 2, 3, 0)
    count, wanted = len(frames_THWC), plan.times.num_frames
    if fps is None:
        if count != wanted:
            raise UserError(f"the model takes {wanted} frames, got {count}; set fps= to sample from them")
        seconds_VT, end = np.arange(count)[None] / plan.fps, count / plan.fps
        return _views(name, _crops(frames_THWC.cpu(), count, plan), seconds_VT, end)
    if not 0 < fps < float("inf"):
        raise UserError(f"fps={fps}: frames a second must be above 0")
    seconds_VT, end = plan.times(count / fps), count / fps
    indices = torch.from_numpy((seconds_VT * fps + 1e-6).astype(np.int64).clip(0, count - 1)).ravel()
    return _views(name, _crops(frames_THWC[indices.to(frames.device)].cpu(), wanted, plan), seconds_VT, end)


def _read_open_file(file: IO[bytes], plan: Plan) -> Views:
    """Read an open file through a temporary one, since decoders seek in a file and open it more than once."""
    name = str(getattr(file, "name", "") or "open file")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "video" + Path(name).suffix[:8])
        with copy.open("wb") as out:
            chunk: Any = file.read(0)
            if not isinstance(chunk, bytes):
                raise UserError(f"{name}: open this file with mode 'rb'")
            shutil.copyfileobj(file, out)
        try:
            return read_file(str(copy), plan)._replace(name=name)
        except DecodeError as error:
            raise DecodeError(name, error.reason) from None


def _crops(frames_THWC: Tensor, num_frames: int, plan: Plan) -> list[Tensor]:
    transform = eval_transform(plan.size, plan.short_side, plan.num_crops)
    return [clip for frames in torch.split(frames_THWC, num_frames) for clip in transform(frames)]


def _views(name: str, clips: list[Tensor], seconds_VT: np.ndarray, end: float) -> Views:
    note = ""
    if seconds_VT.max() >= end:
        note = f"shorter ({end:.2f} s) than the clip ({np.ptp(seconds_VT[0]):.2f} s): its last frame is repeated"
    seconds = np.minimum(seconds_VT, end).tolist()
    return Views(name, torch.stack(clips).numpy(), [(row[0], row[-1]) for row in seconds], note, seconds)
