"""The order of samples follows from (seed, step) alone: not from ranks, accumulation, workers or restarts."""

import errno
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data import loader as loader_module
from lookupvit_video.data.loader import (
    DataWatch,
    TrainBatchSampler,
    build_eval_loader,
    build_train_loader,
    report_worker_failures,
)
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sample_order import sample_order, shuffled
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.transforms import IGNORED
from lookupvit_video.errors import RunFailure
from tests.videos import read_number, write_video

# torch warns where there are fewer cores than the workers of these tests
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
VIDEOS, BATCH, STEPS = 30, 8, 10  # 3 steps an epoch, 6 videos left out
SMALL = """DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 2 DATA.SAMPLING_RATE 1 TRAIN.BATCH_SIZE 4
           MODEL.COMPRESSED_GRID [1,1,1] AUG.RAND_AUGMENT_OPS 2 DATA_LOADER.PIN_MEMORY False"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Seven videos of half a second."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{i}.mp4", frames=12, size=(32, 24), first_number=50 * i) for i in range(7)]
    return [Video(path, label) for label, path in enumerate(paths)]


def small_config(overrides="", workers=0):
    return load_config(None, f"{SMALL} DATA_LOADER.NUM_WORKERS {workers} {overrides}".split())


def sampler(**changes):
    return TrainBatchSampler(VIDEOS, **({"batch_size": BATCH, "seed": 0, "total_steps": STEPS} | changes))


def global_batches(world_size, parts, **changes):
    """The keys of each step over all ranks, accumulation part by part."""
    ranks = [list(sampler(world_size=world_size, rank=r, parts=parts, **changes)) for r in range(world_size)]
    assert {len(batches) for batches in ranks} == {STEPS * parts}
    steps = []
    for step in range(STEPS):
        micro = [batches[step * parts + part] for part in range(parts) for batches in ranks]
        assert {len(keys) for keys in micro} == {BATCH // (world_size * parts)}
        steps.append([key for keys in micro for key in keys])
    return steps


# Training order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["shuffled", "balanced", "square_root"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_global_batch_is_the_same_for_any_ranks_and_parts(rule, world_size, parts):
    order = sample_order(rule, [label * label // 50 for label in range(VIDEOS)], 0)
    assert global_batches(world_size, parts, order=order) == list(sampler(order=order))


def test_no_video_twice_in_an_epoch():
    keys = [key for batch in sampler() for key in batch]
    assert [epoch for epoch, _ in keys] == [step // 3 for step in range(STEPS) for _ in range(BATCH)]
    for epoch in range(3):
        rows = [row for at, row in keys if at == epoch]
        assert len(rows) == len(set(rows)) == 3 * BATCH
        assert set(rows) <= set(range(VIDEOS))


def test_every_video_has_its_turn():
    assert {row for batch in sampler(total_steps=60) for _, row in batch} == set(range(VIDEOS))


def test_order_changes_with_epoch_and_seed():
    def rows(steps):
        return [row for keys in steps for _, row in keys]

    first, other = list(sampler()), list(sampler(seed=1))
    assert rows(first[:3]) != rows(first[3:6])
    assert rows(first[:3]) != rows(other[:3])
    assert rows(first[:3]) != sorted(rows(first[:3]))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 5, 9, 10])
@pytest.mark.parametrize("rule", ["shuffled", "balanced"])
def test_resumed_order_continues_exactly(rule, start, parts):
    order = sample_order(rule, [0] * (VIDEOS - 2) + [1, 1], 0)
    whole = list(sampler(parts=parts, rank=1, world_size=2, order=order))
    resumed = sampler(parts=parts, rank=1, world_size=2, start_step=start, order=order)
    assert list(resumed) == whole[start * parts :]
    assert len(resumed) == len(whole[start * parts :])


def test_order_draws_nothing_from_the_global_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = list(sampler())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert list(sampler()) == first


def test_length_is_told():
    assert len(sampler(parts=2)) == 2 * STEPS == len(list(sampler(parts=2)))
    assert sampler().steps_per_epoch == 3
    assert sampler(batch_size=VIDEOS).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 31}, r"TRAIN\.BATCH_SIZE needs 31 videos a step, but the training list holds 30"),
        ({"world_size": 3}, r"TRAIN\.BATCH_SIZE: 8 videos a step cannot be split evenly over 3 processes x 1 acc"),
        ({"world_size": 2, "parts": 8}, r"cannot be split evenly over 2 processes x 8 accumulation steps"),
    ],
)
def test_batch_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


# What a loader is made of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("DataLoader timed out after 5 seconds", ["timed out after 5 seconds; ", "raise DATA_LOADER.TIMEOUT"]),
        ("x: Bus error. It is possible", ["no shared memory", "larger (docker run --shm-size", "PREFETCH_FACTOR"]),
        ("unable to allocate shared memory", ["no shared memory"]),
        ("DataLoader worker (pid 7) is killed by signal: Killed. \nmore",
         ["DataLoader worker (pid 7) is killed by signal: Killed; if killed, the memory may be full"]),
        ("Pin memory thread exited unexpectedly", ["Pin memory thread exited unexpectedly; if killed"]),
    ],
)  # fmt: skip
def test_what_torch_says_of_its_workers_becomes_one_line(text, parts):
    for error in (RuntimeError(text), RuntimeError("outer")):
        if str(error) == "outer":
            error.__cause__ = RuntimeError(text)
        with pytest.raises(RunFailure) as raised, report_worker_failures():
            raise error
        assert "\n" not in str(raised.value)
        assert all(part in str(raised.value) for part in parts)


@pytest.mark.parametrize(
    ("number", "file", "part"),
    [
        ("ENOSPC", None, "there is no shared memory for the decoding workers; make /dev/shm larger"),
        ("EDQUOT", None, "there is no shared memory"), ("ENOSPC", "/tmp/x", ""), ("EDQUOT", "/tmp/x", ""),
        ("EMFILE", None, "no more open files are allowed for the decoding workers; raise `ulimit -n`"),
        ("ENFILE", "/tmp/x", "no more open files"), ("EACCES", None, ""), ("EACCES", "/tmp/x", ""),
        ("EAGAIN", None, "no more processes or memory for decoding workers (Resource temporarily unavailable); lower"),
        ("ENOMEM", None, "no more processes or memory for decoding workers (Cannot allocate memory); lower"),
    ],
)  # fmt: skip
def test_what_the_system_says_when_workers_start_becomes_one_line(number, file, part):
    error = OSError(getattr(errno, number), os.strerror(getattr(errno, number)), *([file] if file else []))
    with pytest.raises((RunFailure, OSError)) as raised, loader_module._report_start_failures():
        raise error
    assert (raised.value is error) == (part == "")
    assert part in str(raised.value)


def test_a_worker_keeps_the_memory_that_it_frees_and_has_a_folder_for_its_socket(monkeypatch):
    called = []
    monkeypatch.setattr(loader_module, "keep_freed_memory", lambda: called.append("memory"))
    monkeypatch.setattr(loader_module.multiprocessing.util, "get_temp_dir", lambda: called.append("folder"))
    loader_module._prepare_worker(3)
    assert sorted(called) == ["folder", "memory"]


def test_other_errors_are_left_alone():
    for error in (
        RuntimeError("CUDA out of memory"),
        ValueError("DataLoader worker"),
        RunFailure("DataLoader worker x"),
    ):
        with pytest.raises(type(error)) as raised, report_worker_failures():
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("workers", "pin", "key"), [(0, True, True), (2, True, True), (2, False, True), (2, True, False)]
)
def test_a_loader_is_what_the_config_says(videos, monkeypatch, workers, pin, key):
    given = []
    monkeypatch.setattr(
        loader_module.DataLoader, "__init__", lambda self, *args, **options: given.append((args, options))
    )
    cfg = small_config(f"DATA_LOADER.PREFETCH_FACTOR 5 DATA_LOADER.TIMEOUT 7 DATA_LOADER.PIN_MEMORY {key}", workers)
    build_eval_loader(cfg, videos, num_views=1, num_crops=1, pin_memory=pin)
    (args, options), generator = given[0], given[0][1].pop("generator")
    assert args[0].videos is videos
    assert isinstance(generator, torch.Generator)
    assert generator is not torch.default_generator
    assert options == {
        "batch_sampler": [[0, 1, 2, 3], [4, 5, 6]], "num_workers": workers, "collate_fn": loader_module.collate,
        "worker_init_fn": loader_module._prepare_worker, "pin_memory": pin and key,
        "prefetch_factor": 5 if workers else None, "timeout": 7 if workers else 0,
    }  # fmt: skip


KEYS = """DATA.CACHE_VIDEOS True DATA.DECODE_TIMEOUT 7 DATA.INDEX_CACHE index RNG_SEED 5 DATA.SAMPLING_RATE 3
          DATA.TARGET_FPS 24 AUG.NUM_SAMPLE 2 TRAIN.BATCH_SIZE 4 TRAIN.ACCUMULATION_STEPS 2 TEST.BATCH_SIZE 3"""


def test_a_training_loader_reads_as_the_config_says(videos):
    built = build_train_loader(small_config(KEYS), videos, total_steps=9, start_step=2, mirror=[1, 0])
    data, batches = built.dataset, built.batch_sampler
    assert data.times == TimeSampler(2, 0.125, num_clips=2, training=True)
    assert (data.shape, data.backend, data.cache, data.timeout) == ((2, 3, 2, 16, 16), "pyav", True, 7.0)
    assert (data.index_cache, data.seed, data.mirror, data.videos) == ("index", 5, [1, 0], videos)
    assert (batches.batch_size, batches.total_steps, batches.start_step) == (2, 9, 2)
    assert batches.order(1) == shuffled(len(videos), 5)(1)
    assert (batches.parts, batches.rank, batches.world_size) == (2, 0, 1)
    assert not built.pin_memory
    second = build_train_loader(
        small_config(KEYS.replace("STEPS 2", "STEPS 1")), videos, total_steps=9, rank=1, world_size=2
    )
    assert (second.batch_sampler.rank, second.batch_sampler.world_size, second.batch_sampler.start_step) == (1, 2, 0)
    assert second.dataset.mirror is None


@pytest.mark.parametrize(("short_side", "size"), [(0, 16), (20, 20)])
def test_a_test_loader_reads_as_the_config_says(videos, short_side, size):
    built = build_eval_loader(
        small_config(f"{KEYS} DATA.TEST_SHORT_SIDE {short_side}"), videos, num_views=2, num_crops=3
    )
    data = built.dataset
    assert data.times == TimeSampler(2, 0.125, num_clips=2)
    assert (data.shape, data.backend, data.cache, data.timeout) == ((6, 3, 2, 16, 16), "pyav", True, 7.0)
    assert (data.index_cache, data.mirror) == ("index", None)
    assert data.transform.size == 16
    assert data.transform.boxes.args == (16, size, 3)
    assert built.batch_sampler == [[0, 1, 2], [3, 4, 5], [6]]
    other = build_eval_loader(small_config(KEYS), videos, num_views=1, num_crops=1, rank=1, world_size=3)
    assert other.batch_sampler == [[1, 4]]


def test_the_waiting_that_is_told_is_more_than_three_tenths():
    watch = DataWatch(workers=1)
    assert (watch.workers, watch.share, watch.pause) == (1, 0.3, 20)
    assert [bool(watch.advice(data, 1.0)) for data in (0.9, 0.3, 0.301, *[0.9] * 21)] == [False] * 2 + [True] + [
        False
    ] * 20 + [True]


@pytest.mark.parametrize(
    ("workers", "processes", "more"), [(6, "1", True), (7, "1", False), (2, "2", True), (3, "2", False)]
)
def test_more_workers_are_advised_while_cores_are_free(monkeypatch, workers, processes, more):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    watch = DataWatch(workers=workers)
    watch.advice(1, 1)
    told = watch.advice(1.0, 2.0)
    assert told.startswith("training waits for data 50 % of the time; ")
    assert (f"raise DATA_LOADER.NUM_WORKERS, now {workers}: this machine has 8 cores" in told) == more
    assert ("the 8 cores here are busy: re-encode the videos" in told) != more
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    watch = DataWatch(workers=6, pause=0)
    watch.advice(1, 1)
    assert "raise DATA_LOADER.NUM_WORKERS" in watch.advice(1, 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, cores in ((9, 9), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert f"{cores} cores" in watch.advice(1, 1)


# Training batches -------------------------------------------------------------------------------------------------


def train_batches(videos, overrides="", workers=0, **changes):
    cfg = small_config(overrides, workers)
    return list(build_train_loader(cfg, videos, **({"total_steps": 3, "mirror": range(7)} | changes)))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for got, want in zip(batches, expected, strict=True):
        assert torch.equal(got.clips, want.clips)
        assert torch.equal(got.labels, want.labels)
        assert torch.equal(got.indices, want.indices)
        assert got.errors == want.errors


def test_clips_are_the_same_for_any_number_of_workers(videos):
    alone = train_batches(videos)
    assert [batch.clips.shape for batch in alone] == [(4, 3, 2, 16, 16)] * 3
    assert len({batch.clips.numpy().tobytes() for batch in alone}) == 3
    torch.manual_seed(99)  # what workers are seeded from
    assert_same(train_batches(videos, workers=1), alone)
    assert_same(train_batches(videos, workers=2), alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_draws_nothing_from_the_global_state(videos, workers):
    """Or the first step after a restart would have other dropout than the same step of an uninterrupted run."""
    states = random.getstate(), torch.get_rng_state()
    train_batches(videos, workers=workers)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_clips_are_the_same_after_a_restart(videos):
    assert_same(train_batches(videos, start_step=1), train_batches(videos)[1:])


def test_clips_are_the_same_for_any_number_of_ranks_and_parts(videos):
    expected = train_batches(videos)
    ranks = [train_batches(videos, "TRAIN.ACCUMULATION_STEPS 2", rank=rank, world_size=2) for rank in range(2)]
    for step, want in enumerate(expected):
        parts = [ranks[rank][2 * step + part] for part in range(2) for rank in range(2)]
        assert torch.equal(torch.cat([part.clips for part in parts]), want.clips)
        assert torch.equal(torch.cat([part.labels for part in parts]), want.labels)


def test_labels_belong_to_their_clips(videos):
    for batch in train_batches(videos):
        assert batch.labels.tolist() == batch.indices.tolist()  # label i is that of video i here
        assert batch.errors == []


def test_labels_of_mirrored_clips_are_those_of_the_other_side(videos):
    """Without a crop and colours a clip is the plain one or its mirror image, and its label says which."""
    whole = "AUG.RAND_AUGMENT_OPS 0 AUG.NUM_SAMPLE 2 DATA.TRAIN_JITTER_SCALES_RELATIVE [1,1]"
    other_side = [10, 11, 12, 13, 14, 15, 16]
    mirrored = train_batches(videos, whole, mirror=other_side)
    plain = train_batches(videos, whole, mirror=None)
    seen = 0
    for got, want in zip(mirrored, plain, strict=True):
        flips = (got.labels >= 10).tolist()
        assert (got.labels % 10).tolist() == want.labels.tolist() == want.indices.repeat_interleave(2).tolist()
        for clip, unmirrored, flip in zip(got.clips, want.clips, flips, strict=True):
            assert torch.equal(clip, unmirrored.flip(-1) if flip else unmirrored)
        seen += sum(flips)
    assert 0 < seen < 12


def test_repeated_augmentation_opens_fewer_videos(videos):
    (batch,) = train_batches(videos, "AUG.NUM_SAMPLE 2", total_steps=1)
    assert batch.clips.shape == (4, 3, 2, 16, 16)
    assert len(batch.indices) == 2
    assert batch.labels.tolist() == batch.indices.repeat_interleave(2).tolist()


def test_unreadable_video_in_a_batch_leaves_the_others_alone(videos):
    expected = train_batches(videos)
    lost = int(expected[0].indices[1])
    spoilt = [Video("gone.mp4", 0) if row == lost else video for row, video in enumerate(videos)]
    first = train_batches(spoilt)[0]
    assert first.labels[1] == IGNORED
    assert first.errors == [(lost, "gone.mp4: no such file")]
    assert not first.clips[1].any()
    rest = [0, 2, 3]
    assert torch.equal(first.clips[rest], expected[0].clips[rest])
    assert torch.equal(first.labels[rest], expected[0].labels[rest])


def test_batch_larger_than_the_list_is_told_before_reading():
    with pytest.raises(ValueError, match=r"TRAIN\.BATCH_SIZE needs 4 videos a step, but the training list holds 2"):
        train_batches([Video("gone.mp4", 0)] * 2)


# What each sample was made of ---------------------------------------------------------------------------------------

RECORDED_STEPS = 5  # three of 4 videos in the first epoch, two in the second


def make_record(frames_THWC):
    """In place of the picture: which frames arrived (their numbers are their times) and what would be drawn next."""
    numbers = torch.tensor([read_number(frame.numpy()) for frame in frames_THWC])
    draws = torch.tensor([random.getrandbits(32), int(torch.randint(2**32, ()))])
    return [torch.cat([numbers, draws])]


def records(videos, workers, rank=0, world_size=1, start_step=0):
    """(row, frame numbers and draws of each clip) of the samples that one process gets, step by step."""
    cfg = small_config("AUG.NUM_SAMPLE 2 TRAIN.BATCH_SIZE 8", workers)
    loader = build_train_loader(
        cfg, videos, total_steps=RECORDED_STEPS, start_step=start_step, rank=rank, world_size=world_size
    )
    loader.dataset.transform = make_record
    return [
        list(zip(batch.indices.tolist(), batch.clips.unflatten(0, (-1, 2)).tolist(), strict=True)) for batch in loader
    ]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Thirteen videos of half a second: three steps of 4 an epoch, one video left out."""
    folder = tmp_path_factory.mktemp("many")
    paths = [write_video(folder / f"{i}.mp4", frames=12, size=(32, 24), first_number=50 * i) for i in range(13)]
    return [Video(path, label) for label, path in enumerate(paths)]


