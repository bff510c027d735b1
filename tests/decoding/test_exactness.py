"""Every backend returns the frame that is shown at a time, over codecs, containers, key frames, sizes, rates, lengths.

The pictures carry their own number, so that the right frame is known from how the file was written, whatever any
library says of it; and they are compared with a decode from the first frame to the last.

Each commit tries a part of the files. All of them, and the test of memory over 5,000 clips:

    LOOKUPVIT_ALL_VIDEOS=1 pytest -s -p no:randomly tests/decoding/test_exactness.py
"""

import os
import re
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader

from lookupvit_video.data.dataset import VideoDataset, collate
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.transforms import eval_transform
from lookupvit_video.decoding.backends import BACKENDS, DecodeError, open_video
from tests.videos import read_number, write_video

ALL = bool(os.environ.get("LOOKUPVIT_ALL_VIDEOS"))
MISSING = {backend: BACKENDS[backend].missing() for backend in BACKENDS}
EACH_BACKEND = [
    pytest.param(backend, marks=pytest.mark.skipif(why is not None, reason=f"{backend}: {why}"))
    for backend, why in MISSING.items()
]

# What is varied ---------------------------------------------------------------------------------------------------

ENCODERS = {  # name: encoder, containers, B-frames, key frame distances
    "h264": ("libx264", (".mp4", ".mkv", ".mov", ".avi"), (0, 2, 3), (1, 12, 250)),
    "hevc": ("libx265", (".mp4", ".mkv", ".mov"), (0, 3), (12, 60)),
    "vp8": ("libvpx", (".webm", ".mkv"), (0,), (30,)),
    "vp9": ("libvpx-vp9", (".webm", ".mkv", ".mp4"), (0,), (12, 128)),
    "av1": ("libsvtav1", (".mp4", ".mkv", ".webm"), (0,), (16, 60)),
    "mpeg4": ("mpeg4", (".avi", ".mp4", ".mkv", ".mov"), (0, 2), (12, 100)),
}
PLAIN = [("h264", ".mp4"), ("hevc", ".mp4"), ("vp9", ".webm"), ("av1", ".mkv"), ("mpeg4", ".avi")]
SIZES = [(64, 48), (48, 64), (130, 98), (96, 54)]
RATES = [5, 12, 24, 25, Fraction(30000, 1001), 30, 50, 60, 120]
LENGTHS = [1, 2, 3, 17, 300]
VARYING = {
    "slower": lambda i: 0.002 * i * i + 0.01 * i,
    "gaps": lambda i: i / 30 + (i // 10) * 0.5,
    "jitter": lambda i: i / 25 + 0.012 * (i * 7 % 5) / 5,
}


def recipe(codec, **settings):
    """The arguments of `write_video`."""
    return {"codec": ENCODERS[codec][0], "gop": 12, "frames": 40} | settings


def all_recipes():
    """File name -> how it is written; more than 200."""
    made = {}
    for codec, (_, suffixes, b_frames, gops) in ENCODERS.items():
        for suffix in suffixes:
            for b in b_frames:
                for gop in gops:
                    n = len(made)
                    varied = {"size": SIZES[n % 4], "fps": RATES[n * 2 % 9], "with_audio": n % 3 == 0}
                    made[f"{codec}_b{b}_gop{gop}{suffix}"] = recipe(codec, b_frames=b, gop=gop, **varied)
    for codec, suffix in PLAIN:
        b = {"b_frames": 2} if codec in ("h264", "hevc") else {}
        for rate in RATES:
            made[f"{codec}_rate{float(rate):.0f}{suffix}"] = recipe(codec, fps=rate, **b)
        for length in LENGTHS:
            # fewer B-frames than frames: else x265 may leave a packet without a time
            few = {key: min(count, length - 1) for key, count in b.items()}
            made[f"{codec}_length{length}{suffix}"] = recipe(codec, frames=length, **few)
        made[f"{codec}_minute{suffix}"] = recipe(codec, frames=600, fps=10, gop=50, **b)
    for codec, suffix in [("h264", ".mp4"), ("h264", ".mkv"), ("hevc", ".mp4"), ("vp9", ".webm"), ("av1", ".mp4")]:
        for name, rule in VARYING.items():
            times = [rule(i) for i in range(40)]
            made[f"{codec}_{name}{suffix}"] = recipe(codec, times=times, b_frames=2 * (codec == "h264"))
    for codec, suffix in [("h264", ".mp4"), ("h264", ".mov"), ("hevc", ".mp4"), ("mpeg4", ".mov")]:
        for degrees in (90, 180, 270):
            made[f"{codec}_turned{degrees}{suffix}"] = recipe(codec, rotation=degrees, b_frames=2)
    for codec, suffix in [("vp9", ".webm"), ("vp9", ".mp4"), ("av1", ".mp4"), ("mpeg4", ".avi"), ("mpeg4", ".mp4")]:
        for size in ((67, 49), (67, 48), (66, 49)):
            made[f"{codec}_{size[0]}x{size[1]}{suffix}"] = recipe(codec, size=size)
    return made | pixel_recipes() | odd_recipes()


def pixel_recipes():
    """How pictures are stored: depth, halved colours, range, matrix, shape of a pixel."""
    made = {}
    for pix_fmt in ("yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le"):
        for codec, suffix in (("h264", ".mp4"), ("hevc", ".mkv")):
            made[f"{codec}_{pix_fmt}{suffix}"] = recipe(codec, pix_fmt=pix_fmt, b_frames=2)
    made["av1_yuv420p10le.mp4"] = recipe("av1", pix_fmt="yuv420p10le")
    made["h264_odd444.mp4"] = recipe("h264", pix_fmt="yuv444p", size=(67, 49))
    for matrix in (1, 6):
        for span in (1, 2):
            for codec, suffix in (("h264", ".mp4"), ("vp9", ".webm")):
                settings = {"matrix": matrix, "colour_range": span}
                made[f"{codec}_matrix{matrix}_range{span}{suffix}"] = recipe(codec, **settings)
    for shape in (Fraction(4, 3), Fraction(8, 9), Fraction(341, 340)):
        for suffix in (".mp4", ".mkv"):
            name = f"h264_pixel{shape.numerator}to{shape.denominator}{suffix}"
            made[name] = recipe("h264", pixel_shape=shape, b_frames=2)
    return made


def odd_recipes():
    """What else is met: edit lists, open groups of pictures, late starts, several streams, fragments."""
    return {
        "h264_edit_list.mp4": recipe("h264", b_frames=2, start=-7),
        "hevc_edit_list.mp4": recipe("hevc", b_frames=3, start=-7),
        "h264_late_start.mp4": recipe("h264", b_frames=2, start=30),
        "h264_late_start.mkv": recipe("h264", b_frames=2, start=30),
        "h264_open_gop.mp4": recipe("h264", b_frames=3, codec_options={"x264-params": "open-gop=1"}),
        "h264_refresh.mp4": recipe("h264", codec_options={"x264-params": "intra-refresh=1"}),
        "h264_fragments.mp4": recipe("h264", container_options={"movflags": "frag_keyframe+empty_moov"}),
        "h264_decoys.mkv": recipe("h264", decoys=1, b_frames=2, frames=24),
        "h264_decoys.mp4": recipe("h264", decoys=2, frames=24),
        "vp9_decoys.mkv": recipe("vp9", decoys=1, frames=24),
    }


RECIPES = all_recipes()
# A file or two of each kind; every one of the odd ones.
EVERY_COMMIT = [name for i, name in enumerate(RECIPES) if i % 9 == 0 or name in odd_recipes()]
NAMES = list(RECIPES) if ALL else EVERY_COMMIT


# What must come back ----------------------------------------------------------------------------------------------


def shown_times(settings):
    """When each picture is shown, in seconds from the first one, and its number, by how the file was written."""
    frames, start = settings["frames"], settings.get("start", 0)
    times = settings.get("times") or [i / float(settings.get("fps", 24)) for i in range(frames)]
    first = max(0, -start)  # an edit list cuts off what comes before time zero
    return np.array(times[first:]) - times[first], np.arange(first, frames)


def decode_in_order(path):
    """All pictures as libav gives them one after the other, upright and with square pixels: uint8 (N, H, W, 3)."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        shape = stream.sample_aspect_ratio or 1
        pictures = []
        for frame in container.decode(stream):
            width = round(frame.width * shape) if abs(shape - 1) > 0.02 else frame.width
            picture = frame.to_ndarray(format="rgb24", width=width, interpolation="BICUBIC")
            pictures.append(np.rot90(picture, round(frame.rotation / 90)))
    return np.stack(pictures)


def requests(times, seed):
    """Times to ask for, each well within its frame, with the indices of their frames: clips, segments, the ends."""
    rng = np.random.default_rng(seed)
    last = len(times) - 1
    middles = np.append((times[:-1] + times[1:]) / 2, times[-1] + 1e-3)
    chosen = [[0], [last], [last, 0, last], np.linspace(0, last, 16).round().astype(int)]
    chosen += [np.clip(rng.integers(0, last + 1) + 2 * np.arange(8), 0, last) for _ in range(3)]
    chosen += [rng.integers(0, last + 1, size=rng.integers(1, 6)) for _ in range(5)]
    order = rng.permutation(len(chosen))
    return [(middles[np.asarray(chosen[i])], np.asarray(chosen[i])) for i in order]


class Tally:
    """What the whole matrix came to."""

    def __init__(self):
        self.videos, self.requests = set(), Counter()
        self.frames, self.wrong, self.largest = Counter(), Counter(), defaultdict(float)
        self.refused, self.handed_over = defaultdict(Counter), defaultdict(Counter)

    def lines(self):
        yield f"{len(self.videos)} videos"
        for backend in self.requests:
            served = self.requests[backend]
            yield (
                f"{backend}: {served} requests, {self.frames[backend]} frames, {self.wrong[backend]} wrong, "
                f"largest mean difference from a decode in order {self.largest[backend]:.3f} grey levels; "
                f"refused {dict(self.refused[backend])}; left to PyAV {dict(self.handed_over[backend])}"
            )


@pytest.fixture(scope="module")
def tally():
    tally = Tally()
    yield tally
    print("\n" + "\n".join(tally.lines()))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """name -> path, each written once."""
    folder, made = tmp_path_factory.mktemp("matrix"), {}

    def get(name):
        if name not in made:
            settings = RECIPES[name]
            if settings["codec"] not in av.codecs_available:
                pytest.skip(f"this build of PyAV has no {settings['codec']} encoder")
            made[name] = write_video(Path(folder, name), **settings)
        return made[name]

    return get


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("name", NAMES)
def test_the_frames_asked_for_are_the_frames_returned(videos, tally, monkeypatch, name, backend):
    path = videos(name)
    pictures = decode_in_order(path)
    times, numbers = shown_times(RECIPES[name])
    turned = -(RECIPES[name].get("rotation", 0) // 90)
    assert [read_number(np.rot90(p, -turned)) for p in pictures] == numbers.tolist(), "the file holds what was written"
    tally.videos.add(name)
    reasons = []
    if backend != "pyav":
        monkeypatch.setattr(BACKENDS[backend], "_hand_over", _noting(BACKENDS[backend], reasons))
    try:
        reader = open_video(path, backend)
    except DecodeError as error:
        tally.refused[backend][error.reason] += 1
        raise AssertionError(f"a sound file is refused: {error}") from error
    with reader:
        assert (reader.info.num_frames, reader.info.height, reader.info.width) == pictures.shape[:3]
        for at, indices in requests(times, seed=len(name)):
            frames = reader.frames_at(at).numpy()
            found = [read_number(np.rot90(frame, -turned)) for frame in frames]
            difference = np.abs(frames.astype(float) - pictures[indices]).mean(axis=(1, 2, 3)).max()
            tally.requests[backend] += 1
            tally.frames[backend] += len(indices)
            tally.wrong[backend] += sum(one != other for one, other in zip(found, numbers[indices], strict=True))
            tally.largest[backend] = max(tally.largest[backend], difference)
            assert found == numbers[indices].tolist()
            assert difference <= (0 if backend == "pyav" else 1), "grey levels on average"
        assert not reader.damage, "a sound file is reported"
    tally.handed_over[backend].update(reasons[:1])


def _noting(reader_class, reasons):
    plain = reader_class._hand_over

    def note(reader, reason):
        reasons.append(reason)
        plain(reader, reason)

    return note


def test_there_are_more_than_200_files():
    assert len(RECIPES) >= 200


# Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ALL, reason="takes minutes: set LOOKUPVIT_ALL_VIDEOS=1")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_a_worker_does_not_grow_over_5000_clips(tmp_path, backend):
    big = {"frames": 300, "fps": 30, "size": (340, 256)}
    paths = [
        write_video(tmp_path / "a.mp4", b_frames=2, with_audio=True, **big),
        write_video(tmp_path / "b.mp4", gop=250, **big),
        write_video(tmp_path / "c.webm", codec="libvpx-vp9", gop=60, **big),
        write_video(tmp_path / "d.mkv", codec="libx265", b_frames=3, gop=30, **big),
        write_video(tmp_path / "e.avi", codec="mpeg4", **big),
        str(tmp_path / "missing.mp4"),
    ]
    dataset = VideoDataset(
        [Video(path, 0) for path in paths],
        times=TimeSampler(16, 4 / 30, training=True),
        transform=eval_transform(112, 128, 1),
        shape=(1, 3, 16, 112, 112),
        backend=backend,
    )
    keys = [[(epoch, row)] for epoch in range(5600 // len(paths)) for row in range(len(paths))]
    # spawned: a forked worker begins with a share of this process's memory, and makes it its own little by little
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=1, collate_fn=collate, multiprocessing_context="spawn")
    batches = iter(loader)
    worker = batches._workers[0].pid
    marks = []
    for count, _ in enumerate(batches):
        if count in (500, 1500, 2500, 3500, 4500, 5500):  # not from the first: each codec has its buffers to fill
            own = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())[1]
            marks.append((int(own) / 1024, len(os.listdir(f"/proc/{worker}/fd"))))
    print(f"\n{backend}: MiB and open files after 500, 1500, ... 5500 clips: {[(round(m), n) for m, n in marks]}")
    assert marks[-1][0] - marks[0][0] < 20, "MiB"
    assert marks[-1][1] <= marks[0][1] + 5, "open files; batches on their way are some of them"
