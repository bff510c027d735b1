"""The codec family: smaller streams, faults in pictures, the same bytes each time."""

import ctypes

import numpy as np
import pytest

from lookupvit_video.corruptions import codec
from tests.corruptions.clips import varied_clips

CODECS = [(codec.h264_crf, 37), (codec.h265_crf, 39), (codec.mpeg2, 14), (codec.mpeg4, 14), (codec.bit_error, 1e4),
          (codec.packet_loss, 6), (codec.h264_abr, 4), (codec.h265_abr, 4)]  # fmt: skip


def rng():
    return np.random.default_rng(1)


def dirty_memory(seed):
    """Leave freed memory full of other bytes, which an encoder that reads past its buffers would meet."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    draw = np.random.default_rng(seed)
    blocks = [(libc.malloc(int(size)), int(size)) for size in draw.integers(16, 100_000, 1500)]
    for place, size in blocks:
        ctypes.memset(place, int(draw.integers(1, 255)), size)
    for place, _ in blocks:
        libc.free(place)


@pytest.mark.parametrize(("function", "strength"), CODECS, ids=lambda part: getattr(part, "__name__", ""))
@pytest.mark.parametrize("side", [48, 64])
def test_the_same_bytes_whatever_was_in_memory(function, strength, side):
    (clip,) = varied_clips(1, side=side)
    found = set()
    for seed in range(4):
        dirty_memory(seed)
        codec._last.clear()
        found.add(function(clip, strength, rng()).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(("function", "strength"), CODECS, ids=lambda part: getattr(part, "__name__", ""))
def test_odd_sizes_and_a_single_frame(function, strength):
    clip = varied_clips(1, side=49)[0][:, :, :47]
    assert function(clip, strength, rng()).shape == clip.shape
    assert function(clip[:1], strength, rng()).shape == (1, 49, 47, 3)


def test_a_lost_picture_shows_the_one_before_and_the_frames_after_it_keep_their_place():
    (clip,) = varied_clips(1, frames=6)
    packets = codec._encoded(clip, "libx264", crf=23)
    whole = codec._decoded(packets, "h264", clip)
    lost = {packet.pts for packet in packets[-1:]}
    cut = codec._decoded(packets[:-1], "h264", clip)
    for number in range(6):
        assert (cut[number] == whole[number - (number in lost)]).all()


def test_the_first_picture_is_spared():
    (clip,) = varied_clips(1)
    first = codec.h264_crf(clip, 23, rng())[0]
    assert (codec.packet_loss(clip, 100, rng())[:] == first).all()
    assert (codec.bit_error(clip, 1, rng())[0] == first).all()


def test_no_fault_no_change():
    (clip,) = varied_clips(1)
    compressed = codec.h264_crf(clip, 23, rng())
    assert (codec.packet_loss(clip, 0, rng()) == compressed).all()
    assert (codec.bit_error(clip, 1e12, rng()) == compressed).all()


def test_the_kept_stream_is_that_of_the_same_video_only():
    first, second = varied_clips(2)
    alone = codec.packet_loss(second, 0, rng())
    codec.packet_loss(first, 0, rng())
    assert (codec.packet_loss(second, 0, rng()) == alone).all()