@pytest.fixture(scope="module")
def uninterrupted(many):
    return records(many, workers=0)


def test_records_tell_samples_apart(many, uninterrupted):
    samples = [sample for step in uninterrupted for sample in step]
    assert [len(step) for step in uninterrupted] == [4] * RECORDED_STEPS
    assert len({row for row, _ in samples[:12]}) == 12
    assert len({tuple(clip[-2:]) for _, clips in samples for clip in clips}) == len(samples) * 2
    for row, clips in samples:
        for first, second, *_ in clips:
            assert 50 * row <= first <= second < 50 * row + 12
    assert len({clip[0] - 50 * row for row, clips in samples for clip in clips}) > 4  # clips start anywhere


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_videos_times_and_augmentation_are_those_of_the_uninterrupted_single_process(
    many, uninterrupted, workers, world_size
):
    """Stopped after step 1, in the middle of the first epoch, and gone on; over any ranks and workers."""
    random.seed(world_size)
    torch.manual_seed(workers)
    by_rank = [records(many, workers, rank, world_size, start_step=1) for rank in range(world_size)]
    together = [[sample for rank in step for sample in rank] for step in zip(*by_rank, strict=True)]
    assert together == uninterrupted[1:]


@pytest.mark.parametrize("start_step", [2, 3, 4])
def test_any_other_step_to_go_on_from(many, uninterrupted, start_step):
    assert records(many, workers=0, start_step=start_step) == uninterrupted[start_step:]


