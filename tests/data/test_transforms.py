"""Pixels: the same for all frames of a clip, crops where they should be, targets that stay what they say."""

import pickle
import random

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.transforms import (
    IGNORED,
    BatchAugment,
    ShortSideJitterCrop,
    eval_transform,
    frames_to_clip,
    normalize,
    soft_targets,
    train_transform,
)

SMALL = "DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 4 MODEL.COMPRESSED_GRID [1,1,1]"
JITTER = "DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [18,30]"
KINDS = {  # name -> (overrides, flip)
    "area crop": ("", False),
    "jitter crop": (JITTER, False),
    "flip": (JITTER, True),
    "rand augment": ("AUG.RAND_AUGMENT_OPS 2", True),
    "strong rand augment": ("AUG.RAND_AUGMENT_OPS 3 AUG.RAND_AUGMENT_MAGNITUDE 10 AUG.RAND_AUGMENT_STD 3", False),
    "colour": ("AUG.COLOR_JITTER 0.4", False),
    "everything": (f"AUG.COLOR_JITTER 0.4 AUG.RAND_AUGMENT_OPS 2 {JITTER}", True),
}


def small_config(overrides=""):
    return load_config(None, f"{SMALL} {overrides}".split())


def seed_all(seed):
    random.seed(seed)
    torch.manual_seed(seed)


