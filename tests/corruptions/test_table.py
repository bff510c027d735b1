"""Strengths are the published ones; severity 0 changes nothing; more severity never corrupts less."""

import itertools
from statistics import mean

import numpy as np
import pytest

from lookupvit_video.corruptions.table import CORRUPTIONS, SEVERITIES, SUITES, seed_of, suite
from lookupvit_video.errors import UserError
from tests.corruptions.clips import varied_clips

# As the papers and their repositories have them, severity 1 to 5.
BOTH_YI = {
    "shot_noise": (60, 25, 12, 5, 3),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "rain": ((10, 770, 0.8), (30, 770, 0.8), (60, 770, 0.7), (60, 500, 0.6), (80, 400, 0.5)),
    "contrast": (0.5, 0.4, 0.3, 0.2, 0.1),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "h264_crf": (23, 30, 37, 44, 51),
    "h265_crf": (27, 33, 39, 45, 51),
    "bit_error": (1e5, 5e4, 3e4, 2e4, 1e4),
    "packet_loss": (1, 2, 3, 4, 6),
}
PUBLISHED = {
    "minikinetics-c": {
        **BOTH_YI,
        "motion_blur": (3, 5, 7, 9, 11),
        "frame_rate": ((20, 30), (16, 30), (12, 30), (9, 30), (6, 30)),
    },
    "minissv2-c": {
        **BOTH_YI,
        "motion_blur_ssv2": (1, 2, 3, 4, 6),
        "frame_rate_ssv2": ((10, 12), (8, 12), (6, 12), (4, 12), (2, 12)),
    },
    "schiappa-p": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise_p": (250, 100, 50, 30, 15),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "speckle_noise": (0.15, 0.2, 0.25, 0.3, 0.35),
        "motion_blur_p": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "jpeg": (25, 18, 15, 10, 7),
        "mpeg2": None,  # the published qualities saturate
        "mpeg4": None,
        "sampling": (2, 4, 8, 16, 32),
        "reverse_sampling": (2, 4, 8, 16, 32),
        "jumble": tuple(64 // 2**s for s in SEVERITIES)[::-1],  # published from the strongest to the weakest
        "box_jumble": tuple((s + 1) ** 2 for s in SEVERITIES)[::-1],  # likewise
        "freeze": ((0.4, 1), (0.2, 1), (0.1, 1), (0.05, 2), (0, 1)),
        "static_rotate": (7.5, 15, 30, 45, 90),
        "rotate": tuple(6 * s + 1 for s in SEVERITIES),
        "translate": tuple(8 * s for s in SEVERITIES),
    },
}
# The published severities of these are no order of strength: less and more color; corners that turn black, and a turn
# that leaves none.
UNORDERED = {"saturate", "static_rotate"}
SEED = 7


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_suite_has_the_published_corruptions_and_strengths(name):
    found = {one.name: one.strengths for one in CORRUPTIONS.values() if name in one.suites}
    assert found.keys() == PUBLISHED[name].keys()
    assert {key: found[key] for key, strengths in PUBLISHED[name].items() if strengths} == {
        key: strengths for key, strengths in PUBLISHED[name].items() if strengths
    }


def test_every_corruption_names_its_suites_and_has_five_severities():
    for one in CORRUPTIONS.values():
        assert one.suites
        assert set(one.suites) <= set(SUITES)
        assert len(one.strengths) == 5


def test_suites_are_chosen_by_their_names_or_one_by_one():
    assert len(suite("minikinetics-c")) == len(suite("minissv2-c")) == 12
    assert len(suite("schiappa-p")) == 18
    assert {one.name for one in suite("all")} == {*CORRUPTIONS, *(probe.name for probe in suite("probes"))}
    assert len(suite("probes")) == 5
    assert [one.name for one in suite("fog", "jumble", "fog")] == ["fog", "jumble"]
    with pytest.raises(UserError, match="suite 'snow': choose all, minikinetics-c"):
        suite("fog", "snow")


def _corrupted(one, clip, severity, seed=SEED):
    if one.stage == "order":
        return clip[one(np.arange(len(clip)), severity, seed)]
    return one(clip, severity, seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_0_is_the_identity_and_inputs_stay(name):
    (clip,) = varied_clips(1)
    kept, one = clip.copy(), CORRUPTIONS[name]
    assert (_corrupted(one, clip, 0) == kept).all()
    first, second = _corrupted(one, clip, 5), _corrupted(one, clip, 5)
    assert first.shape == clip.shape
    assert first.dtype == np.uint8
    assert (first == second).all()
    assert (clip == kept).all()
    with pytest.raises(UserError, match="severity 6: choose 0"):
        one(clip, 6, SEED)


def _strength(one, clips, severity):
    """Of codecs and pixels the mean squared error, of time the number of frames that are others."""
    seeds = [seed_of(f"{number}.mp4", one.name) for number in range(len(clips))]
    if one.stage != "order":
        pairs = [(clip, one(clip, severity, seed)) for clip, seed in zip(clips, seeds, strict=True)]
        errors = [float(((before - after.astype(np.float64)) ** 2).mean()) for before, after in pairs]
        return mean(10 * np.log10(error + 1e-3) for error in errors)  # less PSNR is more strength
    order = np.arange(96)
    return mean(int((one(order, severity, seed) != order).sum()) for seed in seeds)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in UNORDERED])
def test_strength_never_falls_with_severity_on_twenty_clips(name):
    clips, one = varied_clips(20), CORRUPTIONS[name]
    strengths = [_strength(one, clips, severity) for severity in (0, *SEVERITIES)]
    # of 96 frames: one of a reversed video that is held is in its place; a shuffled segment may be, by chance
    allowed = 1 if name in ("reverse_sampling", "box_jumble") else 0
    assert all(after >= before - allowed for before, after in itertools.pairwise(strengths)), strengths
    assert strengths[-1] > strengths[0]


def test_the_seed_is_of_the_file_and_the_corruption_not_of_the_folder():
    assert seed_of("/a/b/1.mp4", "fog") == seed_of("c/1.mp4", "fog")
    others = {seed_of("1.mp4", "fog"), seed_of("2.mp4", "fog"), seed_of("1.mp4", "rain"), seed_of("1.mp4", "fog", 1)}
    assert len(others) == 4
    assert seed_of("1.mp4", "fog") == 8409879992944046286  # the same on every machine


def test_severities_draw_apart_unless_they_are_nested():
    noise, loss = CORRUPTIONS["gaussian_noise"], CORRUPTIONS["drop_frames"]
    gray = np.full((1, 16, 16, 3), 128, np.uint8)
    weak, strong = (noise(gray, severity, SEED) > 128 for severity in (1, 5))
    assert 0.4 < (weak == strong).mean() < 0.6
    order = np.arange(200)
    kept = [set(loss(order, severity, SEED).tolist()) for severity in SEVERITIES]
    assert all(after < before for before, after in itertools.pairwise(kept))