# Workers ----------------------------------------------------------------------------------------------------------


def loader_with(videos, transform, overrides="", workers=1, total_steps=3):
    loader = build_train_loader(small_config(overrides, workers), videos, total_steps=total_steps)
    loader.dataset.transform = transform
    return loader


# What workers do in place of transforms: at the top level, since workers that are spawned have to pickle them.


def die(number, frames_THWC):
    """End the own process: as the system does when memory is short, or a decoder's fault."""
    os.kill(os.getpid(), number)
    time.sleep(60)


SEEN = []


def die_after_a_batch(frames_THWC):
    SEEN.append(1)
    if len(SEEN) > 4:
        die(signal.SIGKILL, frames_THWC)
    return [torch.zeros(3, 2, 16, 16, dtype=torch.uint8)]


def hang(frames_THWC):
    time.sleep(3)


def fail(frames_THWC):
    raise RuntimeError("a mistake")


def count_threads(frames_THWC):
    return [torch.tensor([torch.get_num_threads()])]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"DataLoader worker \(pid \d+\) is killed by signal: Killed; .*DATA_LOADER.NUM_WORKERS"),
        (signal.SIGBUS, r"no shared memory for its batch; make /dev/shm larger"),
    ],
)
def test_death_of_a_worker_is_one_line(videos, number, message):
    def read():
        with report_worker_failures():  # as the training loop does: nothing is reported twice
            list(loader_with(videos, partial(die, number)))

    with pytest.raises(RunFailure, match=message) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("lower DATA_LOADER") == 1


