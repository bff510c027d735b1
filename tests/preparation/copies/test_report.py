"""Copies in lists: which rows are noted, and what is said."""

import numpy as np
import pytest

from lookupvit_video.data.manifest import Video
from lookupvit_video.preparation.check import ListedVideo
from lookupvit_video.preparation.copies.fingerprint import fingerprint
from lookupvit_video.preparation.copies.report import check_copies, frozen_part
from lookupvit_video.preparation.inspect_file import FileReport
from tests.copies import copied, scene, store


def row(path, split):
    return ListedVideo(split, Video(path, 0), "a", FileReport(frames=50))


def check(rows, digests=()):
    check_copies(rows, dict(digests), processes=1, timeout=60, follow=lambda outcomes, total: outcomes)
    return [[problem.detail for problem in row.problems] for row in rows]


def test_a_re_encoded_cut_in_training_and_test(tmp_path):
    frames, other = scene(1, size=(64, 48), seconds=3), scene(2, size=(64, 48), seconds=3)
    train = [store(tmp_path / "a.mp4", frames), store(tmp_path / "b.mp4", other)]
    cut = store(tmp_path / "c.mp4", copied(frames, "trimmed", 1)[0], crf=28)
    twin = store(tmp_path / "d.mp4", other, crf=21)
    rows = [row(train[0], "train"), row(train[1], "train"), row(cut, "test"), row(twin, "val")]
    first, second, third, fourth = check(rows, {train[1]: "same bytes", twin: "same bytes"})
    assert (first, second, fourth) == ([], [], [])  # a held-out row is noted; the same bytes are another problem
    assert [text.split(":")[0] for text in third] == [f"of {train[0]} (train)"]


def test_copies_within_one_list(tmp_path):
    frames = scene(1, size=(64, 48), seconds=2)
    names = [store(tmp_path / name, frames, crf) for name, crf in (("a.mp4", 20), ("b.mp4", 28))]
    found = check([row(name, "all") for name in names])
    assert sorted(map(len, found)) == [0, 1]  # each pair once


def test_a_picture_that_stands_still(tmp_path):
    frames = scene(5, size=(64, 48), seconds=3)
    assert frozen_part(fingerprint(store(tmp_path / "a.mp4", frames))) is None
    frames[25:65] = frames[25]  # from 1.0 to 2.6 s
    path = store(tmp_path / "b.mp4", frames)
    assert frozen_part(fingerprint(path)) == pytest.approx((1.0, 2.6), abs=0.13)
    assert check([row(path, "all")])[0][0].startswith("the picture stands still from 1.")
    noisy = frames[:1].repeat(50, 0) + np.random.default_rng(0).integers(0, 12, (50, 48, 64, 3), dtype=np.uint8)
    assert frozen_part(fingerprint(store(tmp_path / "c.mp4", noisy))) is None  # a camera that sees nothing move