def noise(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def ramp(height, width, frames=2):
    """Frames (T, H, W, 3) whose red is the row, green the column, blue the frame."""
    y, x, t = torch.arange(height), torch.arange(width), torch.arange(frames)
    shape = (frames, height, width)
    red, green = y.view(1, -1, 1).expand(shape), x.view(1, 1, -1).expand(shape)
    return torch.stack([red, green, t.view(-1, 1, 1).expand(shape)], dim=-1).to(torch.uint8)


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_identical_frames_stay_identical(kind):
    overrides, flip = KINDS[kind]
    transform = train_transform(small_config(overrides), flip=flip)
    frames_THWC = noise(1, 24, 32, 3).expand(4, -1, -1, -1)
    results = set()
    for seed in range(40):
        seed_all(seed)
        (clip,) = transform(frames_THWC)
        assert (clip == clip[:, :1]).all(), f"frames differ with seed {seed}"
        results.add(clip.numpy().tobytes())
    assert len(results) > 15  # it does something, and not always the same


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_gets_what_it_would_get_alone(kind):
    overrides, flip = KINDS[kind]
    transform = train_transform(small_config(overrides), flip=flip)
    frames_THWC = noise(4, 24, 32, 3)
    for seed in range(8):
        seed_all(seed)
        (clip,) = transform(frames_THWC)
        for t in range(4):
            seed_all(seed)
            (alone,) = transform(frames_THWC[t : t + 1])
            assert torch.equal(alone[:, 0], clip[:, t]), f"frame {t}, seed {seed}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 32), (33, 17), (5, 3), (1, 1)])
def test_training_clips_are_contiguous_uint8(kind, size):
    overrides, flip = KINDS[kind]
    frames_THWC = noise(3, *size, 3)
    before = frames_THWC.clone()
    (clip,) = train_transform(small_config(overrides), flip=flip)(frames_THWC)
    assert clip.shape == (3, 3, 16, 16)
    assert clip.dtype == torch.uint8
    assert clip.is_contiguous()
    assert torch.equal(frames_THWC, before)


@pytest.mark.parametrize("flip", [False, True])
def test_flip_mirrors_half_of_the_clips_or_none(flip):
    transform = train_transform(small_config(), flip=flip)
    frames_THWC = ramp(32, 32)
    mirrored = 0
    for seed in range(100):
        seed_all(seed)
        (clip,) = transform(frames_THWC)
        assert clip[0, 0, 0, 0] < clip[0, 0, -1, 0]  # never upside down
        mirrored += bool(clip[1, 0, 0, 0] > clip[1, 0, 0, -1])
    assert 30 <= mirrored <= 70 if flip else mirrored == 0


def test_jitter_crop_is_a_square_of_the_asked_size():
    for seed in range(20):
        seed_all(seed)
        crop = ShortSideJitterCrop(16, 32, 32)(ramp(32, 48).permute(0, 3, 1, 2))  # half the short side: nothing resized
        rows, columns = crop[0, 0, :, 0].tolist(), crop[0, 1, 0].tolist()
        assert rows == list(range(rows[0], rows[0] + 16))
        assert columns == list(range(columns[0], columns[0] + 16))


def test_jitter_crop_reaches_all_sizes_and_places():
    spans, lefts = set(), set()
    for seed in range(200):
        seed_all(seed)
        row = ShortSideJitterCrop(16, 16, 32)(ramp(32, 48).permute(0, 3, 1, 2))[0, 1, 0].int()
        spans.add(int(row.max() - row.min()) // 4)
        lefts.add(int(row.min()) // 8)
    assert spans == {3, 4, 5, 6, 7}
    assert lefts >= {0, 1, 2, 3}


def test_area_crop_of_all_of_a_square_is_the_square():
    whole = "DATA.TRAIN_JITTER_SCALES_RELATIVE [1,1] DATA.TRAIN_JITTER_ASPECT_RELATIVE [1,1]"
    transform = train_transform(small_config(whole), flip=False)
    (clip,) = transform(ramp(16, 16))
    assert torch.equal(clip, frames_to_clip(ramp(16, 16).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_travel_to_spawned_workers(kind):
    overrides, flip = KINDS[kind]
    frames_THWC = noise(2, 24, 32, 3)
    for transform in (train_transform(small_config(overrides), flip=flip), eval_transform(16, 18, 3)):
        copy = pickle.loads(pickle.dumps(transform))
        seed_all(0)
        expected = transform(frames_THWC)
        seed_all(0)
        assert all(map(torch.equal, copy(frames_THWC), expected))


# Validation and test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "num_crops", "corners"),  # of crops of 8 x 8, (top, left)
    [
        (8, 20, 3, [(0, 0), (0, 6), (0, 12)]),
        (20, 8, 3, [(0, 0), (6, 0), (12, 0)]),
        (8, 8, 3, [(0, 0)] * 3),
        (8, 11, 3, [(0, 0), (0, 1), (0, 3)]),
        (8, 20, 1, [(0, 6)]),
        (20, 8, 1, [(6, 0)]),
        (8, 8, 1, [(0, 0)]),
    ],
)
def test_eval_crops_that_need_no_resize(height, width, num_crops, corners):
    frames_THWC = ramp(height, width)
    expected = [frames_THWC[:, y : y + 8, x : x + 8].permute(3, 0, 1, 2) for y, x in corners]
    clips = eval_transform(8, 8, num_crops)(frames_THWC)
    assert len(clips) == num_crops
    assert all(map(torch.equal, clips, expected))


def test_eval_crop_smaller_than_the_short_side():
    clips = eval_transform(24, 32, 3)(ramp(32, 64))
    expected = [ramp(32, 64)[:, 4:28, x : x + 24].permute(3, 0, 1, 2) for x in (0, 20, 40)]
    assert all(map(torch.equal, clips, expected))


@pytest.mark.parametrize("size", [(24, 32), (33, 17), (101, 99), (3, 2), (1, 1), (1, 90)])
@pytest.mark.parametrize("num_crops", [1, 3])
@pytest.mark.parametrize("short_side", [16, 20])
def test_eval_clips_are_contiguous_uint8(size, num_crops, short_side):
    clips = eval_transform(16, short_side, num_crops)(noise(3, *size, 3))
    assert len(clips) == num_crops
    for clip in clips:
        assert clip.shape == (3, 3, 16, 16)
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()


def test_eval_draws_nothing():
    states = random.getstate(), torch.get_rng_state()
    frames_THWC = noise(2, 24, 32, 3)
    transform = eval_transform(16, 18, 3)
    assert all(map(torch.equal, transform(frames_THWC), transform(frames_THWC)))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


# Batches ----------------------------------------------------------------------------------------------------------


def test_normalize_is_the_textbook_formula():
    clips, mean, std = noise(2, 3, 4, 5, 6), [0.485, 0.4, 0.1], [0.229, 0.5, 1.0]
    got = normalize(clips, mean, std)
    assert got.dtype == torch.float32
    for channel in range(3):
        expected = (clips[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(got[:, channel].double(), expected, rtol=0, atol=1e-5)


def test_soft_targets():
    got = soft_targets(torch.tensor([2, IGNORED, 0]), 3)
    assert got.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert soft_targets(torch.full((2,), IGNORED), 4).sum() == 0


MIXUP = "MIXUP.ENABLE True MIXUP.SWITCH_PROB 0"
CUTMIX = "MIXUP.ENABLE True MIXUP.SWITCH_PROB 1"


def numbered_clips(batch=4):
    """Clips (B, 3, 2, 8, 8), the b-th of them full of b, and their targets."""
    clips = torch.arange(batch).float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 8, 8).clone()
    return clips, soft_targets(torch.arange(batch), batch)


@pytest.mark.parametrize("overrides", [MIXUP, CUTMIX, "MIXUP.ENABLE True", "MIXUP.ENABLE True MIXUP.PROB 0.5"])
def test_targets_tell_what_is_in_the_clip(overrides):
    augment = BatchAugment(small_config(overrides))
    changed = 0
    for seed in range(30):
        seed_all(seed)
        clips, targets = numbered_clips()
        mixed, mixed_targets = augment(clips.clone(), targets.clone())
        assert mixed.shape == clips.shape
        assert type(mixed) is torch.Tensor
        torch.testing.assert_close(mixed_targets.sum(1), torch.ones(4))
        # Clip b was full of b, so the mean of a mixed one is that of the numbers in it, weighted by the targets.
        torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), mixed_targets @ torch.arange(4.0))
        changed += not torch.equal(mixed, clips)
    assert changed > 25 if "PROB 0.5" not in overrides else 5 < changed < 25


def test_mixup_blends_and_cutmix_pastes():
    blended = pasted = 0
    for seed in range(20):
        seed_all(seed)
        mixed, targets = BatchAugment(small_config(MIXUP))(*numbered_clips())
        torch.testing.assert_close(mixed, (targets @ torch.arange(4.0)).view(-1, 1, 1, 1, 1).expand_as(mixed))
        blended += not torch.equal(mixed, mixed.round())
        mixed, _ = BatchAugment(small_config(CUTMIX))(*numbered_clips())
        assert torch.equal(mixed, mixed.round())
        pasted += bool((mixed[0] != mixed[0, 0, 0, 0, 0]).any())
    assert blended > 15
    assert pasted > 10


def test_cutmix_box_is_the_same_in_all_frames_and_channels():
    augment = BatchAugment(small_config(CUTMIX))
    for seed in range(20):
        seed_all(seed)
        mixed, _ = augment(*numbered_clips())
        assert (mixed == mixed[:, :1, :1]).all()
        rows = (mixed[0, 0, 0] != 0).any(1).nonzero()
        columns = (mixed[0, 0, 0] != 0).any(0).nonzero()
        if len(rows):  # one box
            box = mixed[0, 0, 0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (box != 0).all()


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        ("MIXUP.ALPHA 0", {"cutmix"}),
        ("MIXUP.CUTMIX_ALPHA 0", {"mixup"}),
        ("MIXUP.SWITCH_PROB 0.5", {"mixup", "cutmix"}),
        ("MIXUP.PROB 0", {"none"}),
        ("MIXUP.PROB 0.5", {"mixup", "cutmix", "none"}),
    ],
)
def test_which_mixing_is_drawn(overrides, kinds):
    augment = BatchAugment(small_config(f"MIXUP.ENABLE True {overrides}"))
    seen = set()
    for seed in range(40):
        seed_all(seed)
        clips, targets = numbered_clips()
        mixed, mixed_targets = augment(clips.clone(), targets)
        if torch.equal(mixed_targets, targets):
            assert torch.equal(mixed, clips)  # also where cutmix drew an empty box
            seen |= {"none"} & kinds
        else:
            seen.add("cutmix" if torch.equal(mixed, mixed.round()) else "mixup")
    assert seen == kinds


def test_ignored_clips_add_nothing_to_the_targets():
    augment = BatchAugment(small_config(MIXUP))
    for seed in range(10):
        seed_all(seed)
        targets = soft_targets(torch.tensor([1, IGNORED]), 3)
        _, mixed = augment(torch.zeros(2, 3, 2, 8, 8), targets)
        torch.testing.assert_close(mixed.sum(0), torch.tensor([0.0, 1.0, 0.0]))  # what one row lost, the other got
        assert (mixed >= 0).all()


def test_erasing_takes_the_same_place_of_all_frames():
    augment = BatchAugment(small_config("AUG.RE_PROB 1"))
    clips, targets = torch.full((4, 3, 5, 16, 16), 7.0), soft_targets(torch.arange(4), 4)
    for seed in range(10):
        seed_all(seed)
        erased, same_targets = augment(clips.clone(), targets)
        assert erased.shape == clips.shape
        assert torch.equal(same_targets, targets)
        gone = erased != 7
        assert (gone == gone[:, :1, :1]).all()
        assert (erased == erased[:, :, :1]).all()  # and puts the same there
        share = gone[:, 0, 0].float().mean((1, 2))
        assert ((share > 0.01) & (share < 0.4)).all()
        assert len({place.numpy().tobytes() for place in gone[:, 0, 0]}) > 1  # each clip has its own


def test_erasing_has_its_chance():
    augment = BatchAugment(small_config("AUG.RE_PROB 0.5"))
    seed_all(0)
    erased, _ = augment(torch.full((100, 3, 1, 16, 16), 7.0), torch.zeros(100, 2))
    assert 30 < int((erased != 7).flatten(1).any(1).sum()) < 70


def test_nothing_asked_for_nothing_done():
    clips, targets = numbered_clips()
    state = torch.get_rng_state()
    same, same_targets = BatchAugment(small_config())(clips, targets)
    assert same is clips
    assert same_targets is targets
    assert torch.equal(torch.get_rng_state(), state)