def test_death_of_a_worker_is_told_wherever_the_process_is(videos):
    def step():
        with report_worker_failures(), closing(iter(loader_with(videos, die_after_a_batch))) as batches:
            next(batches)
            time.sleep(30)  # forward and backward

    with pytest.raises(RunFailure, match="is killed by signal"):
        step()


def test_worker_that_hangs_is_told(videos):
    loader = loader_with(videos, hang, "DATA_LOADER.TIMEOUT 0.5")
    with pytest.raises(RunFailure, match=r"timed out after 0.5 seconds; .*DATA_LOADER.TIMEOUT"):
        list(loader)


def test_mistake_in_the_code_keeps_its_traceback(videos):
    loader = loader_with(videos, fail)
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*a mistake") as caught:
        list(loader)
    assert not isinstance(caught.value, RunFailure)


def test_workers_run_on_one_thread_each(videos):
    for batch in loader_with(videos, count_threads, workers=2):
        assert batch.clips.tolist() == [[1]] * 4


def test_prefetch_is_the_configs(videos):
    assert loader_with(videos, make_record, "DATA_LOADER.PREFETCH_FACTOR 5").prefetch_factor == 5
    assert loader_with(videos, make_record, workers=0).timeout == 0  # torch knows neither without workers


# Waiting for data -------------------------------------------------------------------------------------------------


