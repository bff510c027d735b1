"""Corruptions by the codec: a video is compressed and decoded again in memory, by PyAV, with or without faults between.

Each function takes all frames of a video (N, H, W, 3) uint8, a strength and a generator, and returns as many frames of
the same size. Encoders and decoders run on one thread, so that a video gives the same bytes everywhere. x264 and x265
use the preset "veryfast", because libav's default takes several times as long.

Faults are counted in pictures, not in bytes of the stream, where their number would depend on the file's size. They
spare the first picture, without which nothing can be shown.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import InvalidDataError
from av.video.reformatter import VideoReformatter

RATE = 25
PICTURE_BYTES = 2000
"""Of a picture of 340 x 256 pixels at 400 kbit/s, as in Kinetics: turns errors a byte into errors a picture."""
_X264 = "mbtree=0:rc-lookahead=0:sync-lookahead=0"
"""Looking ahead, x264 reads past pictures of less than about 100 pixels: the result would depend on what is there."""
_X265 = "log-level=none:pools=none:frame-threads=1:wpp=0"
_X265_SMALL = ":ctu=16:aq-mode=0:cutree=0"
"""x265 reads past pictures that are no multiple of its largest block, and writes past its buffers weighing blocks."""
_SMALL = 256  # pixels


def h264_crf(frames: np.ndarray, crf: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress with x264 at a constant rate factor."""
    return _decoded(_encoded(frames, "libx264", crf=crf), "h264", frames)


def h265_crf(frames: np.ndarray, crf: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress with x265 at a constant rate factor."""
    return _decoded(_encoded(frames, "libx265", crf=crf), "hevc", frames)


def h264_abr(frames: np.ndarray, divisor: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress with x264 at a fraction of the bit rate that it takes at rate factor 23."""
    return _at_rate(frames, "libx264", "h264", divisor)


def h265_abr(frames: np.ndarray, divisor: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress with x265 at a fraction of the bit rate that it takes at rate factor 23."""
    return _at_rate(frames, "libx265", "hevc", divisor)


def mpeg2(frames: np.ndarray, scale: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress as MPEG-2 with a fixed scale of the quantizer, 1 to 31."""
    return _decoded(_encoded(frames, "mpeg2video", qmin=scale, qmax=scale), "mpeg2video", frames)


def mpeg4(frames: np.ndarray, scale: int, _rng: np.random.Generator) -> np.ndarray:
    """Compress as MPEG-4 part 2 with a fixed scale of the quantizer, 1 to 31."""
    return _decoded(_encoded(frames, "mpeg4", qmin=scale, qmax=scale), "mpeg4", frames)


def packet_loss(frames: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Lose a percentage of the compressed pictures of an H.264 stream."""
    packets = _at_crf_23(frames, "libx264")
    lost = rng.random(len(packets)) < percent / 100
    return _decoded([packet for at, packet in enumerate(packets) if not at or not lost[at]], "h264", frames)


def bit_error(frames: np.ndarray, every: int, rng: np.random.Generator) -> np.ndarray:
    """Flip one bit in some of the compressed pictures of an H.264 stream.

    Args:
        every: published as bytes for one error; a picture counts as ``PICTURE_BYTES``.
    """
    packets = _at_crf_23(frames, "libx264")
    hit, places = rng.random(len(packets)) < PICTURE_BYTES / every, rng.random(len(packets))
    damaged = [_flipped(packet, place) if at and hit[at] else packet
               for at, (packet, place) in enumerate(zip(packets, places, strict=True))]  # fmt: skip
    return _decoded(damaged, "h264", frames)


def _flipped(packet: Any, place: float) -> Any:
    data = bytearray(bytes(packet))
    bit = int(place * 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    flipped = av.Packet(bytes(data))
    flipped.pts, flipped.dts, flipped.time_base = packet.pts, packet.dts, packet.time_base
    return flipped


def _at_rate(frames: np.ndarray, encoder: str, decoder: str, divisor: int) -> np.ndarray:
    size = sum(packet.size for packet in _at_crf_23(frames, encoder))
    rate = max(size * 8 * RATE // len(frames) // divisor, 1000)
    return _decoded(_encoded(frames, encoder, bit_rate=rate), decoder, frames)


_last: dict[str, Any] = {}


def _at_crf_23(frames: np.ndarray, encoder: str) -> list[Any]:
    """Encode at rate factor 23; the last result is kept, since the severities of a corruption follow one another."""
    key = encoder, frames.shape, hashlib.sha256(np.ascontiguousarray(frames).data).digest()
    if _last.get("key") != key:
        _last.update(key=key, packets=_encoded(frames, encoder, crf=23))
    packets: list[Any] = _last["packets"]
    return packets


def _encoded(
    frames: np.ndarray, encoder: str, *, crf: int | None = None, bit_rate: int = 0, **settings: int
) -> list[Any]:
    """Return the packets of a stream without a container; sides of an odd length are made even."""
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    padded = np.pad(frames, ((0, 0), *odd, (0, 0)), mode="edge") if any(map(any, odd)) else frames
    context: Any = av.CodecContext.create(encoder, "w")
    context.height, context.width = padded.shape[1:3]
    context.pix_fmt, context.thread_count = "yuv420p", 1
    context.time_base, context.framerate = Fraction(1, RATE), Fraction(RATE)
    options: dict[str, str] = {name: str(value) for name, value in settings.items()}
    if crf is not None:
        options["crf"] = str(crf)
    if bit_rate:
        context.bit_rate = bit_rate
        options |= {"maxrate": str(bit_rate), "bufsize": str(bit_rate)}
    if encoder.startswith("libx26"):
        options["preset"] = "veryfast"
    if encoder == "libx264":
        options["x264-params"] = _X264
    if encoder == "libx265":
        options["x265-params"] = _X265 + (_X265_SMALL if min(padded.shape[1:3]) < _SMALL else "")
    context.options = options
    packets, reformatter = [], VideoReformatter()  # one for all pictures: to set it up takes longer than its work
    for number, pixels in enumerate(np.ascontiguousarray(padded)):
        picture = reformatter.reformat(av.VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p")
        picture.pts, picture.time_base = number, context.time_base
        packets += context.encode(picture)
    packets += context.encode(None)
    return packets


def _decoded(packets: Sequence[Any], decoder: str, like: np.ndarray) -> np.ndarray:
    """Return a frame for each of ``like`` (N, H, W, 3); one that the decoder does not deliver repeats the last one."""
    context: Any = av.CodecContext.create(decoder, "r")
    context.thread_count, context.options = 1, {"flags": "+output_corrupt"}
    shown, reformatter = {}, VideoReformatter()
    height, width = like.shape[1:3]
    for packet in [*packets, None]:
        try:
            pictures = context.decode(packet)
        except InvalidDataError:  # a fault that the decoder cannot conceal: this picture is lost
            continue
        for picture in pictures:
            if picture.pts is not None and picture.height >= height and picture.width >= width:
                shown[picture.pts] = reformatter.reformat(picture, format="rgb24").to_ndarray()[:height, :width]
    out, last = np.empty_like(like), shown[min(shown)]
    for number, target in enumerate(out):
        last = shown.get(number, last)
        target[:] = last
    return out
