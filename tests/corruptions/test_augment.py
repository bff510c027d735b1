import itertools
import random

import pytest
import torch

from lookupvit_video.corruptions.augment import CHOICES, RandomCorruption, between
from lookupvit_video.corruptions.table import CORRUPTIONS
from lookupvit_video.errors import UserError

CLIP = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_strengths_lie_between_neighbors_and_are_never_tested_ones():
    tested = {strength for one in CORRUPTIONS.values() for strength in one.strengths}
    for name in CHOICES:
        strengths = CORRUPTIONS[name].strengths
        for low, high in itertools.pairwise(strengths):
            for share in (0.25, 0.4, 0.75):
                found = between(low, high, share)
                assert found not in tested
                pairs = zip(low, found, high, strict=True) if isinstance(low, tuple) else [(low, found, high)]
                assert all(min(a, c) <= b <= max(a, c) for a, b, c in pairs)


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_changes_a_clip_and_follows_from_pythons_random_state(name):
    random.seed(3)
    first = RandomCorruption([name], 1.0)(CLIP)
    random.seed(3)
    second = RandomCorruption([name], 1.0)(CLIP)
    assert first.shape == CLIP.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, CLIP)


def test_a_share_of_the_clips_is_corrupted():
    random.seed(0)
    augment = RandomCorruption(["gaussian_noise", "contrast"], 0.3)
    changed = sum(augment(CLIP) is not CLIP for _ in range(300))
    assert 60 < changed < 120


def test_names_are_checked():
    with pytest.raises(UserError, match=r"AUG\.CORRUPTIONS: 'jpeg': choose from shot_noise, contrast"):
        RandomCorruption(["contrast", "jpeg"], 0.5)