def test_waiting_is_told_now_and_then():
    watch = DataWatch(workers=1, pause=3)
    told = [bool(watch.advice(data, 1.0)) for data in (0.9, 0.2, 0.31, 0.9, 0.9, 0.9, 0.9, 0.3, 0.5, 0.9)]
    #      the start  fine   first  silence of three lines  again   fine   silence
    assert told == [False, False, True, False, False, False, True, False, False, False]


def test_advice_fits_the_machine(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    watch = DataWatch(workers=0, pause=0)
    watch.advice(1, 1)
    cores = len(os.sched_getaffinity(0))
    advice = watch.advice(0.45, 1.0)
    assert "training waits for data 45 % of the time" in advice
    assert "lookupvit benchmark loader" in advice
    if cores > 1:
        assert f"raise DATA_LOADER.NUM_WORKERS, now 0: this machine has {cores} cores" in advice
    watch.workers = cores
    assert "re-encode" in watch.advice(0.45, 1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0 * cores + 1, 0.0, 0.0))
    assert f"keep the {cores} cores here busy (load {2 * cores + 1}): stop them" in watch.advice(0.45, 1.0)
    watch = DataWatch(workers=3, cached=True, pause=0)  # more workers would each decode every video again
    watch.advice(1, 1)
    found = "each process that reads decodes every video once, and DATA_LOADER.NUM_WORKERS is 3"
    assert found in watch.advice(0.45, 1.0)


