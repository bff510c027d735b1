"""Fingerprints: what re-encoding, scale, bars and mirroring leave as it is."""

import numpy as np
import pytest

from lookupvit_video.preparation.copies.fingerprint import MIRROR, RATE, fingerprint, fingerprint_of_frames
from tests.copies import copied, scene, store


@pytest.fixture(scope="module")
def frames():
    return scene(3, size=(96, 64), seconds=2)


def seen(frames):
    return fingerprint_of_frames(frames[::3], RATE).frames.astype(float)


def test_a_mirrored_video_has_mirrored_signs(frames):
    np.testing.assert_allclose(seen(frames[:, :, ::-1])[0], seen(frames)[0] * MIRROR, atol=0.02)


@pytest.mark.parametrize("kind", ["rescaled", "letterboxed"])
def test_scale_and_bars_change_little(frames, kind):
    before, after = seen(frames), seen(copied(frames, kind, 3)[0])
    assert len(before) == 1
    assert len(after) == (2 if kind == "letterboxed" else 1)  # with the bars, and without
    assert np.corrcoef(before[0].ravel(), after[-1].ravel())[0, 1] > 0.99


def test_a_black_video_has_no_bars():
    assert fingerprint_of_frames(np.zeros((4, 48, 64, 3), np.uint8), RATE).frames.shape[:2] == (1, 4)


def test_frames_are_those_of_the_file(tmp_path, frames):
    found = fingerprint(store(tmp_path / "v.mp4", frames))
    assert (found.frames.shape[1], found.rate, found.seconds) == (16, RATE, 2.0)
    times = ((np.arange(16) + 0.5) / RATE * 25).astype(int)
    wanted = fingerprint_of_frames(frames[times], RATE).frames[0].astype(float)
    assert np.corrcoef(wanted.ravel(), found.frames[0].astype(float).ravel())[0, 1] > 0.99


def test_one_frame_is_enough(tmp_path, frames):
    assert fingerprint(store(tmp_path / "v.mp4", frames[:1])).frames.shape[1] == 2
