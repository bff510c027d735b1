"""Pixels: the same for all frames of a clip, crops where they should be, targets that stay what they say."""

import pickle
import random
import subprocess
import sys

import pytest
import torch
from torchvision.transforms import v2

from lookupvit_video.config import load_config
from lookupvit_video.data.transforms import (
    FILL,
    IGNORED,
    eval_transform,
    frames_to_clip,
    mirror_half,
    mirrored_labels,
    normalize,
    resized,
    side_by_side,
    soft_targets,
    train_transform,
)
from lookupvit_video.decoding.reader import Box
from tests.small import batch_augment

SMALL = "DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16 DATA.NUM_FRAMES 4 MODEL.COMPRESSED_GRID [1,1,1]"
JITTER = "DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [18,30]"
KINDS = {
    "area crop": "",
    "jitter crop": JITTER,
    "rand augment": "AUG.RAND_AUGMENT_OPS 2",
    "strong rand augment": "AUG.RAND_AUGMENT_OPS 3 AUG.RAND_AUGMENT_MAGNITUDE 10 AUG.RAND_AUGMENT_STD 3",
    "colour": "AUG.COLOR_JITTER 0.4",
    "colour as ViViT": "AUG.COLOR_JITTER 0.4 AUG.HUE_JITTER 0.2 AUG.COLOR_JITTER_PROB 0.8",
    "everything": f"AUG.COLOR_JITTER 0.4 AUG.HUE_JITTER 0.1 AUG.RAND_AUGMENT_OPS 2 {JITTER}",
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
    transform = train_transform(small_config(KINDS[kind]))
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
    transform = train_transform(small_config(KINDS[kind]))
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
def test_training_clips_are_uint8_of_the_asked_size(kind, size):
    frames_THWC = noise(3, *size, 3)
    before = frames_THWC.clone()
    (clip,) = train_transform(small_config(KINDS[kind]))(frames_THWC)
    assert clip.shape == (3, 3, 16, 16)
    assert clip.dtype == torch.uint8
    assert torch.equal(frames_THWC, before)


def test_colour_changes_as_often_as_asked():
    frames_THWC = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    frames_THWC[..., 0] = 140
    changed = {"0": 0, "0.5": 0, "1": 0}
    for chance in changed:
        transform = train_transform(small_config(f"AUG.COLOR_JITTER 0.4 AUG.COLOR_JITTER_PROB {chance}"))
        for seed in range(60):
            seed_all(seed)
            changed[chance] += not torch.equal(transform(frames_THWC)[0][:, :, 0, 0].T, frames_THWC[:, 0, 0])
    assert changed["0"] == 0
    assert 15 < changed["0.5"] < 45
    assert changed["1"] > 55


def test_hue_turns_colours_and_nothing_else():
    frames_THWC = torch.tensor([200, 100, 100], dtype=torch.uint8).expand(2, 16, 16, 3)
    seen = set()
    for seed in range(20):
        seed_all(seed)
        (clip,) = train_transform(small_config("AUG.HUE_JITTER 0.5"))(frames_THWC)
        assert (clip.amax(0).int() - 200).abs().max() <= 1  # value and saturation stay
        assert (clip.amin(0).int() - 100).abs().max() <= 1
        seen.add(int(clip[:, 0, 0, 0].argmax()))
    assert seen == {0, 1, 2}


def test_jitter_crop_is_a_square_of_the_asked_size():
    transform = train_transform(small_config("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [32,32]"))
    for seed in range(20):
        seed_all(seed)
        (clip,) = transform(ramp(32, 48))  # half the short side: nothing resized
        rows, columns = clip[0, 0, :, 0].tolist(), clip[1, 0, 0].tolist()
        assert rows == list(range(rows[0], rows[0] + 16))
        assert columns == list(range(columns[0], columns[0] + 16))


def test_jitter_crop_reaches_all_sizes_and_places():
    transform = train_transform(small_config("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [16,32]"))
    spans, lefts = set(), set()
    for seed in range(200):
        seed_all(seed)
        row = transform(ramp(32, 48))[0][1, 0, 0].int()
        spans.add(int(row.max() - row.min()) // 4)
        lefts.add(int(row.min()) // 8)
    assert spans == {3, 4, 5, 6, 7}
    assert lefts >= {0, 1, 2, 3}


@pytest.mark.parametrize("size", [(24, 32), (240, 427), (9, 200), (200, 9), (1, 1), (1, 90)])
def test_area_crop_is_the_one_torchvision_draws(size, monkeypatch):
    transform = train_transform(
        small_config("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.08,1] DATA.TRAIN_JITTER_ASPECT_RELATIVE [0.75,1.3333]")
    )
    theirs = v2.RandomResizedCrop(16, (0.08, 1.0), (0.75, 1.3333))
    monkeypatch.setattr(random, "uniform", lambda low, high: torch.empty(1).uniform_(low, high).item())
    monkeypatch.setattr(random, "randint", lambda low, high: int(torch.randint(low, high + 1, (1,))))
    places = set()
    for seed in range(100):
        torch.manual_seed(seed)
        expected = theirs.make_params([torch.empty(size)])
        torch.manual_seed(seed)
        (box,) = transform.boxes(*size)
        assert box._asdict() == expected
        places.add(box)
    assert len(places) > 50 or min(size) < 10


def test_area_crop_of_all_of_a_square_is_the_square():
    whole = "DATA.TRAIN_JITTER_SCALES_RELATIVE [1,1] DATA.TRAIN_JITTER_ASPECT_RELATIVE [1,1]"
    transform = train_transform(small_config(whole))
    (clip,) = transform(ramp(16, 16))
    assert torch.equal(clip, frames_to_clip(ramp(16, 16).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_travel_to_spawned_workers(kind):
    frames_THWC = noise(2, 24, 32, 3)
    for transform in (train_transform(small_config(KINDS[kind])), eval_transform(16, 18, 3)):
        copy = pickle.loads(pickle.dumps(transform))
        seed_all(0)
        expected = transform(frames_THWC)
        seed_all(0)
        assert all(map(torch.equal, copy(frames_THWC), expected))


# Mirrored clips ---------------------------------------------------------------------------------------------------

SSV2 = ["Pushing something from left to right", "Pushing something from right to left", "Holding something",
        "Turning the camera right while filming it", "Turning the camera left while filming it"]  # fmt: skip
MOTIONS = ["left to right", "clockwise", "grow", "right to left", "counter-clockwise"]


@pytest.mark.parametrize(
    ("classes", "mirror"),
    [
        (SSV2, [1, 0, 2, 4, 3]),
        (MOTIONS, [3, 4, 2, 0, 1]),
        (["turn_Left", "turn_Right"], [1, 0]),
        (["spin anticlockwise", "spin clockwise"], [1, 0]),
        (["Counter clockwise", "Clockwise"], [1, 0]),
        (["moving leftwards", "moving rightwards"], [1, 0]),
        (["left-hand turn", "right-hand turn", "leftmost", "rightmost"], [1, 0, 3, 2]),
        (["brightening", "eating leftovers", "copyright", "abseiling"], [0, 1, 2, 3]),
        (["A", "a"], [0, 1]),
    ],
)
def test_a_mirrored_clip_shows_the_class_of_the_other_side(classes, mirror):
    found, reason = mirrored_labels(classes)
    assert found == mirror
    assert reason.startswith("on; ")
    if mirror != sorted(mirror):
        first = next(label for label, other in enumerate(mirror) if label != other)
        assert f"{classes[first]!r} mirrored is {classes[mirror[first]]!r}" in reason


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (["jump", "turn left"], "no class is the mirror image of 'turn left'"),
        ([*SSV2, "wiping leftwards"], "no class is the mirror image of 'wiping leftwards'"),
        (["turn left and right"], "no class is the mirror image of 'turn left and right'"),
        (["spin clockwise", "spin anticlockwise", "spin counterclockwise"], "two class names name the same side"),
    ],
)
def test_no_clip_is_mirrored_where_a_class_has_no_other_side(classes, reason):
    mirror, told = mirrored_labels(classes)
    assert mirror is None
    assert told.startswith("off, since ")
    assert reason in told


def test_half_of_the_clips_are_mirrored_each_by_itself_and_labels_follow():
    clip, mirror = ramp(4, 8).permute(3, 0, 1, 2), [0, 2, 1]
    patterns = set()
    for seed in range(100):
        seed_all(seed)
        clips, labels = mirror_half([clip, clip], 1, mirror[1])
        for got, label in zip(clips, labels, strict=True):
            assert torch.equal(got, clip if label == 1 else clip.flip(-1))
            assert label in (1, 2)
        patterns.add(tuple(labels))
    assert patterns == {(1, 1), (1, 2), (2, 1), (2, 2)}
    seed_all(0)
    assert sum(label == 2 for label in mirror_half([clip] * 400, 1, mirror[1])[1]) in range(160, 240)
    assert mirror_half([clip] * 400, 0, mirror[0])[1] == [0] * 400


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
def test_eval_clips_are_uint8_of_the_asked_size(size, num_crops, short_side):
    clips = eval_transform(16, short_side, num_crops)(noise(3, *size, 3))
    assert len(clips) == num_crops
    for clip in clips:
        assert clip.shape == (3, 3, 16, 16)
        assert clip.dtype == torch.uint8


def test_eval_draws_nothing():
    states = random.getstate(), torch.get_rng_state()
    frames_THWC = noise(2, 24, 32, 3)
    transform = eval_transform(16, 18, 3)
    assert all(map(torch.equal, transform(frames_THWC), transform(frames_THWC)))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("height", "width", "size"), [(24, 24, 16), (33, 47, 16), (7, 9, 16), (16, 16, 16)])
def test_frames_are_resized_as_torchvision_does(monkeypatch, native, height, width, size):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if native else "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for frames_THWC in (noise(3, height, width, 3), noise(1, height, width, 3)):
        frames_TCHW = frames_THWC.permute(0, 3, 1, 2)
        expected = v2.functional.resize_image(frames_TCHW, [size, size], antialias=True)
        assert torch.equal(resized(frames_TCHW, size), expected)


# Crops before the frames come ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_boxes_are_those_of_whole_frames(kind):
    frames_THWC = noise(2, 24, 32, 3)
    for transform in (train_transform(small_config(KINDS[kind])), eval_transform(16, 18, 3)):
        seed_all(0)
        expected = transform(frames_THWC)
        seed_all(0)
        boxes = transform.boxes(24, 32)
        around = Box.around(boxes)
        part_THWC = around.cut(frames_THWC).clone()
        clips = [transform.clip(box.seen_from(around).cut(part_THWC)) for box in boxes]
        assert all(map(torch.equal, clips, expected))


def test_the_box_around_others_holds_no_more_than_them():
    boxes = [Box(3, 8, 10, 4), Box(5, 2, 4, 5), Box(4, 9, 10, 2)]
    assert Box.around(boxes) == Box(3, 2, 11, 10)
    assert Box.around(boxes[:1]) == boxes[0]
    assert boxes[1].seen_from(Box(3, 2, 11, 10)) == Box(2, 0, 4, 5)


# Batches ----------------------------------------------------------------------------------------------------------


def test_normalize_is_the_textbook_formula():
    clips, mean, std = noise(2, 3, 4, 5, 6), [0.485, 0.4, 0.1], [0.229, 0.5, 1.0]
    got = normalize(clips, mean, std)
    assert got.dtype == torch.float32
    floats = clips.float()
    assert torch.equal(normalize(floats, mean, std), got)
    assert torch.equal(floats, clips.float())  # its input stays
    assert got.is_contiguous()
    last = clips.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert torch.equal(normalize(last, mean, std), got)
    assert normalize(last, mean, std).is_contiguous()
    for channel in range(3):
        expected = (clips[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(got[:, channel].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layouts", ["last last", "first first", "last first"])
def test_clips_stand_side_by_side_in_the_layout_that_they_share(layouts):
    clips = [noise(3, 2, 4, 5), 255 - noise(3, 2, 4, 5)]
    laid = [
        clip if layout == "first" else clip.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        for clip, layout in zip(clips, layouts.split(), strict=True)
    ]
    both = side_by_side(laid)
    assert torch.equal(both, torch.stack(clips))
    assert both.movedim(1, -1).is_contiguous() == (layouts == "last last")
    assert both.is_contiguous() == (layouts != "last last")


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
    augment = batch_augment(small_config(overrides))
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
        mixed, targets = batch_augment(small_config(MIXUP))(*numbered_clips())
        torch.testing.assert_close(mixed, (targets @ torch.arange(4.0)).view(-1, 1, 1, 1, 1).expand_as(mixed))
        blended += not torch.equal(mixed, mixed.round())
        mixed, _ = batch_augment(small_config(CUTMIX))(*numbered_clips())
        assert torch.equal(mixed, mixed.round())
        pasted += bool((mixed[0] != mixed[0, 0, 0, 0, 0]).any())
    assert blended > 15
    assert pasted > 10


def test_cutmix_box_is_the_same_in_all_frames_and_channels():
    augment = batch_augment(small_config(CUTMIX))
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
    augment = batch_augment(small_config(f"MIXUP.ENABLE True {overrides}"))
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
    augment = batch_augment(small_config(MIXUP))
    for seed in range(10):
        seed_all(seed)
        targets = soft_targets(torch.tensor([1, IGNORED]), 3)
        _, mixed = augment(torch.zeros(2, 3, 2, 8, 8), targets)
        torch.testing.assert_close(mixed.sum(0), torch.tensor([0.0, 1.0, 0.0]))  # what one row lost, the other got
        assert (mixed >= 0).all()


def test_erasing_takes_the_same_place_of_all_frames():
    augment = batch_augment(small_config("AUG.RE_PROB 1"))
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
    augment = batch_augment(small_config("AUG.RE_PROB 0.5"))
    seed_all(0)
    erased, _ = augment(torch.full((100, 3, 1, 16, 16), 7.0), torch.zeros(100, 2))
    assert 30 < int((erased != 7).flatten(1).any(1).sum()) < 70


def test_nothing_asked_for_nothing_done():
    clips, targets = numbered_clips()
    state = torch.get_rng_state()
    same, same_targets = batch_augment(small_config())(clips, targets)
    assert same is clips
    assert same_targets is targets
    assert torch.equal(torch.get_rng_state(), state)


# Constants and chances as published ---------------------------------------------------------------------------------


def test_published_constants():
    assert FILL == [124.0, 116.0, 104.0]  # 255 x (0.485, 0.456, 0.406), ImageNet's mean colour
    assert IGNORED == torch.nn.CrossEntropyLoss().ignore_index == -100


@pytest.mark.parametrize("transform", [eval_transform(16, 16, 1), train_transform(small_config(JITTER))])
def test_smaller_pictures_are_averages_not_samples(transform):
    """Stripes finer than a pixel of the clip turn grey; without antialiasing they would turn into coarse stripes."""
    frames_THWC = torch.zeros(2, 80, 80, 3, dtype=torch.uint8)
    frames_THWC[:, :, ::2] = 255
    for seed in range(5):
        seed_all(seed)
        (clip,) = transform(frames_THWC)
        assert 100 < clip[..., 2:-2].min() <= clip[..., 2:-2].max() < 155


def rand_augment_of(overrides, monkeypatch, draws):
    """What torchvision's RandAugment is made with for each draw of the strength, and what was drawn from."""
    made, drawn = [], []

    class Recorder:
        def __init__(self, *given, **options):
            made.append((given, options))

        def __call__(self, frames_TCHW):
            return frames_TCHW

    transform = train_transform(small_config(overrides))
    monkeypatch.setattr(v2, "RandAugment", Recorder)
    for draw in draws:
        monkeypatch.setattr(random, "gauss", lambda *given, draw=draw: drawn.append(given) or draw)
        transform(noise(2, 24, 32, 3))
    return made, drawn


def test_rand_augment_draws_its_strength_around_the_magnitude_on_a_scale_of_ten(monkeypatch):
    overrides = "AUG.RAND_AUGMENT_OPS 4 AUG.RAND_AUGMENT_MAGNITUDE 7 AUG.RAND_AUGMENT_STD 0.5"
    made, drawn = rand_augment_of(overrides, monkeypatch, [0.0, 7.0, 7.4, 10.0, 11.0, -1.0])
    assert drawn == [(7, 0.5)] * 6
    assert [given for given, _ in made] == [(4, 0), (4, 21), (4, 22), (4, 30), (4, 30), (4, 0)]
    for _, options in made:
        assert options == {
            "num_magnitude_bins": 31, "interpolation": v2.InterpolationMode.BILINEAR, "fill": [124.0, 116.0, 104.0],
        }  # fmt: skip


def test_rand_augment_with_a_deviation_is_not_always_as_strong(monkeypatch):
    strengths = set()
    monkeypatch.setattr(v2, "RandAugment", lambda _, strength, **options: strengths.add(strength) or (lambda x: x))
    for std, count in (("0", 1), ("0.5", 4)):
        strengths.clear()
        transform = train_transform(small_config(f"AUG.RAND_AUGMENT_OPS 2 AUG.RAND_AUGMENT_STD {std}"))
        for seed in range(60):
            seed_all(seed)
            transform(noise(1, 24, 32, 3))
        assert (len(strengths) == 1) if count == 1 else (len(strengths) >= count)


def test_colour_jitter_changes_each_property_as_much_as_asked():
    ((apply,),) = (train_transform(small_config("AUG.COLOR_JITTER 0.4 AUG.HUE_JITTER 0.1")).augment,)
    assert apply.p == small_config().AUG.COLOR_JITTER_PROB
    (jitter,) = apply.transforms
    assert jitter.brightness == jitter.contrast == jitter.saturation == pytest.approx((0.6, 1.4))
    assert jitter.hue == pytest.approx((-0.1, 0.1))
    assert train_transform(small_config()).augment is None


def test_clips_are_corrupted_as_often_as_asked():
    (corrupt,) = train_transform(small_config("AUG.CORRUPTIONS ['contrast'] AUG.CORRUPTION_PROB 0.2")).augment
    assert (corrupt.names, corrupt.chance) == (["contrast"], 0.2)
    frames_THWC = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    transform = train_transform(small_config("AUG.CORRUPTIONS ['contrast'] AUG.CORRUPTION_PROB 1.0"))
    seed_all(0)
    (clip,) = transform(frames_THWC)
    seed_all(0)
    (plain,) = train_transform(small_config())(frames_THWC)
    assert clip.float().std() < 0.7 * plain.float().std()  # the same box, less contrast


def test_short_side_crops_are_drawn_over_all_sizes_and_places(monkeypatch):
    asked = []
    monkeypatch.setattr(random, "randint", lambda low, high: asked.append((low, high)) or high)
    transform = train_transform(small_config("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [18,32]"))
    assert transform.boxes(64, 96) == [Box(32, 64, 32, 32)]  # 16 of 32 pixels are half of the short side
    assert asked == [(18, 32), (0, 32), (0, 64)]
    assert transform.boxes(1, 1) == [Box(0, 0, 1, 1)]


def test_eval_boxes_never_vanish():
    assert eval_transform(2, 100, 1).boxes(3, 40) == [Box(1, 19, 1, 1)]
    assert eval_transform(2, 100, 3).boxes(3, 40) == [Box(1, 0, 1, 1), Box(1, 19, 1, 1), Box(1, 39, 1, 1)]


def test_clips_are_put_together_by_the_function_given():
    given = []
    clips = [noise(3, 2, 4, 5).permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)] * 2
    both = side_by_side(clips, lambda parts: given.append(parts) or torch.stack(parts))
    assert [part.shape for part in given[0]] == [(2, 4, 5, 3)] * 2  # as they lie in memory
    assert torch.equal(both, torch.stack(clips))
    for rows in ([torch.arange(3)] * 2, [noise(3, 2, 4)] * 2):  # what is no clip is stacked as it is
        assert torch.equal(side_by_side(rows), torch.stack(rows))


def test_a_mirrored_clip_is_drawn_for_each_clip_below_one_half(monkeypatch):
    draws = iter([0.0, 0.499, 0.5, 0.99])
    monkeypatch.setattr(random, "random", lambda: next(draws))
    assert mirror_half([ramp(2, 4).permute(3, 0, 1, 2)] * 4, 0, 1)[1] == [1, 1, 0, 0]


def test_mixing_has_the_chances_and_strengths_of_the_config(monkeypatch):
    both = "MIXUP.ENABLE True MIXUP.ALPHA 0.3 MIXUP.CUTMIX_ALPHA 0.7 MIXUP.PROB 0.8 MIXUP.SWITCH_PROB 0.25"
    augment = batch_augment(small_config(both))
    assert [(chance, type(mixer), mixer.alpha) for chance, mixer in augment.mixers] == [
        (pytest.approx(0.6), v2.MixUp, 0.3), (pytest.approx(0.2), v2.CutMix, 0.7),
    ]  # fmt: skip
    calls = []
    augment.mixers = [(chance, lambda x, y, name=name: calls.append(name) or (x, y))
                      for (chance, _), name in zip(augment.mixers, ("mixup", "cutmix"), strict=True)]  # fmt: skip
    for draw in (0.0, 0.59, 0.61, 0.79, 0.81, 0.99):
        calls.append(draw)
        monkeypatch.setattr(torch, "rand", lambda *_, draw=draw: torch.tensor(draw))
        augment(*numbered_clips())
    assert calls == [0.0, "mixup", 0.59, "mixup", 0.61, "cutmix", 0.79, "cutmix", 0.81, 0.99]


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        ("MIXUP.SWITCH_PROB 0", [v2.MixUp]),
        ("MIXUP.SWITCH_PROB 1", [v2.CutMix]),
        ("MIXUP.CUTMIX_ALPHA 0 MIXUP.SWITCH_PROB 0.5", [v2.MixUp]),
        ("MIXUP.ALPHA 0 MIXUP.SWITCH_PROB 0.5", [v2.CutMix]),
    ],
)
def test_only_what_can_be_drawn_is_made(overrides, kinds):
    assert [type(mixer) for _, mixer in batch_augment(small_config(f"MIXUP.ENABLE True {overrides}")).mixers] == kinds
    assert batch_augment(small_config(overrides)).mixers == []  # not enabled


def test_a_chance_of_none_is_none(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.0))
    clips, targets = numbered_clips()
    assert batch_augment(small_config("MIXUP.ENABLE True MIXUP.PROB 0"))(clips, targets)[0] is clips


def test_what_is_erased_is_filled_with_noise():
    """Of mean 0 and deviation 1, as the clips are after normalisation; a constant would be a shape to learn from."""
    augment = batch_augment(small_config("AUG.RE_PROB 1"))
    seed_all(0)
    erased, _ = augment(torch.full((16, 3, 1, 32, 32), 7.0), torch.zeros(16, 2))
    noise_there = erased[erased != 7]
    assert noise_there.mean().abs() < 0.1
    assert 0.9 < noise_there.std() < 1.1
    assert len(noise_there.unique()) > 0.9 * len(noise_there) / 3


@pytest.mark.parametrize(("changes", "imported"), [([], False), (["AUG.RAND_AUGMENT_OPS", "2"], True)])
def test_torchvision_is_imported_where_it_is_used_and_before_workers_start(changes, imported):
    code = (
        "import sys; from lookupvit_video.config import load_config; from lookupvit_video.data.loader import *; "
        "train_transform(load_config(None, sys.argv[1:])); print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *changes], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(imported)]
