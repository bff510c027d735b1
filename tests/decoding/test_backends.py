"""Every frame that a reader returns is the one that a full decode shows at that time, or the reader says why not."""

import inspect
import logging
import os
import pickle
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.config import KEYS
from lookupvit_video.decoding import backends as decode
from lookupvit_video.decoding import pyav_reader, timeline
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.opening import VideoFile
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import Box
from tests.videos import draw_frame, read_number, write_audio, write_video

MISSING = {name: reader.missing() for name, reader in decode.BACKENDS.items()}
NEEDS = {name: pytest.mark.skipif(why is not None, reason=f"{name}: {why}") for name, why in MISSING.items()}
BACKENDS = [pytest.param(name, marks=mark) for name, mark in NEEDS.items()]
OTHERS = BACKENDS[1:]
BOTH = ("decord", "torchcodec")
OPEN_GOP = {"x264-params": "open-gop=1"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1"}

# name of the file: how it is written, which of the other backends must serve it themselves
FILES = {
    "gop12.mp4": ({}, BOTH),
    "gop12_b.mp4": ({"b_frames": 2, "with_audio": True}, BOTH),
    "gop250.mp4": ({"gop": 250}, BOTH),
    "gop250_b.mp4": ({"gop": 250, "b_frames": 2}, BOTH),
    "b.mkv": ({"b_frames": 2}, BOTH),
    "vp9.webm": ({"codec": "libvpx-vp9", "with_audio": True}, BOTH),
    "fragmented.mp4": ({"b_frames": 2, "container_options": {"movflags": "frag_keyframe+empty_moov"}}, BOTH),
    "late_start.mp4": ({"b_frames": 2, "start": 30}, BOTH),
    "edit_list.mp4": ({"b_frames": 2, "start": -7}, set()),
    "gop2_b.mp4": ({"gop": 2, "b_frames": 1}, BOTH),
    "all_keys.mp4": ({"gop": 1, "b_frames": 2}, BOTH),
    "open_gop.mp4": ({"b_frames": 3, "codec_options": OPEN_GOP}, set()),
    "intra_refresh.mp4": ({"codec_options": INTRA_REFRESH}, set()),
    "mpegts.ts": ({"b_frames": 2, "with_audio": True}, set()),
    "late_start.ts": ({"b_frames": 2, "start": 500}, set()),
    "mpeg4.avi": ({"codec": "mpeg4", "with_audio": True}, set()),
    "mpeg4_b.avi": ({"codec": "mpeg4", "b_frames": 2}, set()),
    "mpeg4.mp4": ({"codec": "mpeg4"}, {"torchcodec"}),
    "mpeg4_b.mp4": ({"codec": "mpeg4", "b_frames": 2}, set()),
    "h264_b.avi": ({"b_frames": 2}, set()),  # its time stamps are in the order of decoding
    "raw.h264": ({"b_frames": 2}, set()),  # it has no time stamps
    "hevc.mp4": ({"codec": "libx265"}, {"torchcodec"}),
    "av1.mkv": ({"codec": "libsvtav1"}, {"torchcodec"}),
    "odd_height.webm": ({"codec": "libvpx-vp9", "size": (66, 49)}, set()),
    "hevc_b.mp4": ({"codec": "libx265", "b_frames": 3, "gop": 24}, set()),
    "hevc_10bit.mp4": ({"codec": "libx265", "pix_fmt": "yuv420p10le"}, set()),
    "rate_varies.mp4": ({"b_frames": 2, "times": [0.002 * i * i for i in range(48)]}, BOTH),
    "turned_90.mp4": ({"rotation": 90, "b_frames": 2}, set()),
    "turned_180.mov": ({"rotation": 180}, set()),
}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """name -> path, each written once."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def path_of(name):
        if name not in made:
            recipe = FILES[name][0]
            if recipe.get("codec", "libx264") not in av.codecs_available:
                pytest.skip(f"this build of PyAV has no {recipe['codec']} encoder")
            made[name] = write_video(folder / name, **recipe)
        return made[name]

    return path_of


def decode_all(path):
    """What a player shows: times in seconds from the first frame, float64 (N,), and frames, uint8 (N, H, W, 3)."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        shown = list(container.decode(stream))
        pictures = [f.to_ndarray(format="rgb24", interpolation="BICUBIC") for f in shown]
        pictures = [np.rot90(p, round(f.rotation / 90)) for p, f in zip(pictures, shown, strict=True)]
        stamps = [f.pts for f in shown]
        if None in stamps or min(np.diff(stamps)) <= 0:
            return np.arange(len(shown)) / float(stream.average_rate), np.stack(pictures)
        return (np.array(stamps) - stamps[0]) * float(stream.time_base), np.stack(pictures)


def frames_shown(times, pictures, seconds):
    """The last frame that has begun at each time, the slow way."""
    return np.stack([pictures[max((i for i, t in enumerate(times) if t <= s + 1e-6), default=0)] for s in seconds])


def assert_shown(frames, expected, backend):
    assert frames.dtype == torch.uint8
    if backend == "pyav":
        assert torch.equal(frames, torch.from_numpy(expected))
    else:
        assert [read_number(f) for f in frames.numpy()] == [read_number(f) for f in expected]
        assert np.abs(frames.numpy().astype(float) - expected).mean(axis=(1, 2, 3)).max() <= 1.0


def test_a_reader_waits_as_long_as_the_config_says():
    """Until somebody sets DATA.DECODE_TIMEOUT: whoever opens a file without a config."""
    assert inspect.signature(open_video).parameters["timeout"].default == KEYS["DATA.DECODE_TIMEOUT"].default


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_a_full_decode(videos, name, backend):
    path = videos(name)
    times, pictures = decode_all(path)
    end = times[-1]
    rng = np.random.default_rng(0)
    with open_video(path, backend) as video:
        np.testing.assert_allclose(video.times, times, atol=1e-9)
        assert video.times[0] == 0.0
        requests = [[0.0], [end], [end + 5.0, -3.0], [end], list(times), list(times[::-1]), [0.3, 0.3, 0.1], []]
        requests += [rng.uniform(-0.2, end + 0.2, size=rng.integers(1, 9)) for _ in range(40)]
        requests += [rng.choice(times, size=4) for _ in range(10)]
        for at in requests[:8] + [requests[i] for i in 8 + rng.permutation(len(requests) - 8)]:
            frames = video.frames_at(at)
            assert frames.shape == (len(at), *pictures.shape[1:])
            if len(at):
                assert_shown(frames, frames_shown(times, pictures, at), backend)
        if backend != "pyav":
            assert (video._library is not None) == (backend in FILES[name][1]), "it serves what it is exact on, no more"


def test_the_tests_own_pictures_can_be_told_apart(videos):
    _, pictures = decode_all(videos("gop250_b.mp4"))
    assert [read_number(p) for p in pictures] == list(range(48))
    assert read_number(draw_frame(40_000)) == 40_000


def test_an_edit_list_starts_the_video_where_it_says(videos):
    with open_video(videos("edit_list.mp4")) as video:
        assert len(video.times) == video.info.num_frames == 41
        assert read_number(video.frames_at([0.0])[0].numpy()) == 7


def test_variable_rate_is_read_from_the_time_stamps(videos):
    with open_video(videos("rate_varies.mp4")) as video:
        np.testing.assert_allclose(video.times, [0.002 * i * i for i in range(48)], atol=1e-4)
        assert [read_number(f) for f in video.frames_at([0.0, 1.0, 4.0]).numpy()] == [0, 22, 44]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotated_pictures_come_upright(tmp_path, backend):
    path = write_video(tmp_path / "turned.mp4", frames=4, rotation=90)
    with open_video(path, backend) as video:
        assert (video.info.width, video.info.height) == (48, 64)
        frame = video.frames_at([2 / 24])[0].numpy()
        assert frame.shape == (64, 48, 3)
        assert read_number(np.rot90(frame)) == 2, "90 degrees clockwise is undone by a quarter turn the other way"


@pytest.mark.parametrize(
    ("shape", "rotation", "width", "height"),
    [
        (Fraction(4, 3), 0, 85, 48),
        (Fraction(8, 9), 0, 57, 48),
        (Fraction(4, 3), 90, 48, 85),
        (Fraction(64, 63), 0, 64, 48),  # nearly square: what scaling to even sizes leaves behind
        (Fraction(1000, 1), 0, 64, 48),  # no camera's: the header is damaged
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_oblong_pixels_come_square(tmp_path, backend, shape, rotation, width, height):
    path = write_video(tmp_path / "a.mp4", frames=6, b_frames=2, pixel_shape=shape, rotation=rotation)
    with open_video(path, backend) as video:
        assert (video.info.width, video.info.height) == (width, height)
        frame = video.frames_at([2 / 24])[0].numpy()
    assert frame.shape == (height, width, 3)
    assert read_number(np.rot90(frame, rotation // 90)) == 2


LUMA = {"BT.601": (6, 0.299, 0.114), "BT.709": (1, 0.2126, 0.0722)}  # its number, Kr, Kb (ITU-R BT.601 and BT.709)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuvj420p"])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_matrix_the_range_and_the_depth(tmp_path, backend, pix_fmt, matrix, full):
    if pix_fmt == "yuvj420p" and not full:
        pytest.skip("it is full by its name")
    number, kr, kb = LUMA[matrix]
    colours = np.array([[200, 40, 60], [30, 180, 90], [20, 60, 220], [128, 128, 128], [250, 250, 5]])
    red, green, blue = colours.T / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    blueness, redness = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    depth = 10 if "10" in pix_fmt else 8
    low, span, spread = (0, 255, 255) if full else (16, 219, 224)
    levels = np.stack([low + span * luma, 128 + spread * blueness, 128 + spread * redness], -1) * 2 ** (depth - 8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = number, 2 if full else 1
        for row in levels.round().astype("<u2" if depth == 10 else "u1"):
            frame = av.VideoFrame(64, 48, pix_fmt)
            for plane, level in zip(frame.planes, row, strict=True):
                plane.update(np.full(plane.buffer_size // level.itemsize, level, dtype=level.dtype).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(tmp_path / "a.mp4", backend) as video:
        found = video.frames_at(video.times).numpy().astype(float)
    assert np.abs(found - colours[:, None, None]).max() <= 4


def test_info_describes_the_file(videos):
    with open_video(videos("gop12_b.mp4")) as video:
        info = video.info
    assert (info.codec, info.width, info.height, info.num_frames) == ("h264", 64, 48, 48)
    assert info.fps == pytest.approx(24)
    assert info.duration == pytest.approx(2)


def test_colours_are_those_written(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=1, codec_options={"qp": "1"})
    with open_video(path) as video:
        frame = video.frames_at([0.0])[0].numpy().astype(float)
    assert np.abs(frame[:24] - draw_frame(0)[:24]).mean() < 4, "RGB in this order, full range"


def test_seeks_decode_little_and_only_frames_asked_for_are_converted(videos, monkeypatch):
    decoded, converted = [], []
    plain, plain_rgb = VideoFile.decoded, PyAVReader._upright_rgb
    monkeypatch.setattr(
        PyAVReader, "_upright_rgb", lambda reader, frame: converted.append(frame.pts) or plain_rgb(reader, frame)
    )

    def counting(*args, **kwargs):
        for frame in plain(*args, **kwargs):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(VideoFile, "decoded", counting)
    with open_video(videos("gop12_b.mp4")) as video:
        decoded.clear()
        video.frames_at([37 / 24, 0.0])  # a key frame stands at 36
        assert len(decoded) <= 3
        decoded.clear()
        video.frames_at([i / 24 for i in range(37, 48)])
        assert len(decoded) <= 12
        converted.clear()
        video.frames_at([40 / 24, 46 / 24, 40 / 24])
        assert len(converted) == 2


def test_pictures_that_no_other_leans_on_are_decoded_only_when_asked_for(videos, monkeypatch):
    path = videos("gop250_b.mp4")
    times, pictures = decode_all(path)
    fed, plain = [], PyAVReader._needed
    monkeypatch.setattr(PyAVReader, "_needed", lambda *given: (fed.append(p.pts) or p for p in plain(*given)))
    with open_video(path) as video:
        assert_shown(video.frames_at([times[40]]), pictures[[40]], "pyav")
        assert len(fed) <= 30, "with two of three pictures unreferenced"
        for order in ([41], [42, 44], [43, 45], range(48), range(47, 0, -5), [41, 42, 43], [40, 45]):
            at = list(order)
            assert_shown(video.frames_at(times[at]), pictures[at], "pyav")
        fed.clear()
        video.frames_at(times)
        assert len(fed) == 48
        assert not getattr(video, "_pyav", video)._timeline.sequential


@pytest.mark.parametrize("first", [5, 30])
def test_a_stream_that_changes_its_size_gives_clips_of_one_size(tmp_path, first):
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height = 64, 48
        for part, size in enumerate([(64, 48), (96, 80)]):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
            encoder.time_base, encoder.max_b_frames, encoder.framerate = Fraction(1, 24), 0, 24
            for i in range(24):
                frame = av.VideoFrame.from_ndarray(draw_frame(24 * part + i, size=size), format="rgb24")
                frame.pts = 24 * part + i
                for packet in encoder.encode(frame.reformat(format="yuv420p")):
                    packet.stream = stream
                    container.mux(packet)
            for packet in encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    with open_video(path) as video:
        for number in (first, 0, 47):
            frame = video.frames_at([video.times[number]])[0].numpy()
            assert frame.shape == (48, 64, 3)
            assert number > 23 or read_number(frame) == number
        assert (video.info.width, video.info.height) == (64, 48)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gop12_b.mp4", "vp9.webm", "turned_90.mp4"])
def test_a_window_is_a_part_of_the_frames(videos, name, backend, in_memory):
    sizes, path = [], videos(name)

    def window(height, width):
        sizes.append((height, width))
        return Box(5, 3, height - 9, width - 4)

    at = [0.7, 0.1, 1.3, 0.7]
    with open_video(path, backend, in_memory) as video:
        part = video.frames_at(at, window)
        whole = video.frames_at(at)
        assert video.frames_at([], window).shape == (0, *part.shape[1:])
    assert torch.equal(part, whole[:, 5:-4, 3:-1])
    assert sizes == [tuple(whole.shape[1:3])] * 2, "asked once for each call"


@pytest.mark.parametrize(("short_side", "size"), [(24, (24, 32)), (48, (48, 64)), (0, (48, 64))])
def test_frames_in_memory_may_be_smaller(videos, short_side, size):
    path = videos("gop12_b.mp4")
    with open_video(path) as video, open_video(path, in_memory=True, short_side=short_side) as reduced:
        frames, small = (reader.frames_at(video.times.tolist()) for reader in (video, reduced))
    assert small.shape == (len(frames), *size, 3)
    by_hand = F.interpolate(frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    assert (small.permute(0, 3, 1, 2) - by_hand).abs().max() <= 1


def test_a_window_is_asked_for_once_where_the_work_is_done_twice(videos):
    asked, path = [], videos("gop12_b.mp4")
    with open_video(path) as video:
        video.frames_at([0.0])
        video._timeline.keys[2] = video._timeline.keys[2]._replace(seek=(video._timeline.keys[3].pts,))
        part = video.frames_at([26 / 24], lambda height, width: asked.append(height) or Box(0, 1, height, width - 1))
        assert video._timeline.sequential, "all was decoded anew"
        assert torch.equal(part, video.frames_at([26 / 24])[:, :, 1:])
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["gop12_b.mp4", "vp9.webm", "edit_list.mp4", "mpeg4_b.avi"])
@pytest.mark.parametrize("small", [0, 8 << 20])
def test_packets_of_a_small_file_are_read_once(videos, monkeypatch, name, small):
    path = videos(name)
    times, pictures = decode_all(path)
    read, plain = [], VideoFile.packets
    monkeypatch.setattr(pyav_reader, "_SMALL_FILE", small)
    monkeypatch.setattr(VideoFile, "packets", lambda reader: read.append(1) or plain(reader))
    with open_video(path) as video:
        assert bool(video._read) == bool(small)
        readings = []
        for at in ([1.5, 1.6], [1.9], [0.2, 1.2]):  # from a key frame in the middle, on from there, and back
            assert_shown(video.frames_at(at), frames_shown(times, pictures, at), "pyav")
            readings.append(len(read))
        assert (readings[0] == 1) == bool(small)
        assert readings[1] == readings[0] < readings[2]
        assert not video._read, "kept no longer than needed"


def test_frames_that_the_packets_hide_are_found_by_a_full_decode(videos, monkeypatch):
    """A seek to the wrong place must end in a full decode, never in another frame."""
    path = videos("gop12_b.mp4")
    times, pictures = decode_all(path)
    with open_video(path) as video:
        video.frames_at([0.0])  # without a seek: the packets are those of the opening
        key = video._timeline.keys[2]
        video._timeline.keys[2] = key._replace(seek=(video._timeline.keys[3].pts,))  # lands one key frame late
        assert_shown(video.frames_at([26 / 24]), frames_shown(times, pictures, [26 / 24]), "pyav")
        assert video._timeline.sequential
        assert_shown(video.frames_at([1.9, 0.1]), frames_shown(times, pictures, [1.9, 0.1]), "pyav")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_data_gives_what_a_full_decode_gives(tmp_path, seed):
    path = tmp_path / "damaged.mp4"
    data = bytearray(Path(write_video(path, frames=40, size=(96, 64), gop=10)).read_bytes())
    with av.open(str(path)) as container:
        hit = [p for p in container.demux(video=0) if p.size][10 + seed]
    rng = np.random.default_rng(seed)
    data[hit.pos + 6 : hit.pos + hit.size] = rng.integers(0, 256, hit.size - 6, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        pictures, stamps = [], []
        for packet in container.demux(stream):
            try:
                shown = packet.decode()
            except av.FFmpegError:
                continue
            pictures += [f.to_ndarray(format="rgb24") for f in shown]
            stamps += [f.pts for f in shown]
        times = (np.array(stamps) - stamps[0]) * float(stream.time_base)
    with open_video(path) as video:
        for at in (1.6, 0.5, 0.42, 0.1, 0.7, 1.5):
            frame = video.frames_at([at])
            assert torch.equal(frame, torch.from_numpy(frames_shown(times, pictures, [at])))


def test_a_few_time_stamps_out_of_order_are_left_out():
    assert timeline.longest_rise([0, 1, 9, 2, 3, 3, 4]) == [0, 1, 2, 3, 4]
    assert timeline.longest_rise([]) == []


def _text(path):
    path.write_text("this is not a video\n" * 20)


def _lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _cut(path, keep, **options):
    write_video(path, frames=120, size=(128, 96), **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


BAD_FILES = {
    "missing.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "is a directory"),
    "empty.mp4": (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "pointer.mp4": (_lfs, "git lfs pull"),
    "text.mp4": (_text, "is text, not a video .*this is not"),
    "text.webm": (_text, "is text, not a video .*this is not"),
    "empty_header.webm": (lambda path: path.write_bytes(b"\x1a\x45\xdf\xa3" + bytes(500)), "cannot be opened"),
    "noise.mp4": (lambda path: path.write_bytes(bytes(range(256)) * 9), "cannot be opened: not a video"),
    "sound.mp4": (write_audio, "holds no video stream"),
    "sound.mp3": (lambda path: path.write_bytes(_mp3_with_cover()), "holds no video stream"),
    "no_index.mp4": (lambda path: _cut(path, 0.6), "its index .moov. is missing: truncated"),
    "short.mp4": (
        lambda path: _cut(path, 0.6, container_options={"movflags": "faststart"}),
        r"truncated: holds \d+ of 120 frames",
    ),
    "short.mkv": (lambda path: _cut(path, 0.6), r"truncated: ends at \d\.\d+ of 5\.\d+ s"),
    "short.avi": (lambda path: _cut(path, 0.6, codec="mpeg4"), r"truncated: ends at \d\.\d+ of 5\.\d+ s"),
    "all_damaged.mp4": (lambda path: _wreck(path), "no frame of its h264 video can be decoded"),
}


def _mp3_with_cover():
    """A second of silence behind an ID3 tag that holds a picture; libav shows that as a video stream."""
    import io

    picture = io.BytesIO()
    av.VideoFrame.from_ndarray(draw_frame(1), format="rgb24").to_image().save(picture, "PNG")
    body = b"\0image/png\0\x03\0" + picture.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = len(frame)
    header = b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return header + frame + (b"\xff\xfb\x90\x64" + bytes(413)) * 40


def _wreck(path):
    """Every picture's data overwritten, the index left whole."""
    write_video(path, frames=8)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for pos, size in spans:
        data[pos : pos + size] = b"\xff" * size
    path.write_bytes(data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_the_reason(tmp_path, name, backend):
    make, reason = BAD_FILES[name]
    path = tmp_path / name
    make(path)
    before = _open_files()
    with pytest.raises(DecodeError, match=reason) as caught:
        open_video(path, backend)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    assert _open_files() == before


@pytest.mark.parametrize("container", [".mp4", ".avi", ".ts"])
def test_the_container_may_be_another_than_the_name_says(tmp_path, container):
    path = write_video(tmp_path / f"a{container}", frames=20)
    times, pictures = decode_all(path)
    for name in ("a.webm", "a.mkv"):
        Path(path).replace(tmp_path / name)
        path = tmp_path / name
        with open_video(path) as video:
            assert_shown(video.frames_at(times), pictures, "pyav")


def test_a_url_is_refused():
    with pytest.raises(DecodeError, match="is a URL"):
        open_video("https://example.org/a.mp4")


def test_a_colon_in_a_name_is_no_protocol(tmp_path):
    path = write_video(tmp_path / "12:30.mp4", frames=2)
    with open_video(path) as video:
        assert len(video.times) == 2


def test_sound_longer_than_the_picture_is_not_truncation(tmp_path):
    path = tmp_path / "long_sound.mkv"
    write_video(path, frames=24, with_audio=True, times=[0.01 * i for i in range(23)] + [4.0])
    with av.open(str(path)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            late = packet.stream.type == "video" and packet.pts is not None and packet.pts * packet.time_base > 1
            if packet.size and not late:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    with open_video(tmp_path / "cut.mkv") as video:
        assert video.info.num_frames == 23


def test_a_decode_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is empty", "a.mp4: is empty")


def test_an_unknown_backend_names_the_key_and_the_choices(videos):
    with pytest.raises(ValueError, match=r"DATA\.DECODING_BACKEND.*'opencv'.*pyav, decord"):
        open_video(videos("gop12.mp4"), "opencv")


@pytest.mark.parametrize("backend", BOTH)
def test_a_missing_backend_says_what_to_use(videos, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(ImportError, match="use pyav"):
        open_video(videos("gop12.mp4"), backend)


def test_torchcodec_without_ffmpeg_says_what_to_install(monkeypatch):
    pytest.importorskip("torchcodec")
    monkeypatch.setattr("torchcodec.ffmpeg_major_version", None)
    with pytest.raises(ValueError, match=r"DATA\.DECODING_BACKEND torchcodec: it finds no .*install them.*; use pyav"):
        decode.check_backend("torchcodec")


@pytest.mark.parametrize("backend", OTHERS)
def test_other_backends_hand_over_aloud_but_once(videos, caplog, monkeypatch, backend):
    monkeypatch.setattr(decode.BACKENDS[backend], "_reported", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_video(videos("mpeg4.avi"), backend).close()
    assert [r.getMessage() for r in caplog.records if f"not {backend}" in r.getMessage()] == [
        f"{videos('mpeg4.avi')}: decoded with pyav, not {backend}: it is not exact on mpeg4 in avi (logged once)"
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_time_must_be_finite(videos, bad):
    with open_video(videos("gop12.mp4")) as video, pytest.raises(ValueError, match="not finite"):
        video.frames_at([0.0, bad])


def test_a_closed_reader_says_so(videos):
    video = open_video(videos("gop12.mp4"))
    video.close()
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.frames_at([0.0])


def _open_files():
    """Files this process holds open; 0 where the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gop12_b.mp4", "raw.h264"])
def test_no_file_stays_open(videos, name, backend):
    path = videos(name)
    before = _open_files()
    for _ in range(5):
        with open_video(path, backend) as video:
            video.frames_at([0.5, 1.5])
            assert _open_files() > before or before == 0
    assert _open_files() == before


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_a_backend_whose_package_is_missing_is_told_before_work(monkeypatch, backend):
    decode.check_backend("pyav")
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(
        ValueError, match=rf"DATA.DECODING_BACKEND {backend}: its package cannot be used here .*use pyav"
    ):
        decode.check_backend(backend)
    with pytest.raises(ValueError, match="choose one of: pyav, decord"):
        decode.check_backend("opencv")


# Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gop12_b.mp4", "raw.h264"])
def test_a_video_that_takes_too_long_to_open_is_told(videos, name, backend):
    before = _open_files()
    with pytest.raises(DecodeError, match=rf"{name}: took longer than 1e-09 s to decode \(DATA\.DECODE_TIMEOUT\)"):
        open_video(videos(name), backend, timeout=1e-9)
    with pytest.raises(DecodeError, match="took longer"):
        open_video(videos(name), backend, in_memory=True, timeout=1e-9)
    assert _open_files() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_that_takes_too_long_is_stopped_and_can_be_tried_again(videos, backend):
    path = videos("gop250_b.mp4")
    times, pictures = decode_all(path)
    with open_video(path, backend, timeout=0) as video:
        for seconds in (1.0, 1.5):
            video._deadline.seconds = 1e-9
            with pytest.raises(DecodeError, match="took longer"):
                video.frames_at([seconds])
            video._deadline.seconds = 60.0
            assert_shown(video.frames_at([seconds]), frames_shown(times, pictures, [seconds]), backend)
        assert not getattr(video, "_pyav", video)._timeline.sequential, "want of time is no damage"


# The index kept on disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gop12_b.mp4", "vp9.webm", "rate_varies.mp4", "edit_list.mp4", "raw.h264",
                                  "mpeg4_b.avi", "open_gop.mp4", "turned_90.mp4"])  # fmt: skip
def test_packets_are_read_once_for_the_index(videos, tmp_path, monkeypatch, name, backend):
    path, explored = videos(name), []
    plain = PyAVReader._read_timeline
    monkeypatch.setattr(PyAVReader, "_read_timeline", lambda reader: explored.append(reader.path) or plain(reader))
    with open_video(path, backend) as video:
        at = np.random.default_rng(2).uniform(0, video.times[-1], size=12)
        expected, times, info = video.frames_at(at), video.times, video.info
    explored.clear()
    for _ in range(3):
        with open_video(path, backend, index_cache=tmp_path) as video:
            assert torch.equal(video.frames_at(at), expected)
            np.testing.assert_array_equal(video.times, times)
            assert video.info == info
    assert explored == [path]
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1


def test_a_changed_file_gets_an_index_of_its_own(tmp_path):
    path = tmp_path / "a.mp4"
    for frames in (24, 36):
        write_video(path, frames=frames)
        with open_video(path, index_cache=tmp_path / "index") as video:
            assert len(video.times) == frames
    assert len(list(tmp_path.rglob("*.npz"))) == 2


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "pickle"])
def test_an_index_that_cannot_be_read_is_made_again(tmp_path, damage):
    path = write_video(tmp_path / "a.mp4", frames=24)
    with open_video(path, index_cache=tmp_path) as video:
        expected = video.frames_at([0.5])
    index = next(tmp_path.rglob("*.npz"))
    whole = index.read_bytes()
    if damage == "pickle":
        arrays = dict.fromkeys(("pts", "times", "keys", "flags"), np.array([_Bomb()], dtype=object))
        np.savez(index, **arrays)
    else:
        index.write_bytes({"cut": whole[: len(whole) // 2], "text": b"not an index", "empty": b""}[damage])
    with open_video(path, index_cache=tmp_path) as video:
        assert torch.equal(video.frames_at([0.5]), expected)
    assert timeline.load_timeline(index) is not None


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in an index file was run",))


def test_an_index_that_is_wrong_is_found_out(tmp_path):
    """As if a file had been replaced by another of the same size at the same time."""
    path, other = (write_video(tmp_path / f"{start}.mp4", frames=36, start=start) for start in (0, 30))
    times, pictures = decode_all(path)
    for name in (path, other):
        open_video(name, index_cache=tmp_path).close()
    timeline.index_path(tmp_path, other).replace(timeline.index_path(tmp_path, path))
    with open_video(path, index_cache=tmp_path) as video:
        np.testing.assert_allclose(video.times, times, atol=1e-9)
        assert_shown(video.frames_at([1.0]), frames_shown(times, pictures, [1.0]), "pyav")


# In memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gop12_b.mp4", "vp9.webm", "rate_varies.mp4", "edit_list.mp4", "raw.h264",
                                  "mpeg4_b.avi", "turned_90.mp4"])  # fmt: skip
def test_a_video_in_memory_answers_as_the_file(videos, name, backend):
    path, rng = videos(name), np.random.default_rng(1)
    with open_video(path, backend) as video, open_video(path, backend, in_memory=True) as kept:
        assert kept.info == video.info
        np.testing.assert_array_equal(kept.times, video.times)
        end = video.times[-1]
        for at in ([-1.0, 0.0, end, end + 9], list(video.times[::-1]), [], rng.uniform(-0.2, end + 0.2, size=60)):
            frames = kept.frames_at(at)
            assert frames.dtype == torch.uint8
            assert torch.equal(frames, video.frames_at(at))


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_video_in_memory_answers_as_the_file(tmp_path, seed):
    """Decoding all of it finds fewer frames than the packets announce, at times of their own."""
    path = tmp_path / "damaged.mp4"
    data = bytearray(Path(write_video(path, frames=40, size=(96, 64), gop=10)).read_bytes())
    with av.open(str(path)) as container:
        hit = [p for p in container.demux(video=0) if p.size][10 + seed]
    data[hit.pos + 6 : hit.pos + hit.size] = b"\xa5" * (hit.size - 6)
    path.write_bytes(data)
    kept = open_video(path, in_memory=True)
    at = np.linspace(-0.1, 1.8, 60)
    with open_video(path) as video:
        announced = len(video.times)
        expected = torch.cat([video.frames_at([second]) for second in [*at, *at]])[len(at) :]
        assert len(kept.times) == len(video.times) < announced
        assert kept.info == video.info
    assert torch.equal(kept.frames_at(at), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_video_in_memory_is_opened_once_and_can_be_closed(tmp_path, monkeypatch, backend):
    path, opened = tmp_path / "a.mp4", []
    write_video(path, frames=12)
    plain = decode.BACKENDS[backend]
    monkeypatch.setitem(decode.BACKENDS, backend, lambda name, **options: opened.append(name) or plain(name, **options))
    before = _open_files()
    with open_video(path, backend, in_memory=True) as video:
        first = video.frames_at([0.3])
    assert _open_files() == before
    path.unlink()
    for name in (path, str(path)):
        with open_video(name, backend, in_memory=True) as video:
            assert torch.equal(video.frames_at([0.3]), first)
    assert opened == [str(path)]


def test_frames_from_memory_are_copies(tmp_path):
    video = open_video(write_video(tmp_path / "a.mp4", frames=6), in_memory=True)
    for at in ([0.1], list(video.times), [0.0, 0.0]):
        whole = video.frames_at(at).clone()
        video.frames_at(at).zero_()
        assert torch.equal(video.frames_at(at), whole)
        assert whole.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_time_must_be_finite_for_a_video_in_memory_too(videos, bad):
    path = videos("gop12.mp4")
    with pytest.raises(ValueError, match=r"gop12\.mp4: a time is not finite: -?(nan|inf)"):
        open_video(path, in_memory=True).frames_at([0.0, bad])


def test_a_bad_file_is_not_kept_in_memory(tmp_path):
    path = tmp_path / "a.mp4"
    for content, reason in ((b"", "is empty"), (b"no video, but text", "is text")):
        path.write_bytes(content)
        with pytest.raises(DecodeError, match=reason):
            open_video(path, in_memory=True)
    write_video(path, frames=3)
    assert len(open_video(path, in_memory=True).times) == 3
    with pytest.raises(ValueError, match=r"DATA\.DECODING_BACKEND.*'opencv'"):
        open_video(path, "opencv", in_memory=True)
