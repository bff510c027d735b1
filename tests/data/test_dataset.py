"""A sample follows from (seed, epoch, row) alone, and a video that cannot be read is told, not raised."""

import random
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Batch, Sample, VideoDataset, collate, read_clips, seeded
from lookupvit_video.data.loader import build_eval_loader, build_train_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.transforms import IGNORED, eval_transform, frames_to_clip, train_transform
from lookupvit_video.decoding import backends as decode
from lookupvit_video.decoding.reader import DecodeError
from tests.videos import read_number, write_video

FPS, FRAMES, T = 24, 48, 4
WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """48 numbered frames, 2 seconds."""
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", frames=FRAMES, size=(WIDTH, HEIGHT), fps=FPS)


def keep_pixels(frames_THWC):
    return [frames_to_clip(frames_THWC.permute(0, 3, 1, 2))]


def numbers(sample):
    """The numbers of the frames of each clip."""
    return [[read_number(frame.permute(1, 2, 0).numpy()) for frame in clip.unbind(1)] for clip in sample.clips]


def plain_dataset(*videos, num_clips=1, num_frames=T, **sampling):
    times = TimeSampler(num_frames, 1 / FPS, num_clips=num_clips, **sampling)
    return VideoDataset(videos, times=times, transform=keep_pixels, shape=(num_clips, 3, num_frames, HEIGHT, WIDTH))


def training_dataset(*paths, seed=0):
    small = "DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 4 MODEL.COMPRESSED_GRID [1,1,1]"
    cfg = load_config(None, f"{small} AUG.RAND_AUGMENT_OPS 2 AUG.COLOR_JITTER 0.3".split())
    return VideoDataset(
        [Video(path, label) for label, path in enumerate(paths)],
        times=TimeSampler(T, 1 / FPS, num_clips=2, training=True),
        transform=train_transform(cfg),
        shape=(2, 3, T, 16, 16),
        seed=seed,
        mirror=range(len(paths)),
    )


# What is random ---------------------------------------------------------------------------------------------------


def test_epoch_and_row_decide_the_sample(path):
    dataset = training_dataset(path, path, path)
    random.seed(1)
    torch.manual_seed(1)
    first = dataset[3, 1]
    dataset[3, 0], dataset[4, 1]
    random.seed(2)
    torch.manual_seed(2)
    again = training_dataset(path, path, path)[3, 1]
    assert torch.equal(first.clips, again.clips)
    assert (first.labels, first.index, first.error) == (again.labels, again.index, again.error) == ([1, 1], 1, "")


def test_other_epoch_row_or_seed_other_sample(path):
    dataset = training_dataset(path, path)
    samples = [dataset[0, 0], dataset[1, 0], dataset[0, 1], dataset[1, 1], training_dataset(path, seed=1)[0, 0]]
    assert len({sample.clips.numpy().tobytes() for sample in samples}) == len(samples)
    clips = samples[0].clips
    assert not torch.equal(clips[0], clips[1])  # and so for the two clips of one sample


def test_a_bare_row_is_epoch_zero(path):
    dataset = training_dataset(path, path)
    assert len(dataset) == 2
    assert torch.equal(dataset[1].clips, dataset[0, 1].clips)


@pytest.mark.parametrize("readable", [True, False])
def test_global_random_state_is_left_alone(path, readable):
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    sample = training_dataset(path if readable else "gone.mp4")[0, 0]
    assert bool(sample.error) is not readable
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_seeded_puts_the_state_back_after_an_error():
    before = random.getstate(), torch.get_rng_state()

    def fail():
        with seeded(1, 2):
            random.random()
            torch.rand(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


# Which frames -----------------------------------------------------------------------------------------------------


def test_centre_clip_of_the_whole_file(path):
    assert numbers(plain_dataset(Video(path, 7))[0]) == [[22, 23, 24, 25]]


def test_clips_stay_between_start_and_end(path):
    dataset = plain_dataset(Video(path, 0, start=0.5, end=1.0), training=True)
    seen = {number for epoch in range(40) for number in numbers(dataset[epoch, 0])[0]}
    assert seen <= set(range(12, 24))
    assert {12, 22} <= seen  # 23 would need the very last start there is
    assert numbers(plain_dataset(Video(path, 0, start=0.5, end=1.0))[0]) == [[16, 17, 18, 19]]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, 0.5, [4, 5, 6, 7]),
        (1.5, None, [40, 41, 42, 43]),
        (1.5, 99.0, [40, 41, 42, 43]),  # an end past the file's
        (0.5, 0.5 + 2 / FPS, [12, 13, 13, 13]),  # too short: its own last frame, not the one after
        (1.0, 1.0 + 1e-5, [24, 24, 24, 24]),
        (47 / FPS, None, [47, 47, 47, 47]),
    ],
)
def test_start_and_end(path, start, end, expected):
    assert numbers(plain_dataset(Video(path, 0, start, end))[0]) == [expected]


