"""Interlaced videos: all backends convert them alike, nothing takes their fields apart, and the check says so."""

import av
import numpy as np
import pytest

from lookupvit_video.decoding.backends import BACKENDS, open_video
from lookupvit_video.preparation.inspect_file import KINDS, inspect_file
from lookupvit_video.preparation.reencode import Encoding, Job, reencode
from tests.orientations import MATRICES, set_box_matrix
from tests.videos import read_number, write_video

USABLE = [name for name, reader in BACKENDS.items() if reader.missing() is None]
TOP_FIRST = {"codec_options": {"x264-params": "tff=1"}}
KINDS_OF_FILE = {
    "h264.mp4": TOP_FIRST,
    "h264_b.mkv": {"b_frames": 2, **TOP_FIRST},
    "bt709_full.mp4": {"matrix": 1, "colour_range": 2, **TOP_FIRST},
    "422.mp4": {"pix_fmt": "yuv422p", **TOP_FIRST},
    "mpeg4.mp4": {"codec": "mpeg4", "codec_options": {"flags": "+ildct+ilme"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "codec_options": {"flags": "+ildct+ilme"}},
}


def as_progressive(path):
    """All pictures with both fields in one frame: the planes alone, which carry no flag, are converted."""
    pictures = []
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            assert frame.interlaced_frame
            plain = av.VideoFrame(frame.width, frame.height, frame.format.name)
            for ours, theirs in zip(plain.planes, frame.planes, strict=True):
                ours.update(_tight(theirs, ours.line_size, ours.buffer_size))
            plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
            pictures.append(plain.to_ndarray(format="rgb24", interpolation="BICUBIC"))
    return np.stack(pictures)


def _tight(plane, line_size, size):
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    result = np.zeros((size // line_size, line_size), np.uint8)
    width = min(line_size, plane.line_size)
    result[: len(lines), :width] = lines[: len(result), :width]
    return result.tobytes()


@pytest.mark.parametrize("name", KINDS_OF_FILE)
def test_all_backends_convert_interlaced_frames_alike(tmp_path, name):
    path = write_video(tmp_path / name, **{"frames": 16, **KINDS_OF_FILE[name]})
    due = as_progressive(path)
    for backend in USABLE:
        with open_video(path, backend) as video:
            frames = video.frames_at(video.times).numpy()
        assert np.abs(frames.astype(int) - due).max() <= (0 if backend == "pyav" else 2), backend
    facts = inspect_file(path)
    assert facts.interlaced
    assert [problem.kind for problem in facts.problems] == ["interlaced"]
    assert not KINDS["interlaced"].bad


def test_field_by_field_would_differ(tmp_path):
    """Else the test above could not fail."""
    path = write_video(tmp_path / "a.mp4", frames=4, **TOP_FIRST)
    with av.open(path) as container:
        by_field = [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)]
    assert np.abs(np.stack(by_field).astype(int) - as_progressive(path)).max() > 5


def test_progressive_videos_are_not_called_interlaced(tmp_path):
    assert not inspect_file(write_video(tmp_path / "a.mp4")).interlaced


def test_interlaced_videos_are_turned_and_re_encoded(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, frames=8, **TOP_FIRST)
    set_box_matrix(path, MATRICES["turned by 90"])
    reencode(Job(path, tmp_path / "b.mp4"), Encoding(48))
    with open_video(path) as video, open_video(tmp_path / "b.mp4") as smaller:
        assert [read_number(np.rot90(frame)) for frame in video.frames_at(video.times).numpy()] == list(range(8))
        assert [read_number(np.rot90(frame)) for frame in smaller.frames_at(video.times).numpy()] == list(range(8))
    assert not inspect_file(str(tmp_path / "b.mp4")).interlaced