# Validation and test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (50, 0), (3, 3)])
def test_every_video_once_over_all_ranks(videos, world_size, batch_size, workers):
    cfg = small_config(f"TEST.BATCH_SIZE {batch_size}", workers)
    seen = []
    for rank in range(world_size):
        loader = build_eval_loader(cfg, videos, num_views=1, num_crops=1, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch.indices) <= batch_size for batch in batches)
        seen += [row for batch in batches for row in batch.indices.tolist()]
        assert all(batch.labels.tolist() == batch.indices.tolist() for batch in batches)
    assert sorted(seen) == list(range(len(videos)))


def test_more_ranks_than_videos(videos):
    loaders = [
        build_eval_loader(small_config(), videos[:2], num_views=1, num_crops=1, rank=r, world_size=3) for r in range(3)
    ]
    assert [[batch.indices.tolist() for batch in loader] for loader in loaders] == [[[0]], [[1]], []]


def test_views_and_short_side(videos):
    cfg = small_config("DATA.TEST_SHORT_SIDE 20 TEST.BATCH_SIZE 2")
    batch = next(iter(build_eval_loader(cfg, videos, num_views=2, num_crops=3)))
    assert batch.clips.shape == (2 * 6, 3, 2, 16, 16)
    assert batch.labels.tolist() == [0] * 6 + [1] * 6
    full = next(iter(build_eval_loader(small_config("TEST.BATCH_SIZE 2"), videos, num_views=2, num_crops=3)))
    assert not torch.equal(batch.clips, full.clips)