def test_views_in_time_come_first_their_crops_next(path):
    times = TimeSampler(T, 1 / FPS, num_clips=2)
    dataset = VideoDataset([Video(path, 3)], times=times, transform=eval_transform(24, 48, 3), shape=(6, 3, T, 24, 24))
    sample = dataset[0]
    assert sample.clips.shape == dataset.shape
    assert sample.labels == [3] * 6
    whole = plain_dataset(Video(path, 3), num_clips=2)[0].clips
    assert numbers(plain_dataset(Video(path, 3), num_clips=2)[0]) == [[11, 12, 13, 14], [33, 34, 35, 36]]
    expected = [whole[view, :, :, 12:36, left : left + 24] for view in range(2) for left in (0, 20, 40)]
    assert torch.equal(sample.clips, torch.stack(expected))


# What cannot be read ----------------------------------------------------------------------------------------------


def make_unreadable(kind, folder, path):
    if kind == "missing":
        return Video(str(folder / "gone.mp4"), 5), "no such file"
    if kind == "text":
        (folder / "page.mp4").write_text("<html>video unavailable</html>")
        return Video(str(folder / "page.mp4"), 5), "is text"
    if kind == "empty":
        (folder / "empty.mp4").touch()
        return Video(str(folder / "empty.mp4"), 5), "is empty"
    return Video(path, 5, start=2.5), "starts at 2.5 s, but the video ends at 2 s"


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "starts past the end"])
def test_unreadable_video_is_told(tmp_path, path, kind):
    video, reason = make_unreadable(kind, tmp_path, path)
    sample = plain_dataset(video, num_clips=2)[3, 0]
    assert sample.clips.shape == (2, 3, T, HEIGHT, WIDTH)
    assert sample.clips.dtype == torch.uint8
    assert not sample.clips.any()
    assert sample.labels == [IGNORED] * 2
    assert sample.index == 0
    assert sample.error.startswith(video.path)
    assert reason in sample.error


@pytest.mark.parametrize("cache", [False, True])
def test_a_video_that_takes_too_long_is_told(tmp_path, cache):
    path = write_video(tmp_path / "a.mp4", frames=FRAMES, size=(WIDTH, HEIGHT), fps=FPS)
    dataset = plain_dataset(Video(path, 5))
    dataset.timeout, dataset.cache = 1e-9, cache
    assert dataset[0].error == f"{path}: took longer than 1e-09 s to decode (DATA.DECODE_TIMEOUT)"


def test_an_index_is_kept_for_each_video(path, tmp_path):
    dataset = plain_dataset(Video(path, 0), Video(path, 1, start=0.5, end=1.0))
    before = [numbers(dataset[row]) for row in (0, 1)]
    dataset.index_cache = str(tmp_path)
    assert [numbers(dataset[row]) for row in (0, 1, 0, 1)] == before * 2
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_mistake_in_the_code_is_raised(path):
    dataset = plain_dataset(Video(path, 0))
    dataset.transform = None
    with pytest.raises(TypeError):
        dataset[0]


# Damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged_path(tmp_path_factory):
    """A file in which one picture lost its middle."""
    path = Path(write_video(tmp_path_factory.mktemp("damaged") / "a.mp4", frames=24, gop=24, size=(64, 48)))
    with av.open(str(path)) as container:
        hit = [packet for packet in container.demux(video=0) if packet.size][12]
    data = bytearray(path.read_bytes())
    data[hit.pos : hit.pos + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("cache", [False, True])
def test_a_damaged_video_is_used_or_skipped_and_says_so(damaged_path, cache):
    def sample(damaged):
        dataset = VideoDataset(
            [Video(damaged_path, 1)],
            times=TimeSampler(8, 0.12),
            transform=lambda frames: [frames.permute(3, 0, 1, 2)],
            shape=(1, 3, 8, 48, 64),
            cache=cache,
            damaged=damaged,
        )
        return dataset[0]

    used, skipped = sample("use"), sample("skip")
    assert "picture data: the decoder reports" in used.damage
    assert used.damage == skipped.damage
    assert (used.labels, used.error) == ([1], "")
    assert used.clips.any()
    assert skipped.labels == [IGNORED]
    assert skipped.error == f"{damaged_path}: damaged: {skipped.damage}"
    assert not skipped.clips.any()
    batch = collate([used, skipped])
    assert batch.errors == [(0, skipped.error)]
    assert batch.damaged == [(0, used.damage)] * 2


# Batches ----------------------------------------------------------------------------------------------------------


def test_collate_keeps_the_views_of_a_video_together():
    def clips(first):
        return torch.arange(first, first + 3, dtype=torch.uint8).view(3, 1, 1, 1, 1).expand(3, 3, 2, 4, 4)

    unread = Sample(clips(10), [IGNORED] * 3, 7, "b.mp4: gone")
    batch = collate([Sample(clips(0), [9] * 3, 20), unread, Sample(clips(20), [4, 5, 4], 8)])
    assert batch.clips.shape == (9, 3, 2, 4, 4)
    assert batch.clips[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert batch.labels.tolist() == [9] * 3 + [IGNORED] * 3 + [4, 5, 4]
    assert batch.labels.dtype == torch.int64
    assert batch.indices.tolist() == [20, 7, 8]
    assert batch.errors == [(7, "b.mp4: gone")]


# Crops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("num_clips", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_clips_are_those_of_whole_frames(path, num_clips, training, cached):
    """The reader is asked for what lies in the boxes only; the pixels must not show it."""
    small = "DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 4 MODEL.COMPRESSED_GRID [1,1,1]"
    augment = "AUG.RAND_AUGMENT_OPS 2" if num_clips == 1 else ""  # all boxes are drawn before what follows
    transform = (
        train_transform(load_config(None, f"{small} {augment}".split())) if training else eval_transform(16, 18, 3)
    )
    times = TimeSampler(T, 1 / FPS, num_clips=num_clips, training=training)
    read = []
    for seed in range(5):
        for given in (transform, lambda frames: transform(frames)):
            with seeded(seed):
                read.append(read_clips(Video(path, 0), times, given, "pyav", cached))
        assert len(read[-1]) == num_clips * (1 if training else 3)
        assert all(map(torch.equal, *read[-2:]))
    if training:
        assert not torch.equal(read[0][0], read[2][0])


# Videos in memory -------------------------------------------------------------------------------------------------


def batches_of(videos, cached, *, training):
    """All batches of two epochs of training, or of one test with 2 x 3 views."""
    cfg = load_config(None, f"""DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 4 DATA.SAMPLING_RATE 3
        MODEL.COMPRESSED_GRID [1,1,1] AUG.RAND_AUGMENT_OPS 2 AUG.COLOR_JITTER 0.3 AUG.NUM_SAMPLE 2 TRAIN.BATCH_SIZE 4
        TEST.BATCH_SIZE 2 DATA_LOADER.NUM_WORKERS 0 DATA.CACHE_VIDEOS {cached}""".split())  # fmt: skip
    if training:
        return list(build_train_loader(cfg, videos, total_steps=4))
    return list(build_eval_loader(cfg, videos, num_views=2, num_crops=3))


@pytest.mark.parametrize("training", [True, False])
def test_batches_from_memory_are_those_from_files(tmp_path, monkeypatch, training):
    paths = [write_video(tmp_path / f"{i}.mp4", frames=24, first_number=40 * i, b_frames=i) for i in range(2)]
    (tmp_path / "empty.mp4").touch()
    videos = [
        Video(paths[0], 0),
        Video(paths[1], 1),
        Video(str(tmp_path / "empty.mp4"), 2),
        Video(paths[1], 3, 0.2, 0.7),
    ]
    opened = Counter()
    plain_init = decode.PyAVReader.__init__
    monkeypatch.setattr(
        decode.PyAVReader,
        "__init__",
        lambda reader, path, **kw: opened.update([path]) or plain_init(reader, path, **kw),
    )
    plain = batches_of(videos, False, training=training)
    assert opened[paths[1]] == (4 if training else 2)
    opened.clear()
    cached = batches_of(videos, True, training=training)
    assert (opened[paths[0]], opened[paths[1]]) == (1, 1)
    assert len(plain) == len(cached) == (4 if training else 2)
    for own, expected in zip(cached, plain, strict=True):
        assert torch.equal(own.clips, expected.clips)
        assert torch.equal(own.labels, expected.labels)
        assert torch.equal(own.indices, expected.indices)
        assert own.errors == expected.errors
    assert [row for batch in cached for row, _ in batch.errors] == [2] * (2 if training else 1)


def test_a_transform_in_place_does_not_reach_the_memory(path):
    def spoil(frames_THWC):
        return keep_pixels(frames_THWC.fill_(7))

    def read(transform):
        times = TimeSampler(T, 1 / FPS)
        shape = (1, 3, T, HEIGHT, WIDTH)
        return VideoDataset([Video(path, 0)], times=times, transform=transform, shape=shape, cache=True)[0].clips

    before = read(keep_pixels)
    assert read(spoil).eq(7).all()
    assert torch.equal(read(keep_pixels), before)
    assert before.unique().numel() > 9


# What the reader is asked for -----------------------------------------------------------------------------------------


class FakeReader:
    """A video of ten seconds whose frames hold nothing; notes what it is asked for."""

    duration, damage = 10.0, ()

    def __init__(self, asked, height=6, width=8):
        self.asked, self.size = asked, (height, width)

    def frames_at(self, seconds, window=None):
        self.asked.append(list(seconds))
        box = window(*self.size) if window else None
        return torch.zeros(len(seconds), *(self.size if box is None else box[2:]), 3, dtype=torch.uint8)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def asked(monkeypatch):
    """The times that a fake reader is asked for, and how it is opened."""
    times, opened = [], []
    monkeypatch.setattr(
        "lookupvit_video.data.dataset.open_video", lambda *given, **options: opened.append((given, options)) or
        FakeReader(times),
    )  # fmt: skip
    return times, opened


def fixed(*rows):
    return lambda duration: np.array(rows) * duration


def test_a_span_is_sampled_from_its_start_and_ends_before_the_frame_after_it(asked):
    times = fixed([0.0, 0.5, 1.0, 2.0])
    for start, end, expected in (
        (None, None, [0.0, 5.0, 9.9999, 9.9999]),
        (2.0, 6.0, [2.0, 4.0, 5.9999, 5.9999]),
        (2.0, 99.0, [2.0, 6.0, 9.9999, 9.9999]),
        (0.0, 5e-5, [0.0, 0.0, 0.0, 0.0]),
    ):
        asked[0].clear()
        read_clips(Video("a.mp4", 0, start, end), times, keep_pixels, "pyav")
        assert asked[0] == [pytest.approx(expected, abs=2e-5 if end else 1e-9)]


def test_a_span_of_no_length_is_told(asked):
    for start, end in ((10.0, None), (3.0, 3.0), (12.0, 11.0)):
        with pytest.raises(DecodeError, match=r"a\.mp4: starts at [0-9]+ s, but the video ends at"):
            read_clips(Video("a.mp4", 0, start, end), fixed([0.0]), keep_pixels, "pyav")
    assert asked[0] == []


def test_a_data_set_opens_videos_as_it_was_told(asked):
    times, shape = fixed([0.0, 0.1]), (1, 3, 2, 6, 8)
    plain = VideoDataset([Video("a.mp4", 0)], times=times, transform=keep_pixels, shape=shape)
    assert plain.seed == 0
    assert plain.mirror is None
    plain[0]
    asked[1].append(0)
    options = {"backend": "decord", "cache": 96, "timeout": 7.0, "index_cache": "index"}
    VideoDataset([Video("a.mp4", 0)], times=times, transform=keep_pixels, shape=shape, **options)[0]
    read_clips(Video("a.mp4", 0), times, keep_pixels, "torchcodec")
    more = {"frame_rate": 0.0, "remote": True}
    assert asked[1] == [
        (("a.mp4", "pyav", False), {"short_side": 0, "timeout": 60.0, "index_cache": "", **more}), 0,
        (("a.mp4", "decord", True), {"short_side": 96, "timeout": 7.0, "index_cache": "index", **more}),
        (("a.mp4", "torchcodec", False), {"short_side": 0, "timeout": 60.0, "index_cache": "", **more}),
    ]  # fmt: skip


def test_a_sample_of_one_clip_is_not_copied(asked):
    clip = torch.ones(3, 2, 6, 8, dtype=torch.uint8)
    dataset = VideoDataset(
        [Video("a.mp4", 4)], times=fixed([0.0, 0.1]), transform=lambda _: [clip], shape=(1, 3, 2, 6, 8)
    )
    sample = dataset[0]
    assert sample.clips.shape == (1, 3, 2, 6, 8)
    assert sample.clips.data_ptr() == clip.data_ptr()
    assert (sample.labels, sample.index, sample.error) == ([4], 0, "")


def test_a_batch_is_pinned_with_its_labels():
    class Pinned(torch.Tensor):
        def pin_memory(self):
            return self + 1

    clips, labels = torch.zeros(2).as_subclass(Pinned), torch.ones(2).as_subclass(Pinned)
    pinned = Batch(clips, labels, torch.tensor([5, 6]), [(5, "x")]).pin_memory()
    assert (pinned.clips.tolist(), pinned.labels.tolist()) == ([1, 1], [2, 2])
    assert (pinned.indices.tolist(), pinned.errors) == ([5, 6], [(5, "x")])


def test_every_part_of_a_seed_counts():
    def drawn(*parts):
        with seeded(*parts):
            return random.random(), torch.rand(()).item()

    draws = [drawn(*parts) for parts in ((0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 1), (0, 1, 2, 0))]
    assert draws[0] == drawn(0, 1, 2)
    assert len({one for one, _ in draws}) == len({other for _, other in draws}) == len(draws)


# Pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["clip", "segments"])
@pytest.mark.parametrize("training", [False, True])
def test_a_picture_among_videos_is_a_clip_that_stands_still(tmp_path, path, mode, training):
    pixels = np.dstack([*np.meshgrid(np.arange(WIDTH) * 3, np.arange(HEIGHT) * 5), np.full((HEIGHT, WIDTH), 90)])
    picture = Image.fromarray(pixels.astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # as phones write it: to be turned clockwise
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.webp", lossless=True)
    picture.rotate(90, expand=True).save(tmp_path / "c.jpg", quality=100, subsampling=0, exif=turned)
    listed = [path, *(str(tmp_path / name) for name in ("a.png", "b.webp", "c.jpg"))]
    dataset = plain_dataset(*(Video(str(one), 0) for one in listed), mode=mode, training=training)
    expected = torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)
    for row, near in ((1, 0), (2, 0), (3, 4)):
        sample = dataset[0, row]
        assert not sample.error
        clip = sample.clips[0]
        assert clip.shape == (3, T, HEIGHT, WIDTH)
        assert torch.equal(clip, clip[:, :1].expand(-1, T, -1, -1))
        assert (clip[:, 0].int() - expected.int()).abs().max() <= near
    moving = dataset[0, 0].clips[0]
    assert not torch.equal(moving[:, 0], moving[:, -1])


@pytest.mark.parametrize("task", ["classify", "moving"])
def test_all_clips_of_a_video_show_one_place_where_what_moves_is_looked_for(tmp_path, task):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    small = "DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 4 MODEL.COMPRESSED_GRID [1,1,1]"
    options = f"{small} TRAIN.TASK {task} TEST.ENABLE False DATA.RANDOM_FLIP False AUG.NUM_SAMPLE 3 TRAIN.BATCH_SIZE 3"
    cfg = load_config(None, options.split())
    assert cfg.DATA.TRAIN_JITTER_SCALES
    transform = train_transform(cfg)
    times = TimeSampler(T, 1 / FPS, num_clips=3, training=True)
    dataset = VideoDataset(
        [Video(str(tmp_path / "a.png"), 0)], times=times, transform=transform, shape=(3, 3, T, 16, 16)
    )
    one, *others = (dataset[0, 0].clips, dataset[1, 0].clips)
    assert all(torch.equal(clip, one[0]) for clip in one[1:]) == (task == "moving")
    assert not torch.equal(others[0], one)
