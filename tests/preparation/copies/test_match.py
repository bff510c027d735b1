"""Copies are found, with where they begin, at which speed and mirrored or not; other videos are not."""

import numpy as np
import pytest

from lookupvit_video.preparation.copies.fingerprint import RATE, Fingerprint, fingerprint_of_frames
from lookupvit_video.preparation.copies.match import LIKE, compare, find_copies
from tests.copies import COPIES, copied, scene

KINDS = [kind for kind in COPIES if not kind.startswith("quality")]  # the codec's part is in test_report.py


def printed(frames):
    at = (np.arange(int(len(frames) / 25 * RATE)) + 0.5) / RATE * 25
    return fingerprint_of_frames(frames[at.astype(int)], RATE)


@pytest.fixture(scope="module")
def scenes():
    return {str(seed): scene(seed, size=(64, 48), seconds=4) for seed in range(8)}


@pytest.fixture(scope="module")
def known(scenes):
    return {name: printed(frames) for name, frames in scenes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_copy_is_found_and_nothing_else(scenes, known, kind):
    asked = {f"{name} {kind}": printed(copied(frames, kind, int(name))[0]) for name, frames in scenes.items()}
    found = [(name, other) for matches in find_copies(asked, known) for name, other, _ in matches]
    assert sorted(found) == sorted((name, name.split()[0]) for name in asked)


def test_how_a_copy_differs(scenes):
    frames = scenes["1"]
    copy = frames[25:85, :, ::-1]
    copy = copy[(np.arange(50) * 1.2).astype(int)]  # from second 1 on, faster
    match = compare(printed(frames), printed(copy))
    assert match.likeness > LIKE
    assert match.mirrored
    assert match.start == pytest.approx(1, abs=0.15)
    assert match.speed == pytest.approx(1.2, abs=0.05)
    assert str(match).startswith(f"likeness {match.likeness:.2f}, begins at its {match.start:.1f} s, ")
    assert str(match).endswith(f"{match.speed:.2f} times as fast, mirrored")


def test_a_video_is_not_compared_with_itself(known):
    assert [matches for matches in find_copies(known, known) if matches] == []


def test_still_videos_are_alike_by_what_is_seen():
    draw = np.random.default_rng(0)
    one, two = draw.normal(size=(2, 1, 1, 99)).repeat(16, 2).astype(np.float16)
    noise = draw.normal(0, 0.0004, size=one.shape)
    assert compare(Fingerprint(one, RATE), Fingerprint(one + noise, RATE)).likeness > 0.95
    assert compare(Fingerprint(one, RATE), Fingerprint(two, RATE)).likeness < 0.5