def test_data_sets_travel_to_spawned_workers(videos):
    cfg = small_config()
    for loader in (
        build_train_loader(cfg, videos, mirror=range(7), total_steps=1),
        build_eval_loader(cfg, videos, num_views=1, num_crops=1),
    ):
        copy = pickle.loads(pickle.dumps(loader.dataset))
        assert torch.equal(copy[2].clips, loader.dataset[2].clips)


def test_a_script_that_leaves_the_loop_early_ends(videos, tmp_path):
    script = (
        "import sys\n"
        "from lookupvit_video.config import load_config\n"
        "from lookupvit_video.data.loader import build_train_loader\n"
        "from lookupvit_video.data.manifest import Video\n"
        "videos = [Video(path, 0) for path in sys.argv[2:]]\n"
        "batches = iter(build_train_loader(load_config(None, sys.argv[1].split()), videos, total_steps=9))\n"
        "next(batches)\n"
    )
    settings = f"{SMALL} DATA_LOADER.NUM_WORKERS 1"
    command = [sys.executable, "-c", script, settings, *(video.path for video in videos)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_workers_end_where_not_all_of_them_can_start(videos, monkeypatch):
    start, calls = multiprocessing.process.BaseProcess.start, []

    def second_fails(process):
        calls.append(process)
        if len(calls) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", second_fails)
    before = set(multiprocessing.active_children())
    with pytest.raises((RunFailure, OSError)):
        train_batches(videos, workers=2)
    assert set(multiprocessing.active_children()) <= before
    assert calls[0].exitcode is not None
