"""Tiny real video files for tests, written with PyAV; every picture carries a number that `read_number` reads back."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

_AUDIO = {".webm": "libopus", ".avi": "mp2"}  # elsewhere aac
_TICKS = 90_000  # per second, for pictures at times of their own


def draw_frame(number: int, *, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A picture like no other: its number as 16 black or white cells in the upper half, a moving gradient in the lower.

    Args:
        number: 0 to 65535.
        size: (W, H) in pixels, at least (32, 16).

    Returns:
        uint8 (H, W, 3), RGB.
    """
    width, height = size
    y, x = np.mgrid[:height, :width]
    picture = np.stack([(x * 3 + number * 5) % 256, (y * 4 + number * 9) % 256, np.full_like(x, number * 11 % 256)], -1)
    cell_h, cell_w = height // 4, width // 8
    for bit in range(16):
        row, column = divmod(bit, 8)
        cell = np.s_[row * cell_h : (row + 1) * cell_h, column * cell_w : (column + 1) * cell_w]
        picture[cell] = 235 if number >> bit & 1 else 20
    return picture.astype(np.uint8)


def read_number(picture: np.ndarray) -> int:
    """The number in a picture of `draw_frame` (H, W, 3), after any codec."""
    height, width = picture.shape[:2]
    cell_h, cell_w = height // 4, width // 8
    cells = np.asarray(picture)[: 2 * cell_h, : 8 * cell_w].astype(float).mean(-1)
    levels = cells.reshape(2, cell_h, 8, cell_w)[:, cell_h // 4 : -(cell_h // 4), :, cell_w // 4 : -(cell_w // 4)]
    bits = levels.mean(axis=(1, 3)).ravel() > 128
    return int(sum(1 << bit for bit, on in enumerate(bits) if on))


def write_video(
    path: str | Path,
    *,
    frames: int = 48,
    size: tuple[int, int] = (64, 48),
    fps: int | Fraction = 24,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    times: Sequence[float] | None = None,
    start: int = 0,
    first_number: int = 0,
    rotation: int = 0,
    display_matrix: tuple[float, float, float, float] | None = None,
    with_audio: bool = False,
    pix_fmt: str = "yuv420p",
    pixel_shape: Fraction | None = None,
    matrix: int | None = None,
    colour_range: int | None = None,
    decoys: int = 0,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
) -> str:
    """Write a video whose picture i is `draw_frame(first_number + i)`; the suffix of `path` chooses the container.

    Args:
        path: file to write.
        frames: number of pictures.
        size: (W, H) in pixels; libx264 and libx265 take odd ones only where pix_fmt does not halve the colours.
        fps: pictures a second.
        codec: an encoder of libav: libx264, libx265, libvpx-vp9, libvpx, mpeg4, libsvtav1.
        gop: pictures from one key frame to the next, at most.
        b_frames: pictures between two references that are predicted from both sides.
        times: seconds at which each picture is shown, ascending, instead of i / fps.
        start: time stamp of the first picture, in pictures; in mp4 those below zero are cut off by an edit list.
        first_number: number on the first picture.
        rotation: degrees clockwise by which a player turns the pictures (0, 90, 180, 270); mp4 and mov only.
        display_matrix: how a player turns and mirrors the pictures (a b, c d); mkv and webm, see tests/orientations.py.
        with_audio: a sine tone as long as the video beside it.
        pix_fmt: how the encoder stores pixels.
        pixel_shape: width of a pixel over its height, as the header tells.
        matrix: how colours are coded, as ITU-T H.273 counts: 1 is BT.709, 6 is BT.601 (which players take None for).
        colour_range: 1 for 16 to 235, 2 for 0 to 255, stated in the header; None: the first, not stated.
        decoys: video streams before and after the right one, which alone is flagged as the default; 24 times 9999.
        codec_options: further settings of the encoder.
        container_options: further settings of the container.
        container_format: libav's name of the container; None: what the suffix says.

    Returns:
        The path, as text.
    """
    path = Path(path)
    base = Fraction(1, _TICKS) if times is not None else 1 / Fraction(fps)
    opened = av.open(str(path), "w", format=container_format, options=container_options or {})
    with _scheduling_kept(), opened as container:
        before = [_add_decoy(container) for _ in range(decoys)]
        video = container.add_stream(codec, rate=fps)
        after = [_add_decoy(container) for _ in range(decoys)]
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        for name, value in (
            ("sample_aspect_ratio", pixel_shape),
            ("colorspace", matrix),
            ("color_range", colour_range),
        ):
            if value is not None:
                setattr(video.codec_context, name, value)
        if display_matrix is not None:
            a, b, c, d = (round(number * 65536) for number in display_matrix)
            video.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if decoys:
            video.disposition = Disposition.default
        video.codec_context.time_base = base
        video.codec_context.gop_size = gop
        video.codec_context.max_b_frames = b_frames
        video.options = _encoder_options(codec, gop, b_frames) | (codec_options or {})
        audio = container.add_stream(_AUDIO.get(path.suffix, "aac"), rate=48_000) if with_audio else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(draw_frame(first_number + i, size=size), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=colour_range)
            frame.pts, frame.time_base = round(times[i] * _TICKS) if times is not None else start + i, base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for stream in before + after:
            for i in range(24):
                frame = av.VideoFrame.from_ndarray(draw_frame(9999), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 24)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if audio is not None:
            _add_tone(container, audio, times[-1] if times is not None else frames / float(fps))
    if rotation:
        _rotate(path, rotation)
    return str(path)


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """Keep the scheduling of this thread.

    Where root calls it, SVT-AV1 gives the calling thread the highest real-time priority and leaves it so. All that the
    thread starts later has it too, and starves the rest of the machine.
    """
    if not hasattr(os, "sched_setscheduler"):  # Linux only
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def write_audio(path: str | Path, *, seconds: float = 1.0) -> str:
    """Write a file with a sine tone and no picture; returns the path, as text."""
    with av.open(str(path), "w") as container:
        _add_tone(container, container.add_stream(_AUDIO.get(Path(path).suffix, "aac"), rate=48_000), seconds)
    return str(path)


def _encoder_options(codec: str, gop: int, b_frames: int) -> dict[str, str]:
    """One thread, and key frames and B-frames where they were asked for rather than where the encoder likes them."""
    if codec == "libx264":
        return {"threads": "1", "preset": "veryfast", "sc_threshold": "0", "b_strategy": "0"}
    if codec == "libx265":
        settings = f"log-level=none:pools=none:frame-threads=1:keyint={gop}:bframes={b_frames}:b-adapt=0:scenecut=0"
        # x265 writes past its buffers when it weighs blocks of so small pictures, and glibc may abort the process.
        return {"preset": "ultrafast", "x265-params": f"{settings}:cutree=0:aq-mode=0"}
    if codec.startswith("libvpx"):
        return {"deadline": "realtime", "cpu-used": "8"}
    if codec == "libsvtav1":
        return {"preset": "12", "svtav1-params": "lp=1"}
    if codec == "mpeg4":
        return {"qscale": "3", "sc_threshold": "1000000000"}
    return {}


def _add_decoy(container: av.container.OutputContainer) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=24)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.disposition = Disposition(0)
    return stream


def _add_tone(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    wave = (8000 * np.sin(np.arange(int(48_000 * seconds)) * 2 * np.pi * 440 / 48_000)).astype(np.int16)
    step = 960  # 20 ms: the length an Opus packet likes
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=48_000)
    for at in range(0, len(wave), step):
        frame = av.AudioFrame.from_ndarray(wave[None, at : at + step].copy(), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, at, Fraction(1, 48_000)
        for part in resampler.resample(frame):
            container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def _rotate(path: Path, degrees: int) -> None:
    """Write a turn into the display matrix of the first track's header (ISO 14496-12, 8.3.2, version 0)."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = np.array([cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = matrix
    path.write_bytes(data)
