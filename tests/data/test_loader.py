"""The order of samples follows from (seed, step) alone: not from ranks, accumulation, workers or restarts."""

import pickle

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.loader import TrainBatchSampler, build_eval_loader, build_train_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import IGNORED
from tests.videos import write_video

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


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_global_batch_is_the_same_for_any_ranks_and_parts(world_size, parts):
    assert global_batches(world_size, parts) == list(sampler())


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
def test_resumed_order_goes_on_exactly(start, parts):
    whole = list(sampler(parts=parts, rank=1, world_size=2))
    resumed = sampler(parts=parts, rank=1, world_size=2, start_step=start)
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
        ({"batch_size": 31}, r"TRAIN\.BATCH_SIZE asks for 31 videos a step, but the training list holds 30"),
        ({"world_size": 3}, r"TRAIN\.BATCH_SIZE: 8 videos a step cannot be split evenly over 3 processes x 1 acc"),
        ({"world_size": 2, "parts": 8}, r"cannot be split evenly over 2 processes x 8 accumulation steps"),
    ],
)
def test_batch_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


# Training batches -------------------------------------------------------------------------------------------------


def train_batches(videos, overrides="", workers=0, **changes):
    cfg = small_config(overrides, workers)
    return list(build_train_loader(cfg, videos, flip=True, **({"total_steps": 3} | changes)))


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
    with pytest.raises(ValueError, match=r"TRAIN\.BATCH_SIZE asks for 4 videos a step, but the training list holds 2"):
        train_batches([Video("gone.mp4", 0)] * 2)


# Validation and test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_video_once_over_all_ranks(videos, world_size, batch_size):
    cfg = small_config(f"TEST.BATCH_SIZE {batch_size}")
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
        build_train_loader(cfg, videos, flip=True, total_steps=1),
        build_eval_loader(cfg, videos, num_views=1, num_crops=1),
    ):
        copy = pickle.loads(pickle.dumps(loader.dataset))
        assert torch.equal(copy[2].clips, loader.dataset[2].clips)
