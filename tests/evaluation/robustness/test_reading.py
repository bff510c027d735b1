"""Corrupted clips: the same bytes for any number of workers, batch size and decoder; severity 0 is the test's clip."""

import hashlib
import shutil

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.corruptions.table import CORRUPTIONS
from lookupvit_video.data.loader import Loader
from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.distributed.world import World
from lookupvit_video.evaluation.evaluate import eval_loader
from lookupvit_video.evaluation.robustness.reading import CorruptedVideos, _reordered
from tests.small import settings
from tests.videos import read_number

CLASSES = ["class 0", "class 1", "class 2"]
ONE_A_STAGE = ["gaussian_noise", "packet_loss", "freeze", "motion_blur"]


def plain_of(data, views=2, **changes):
    cfg = load_config("tests/small.yaml", settings(data, "", **changes))
    videos = read_manifest(data / "test.csv", CLASSES)
    return eval_loader(cfg, videos, World(0, 1, torch.device("cpu")), views, 3).dataset


def corrupted(data, names=ONE_A_STAGE, severities=(0, 2, 5), **changes):
    return CorruptedVideos(plain_of(data, **changes), [(CORRUPTIONS[name], severities) for name in names])


def digest(samples):
    found = {}
    for sample in samples:
        found[sample.index] = hashlib.sha1(np.ascontiguousarray(sample.clips.numpy()).tobytes()).hexdigest()
    return found


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_0_gives_the_clips_of_the_test(data, name):
    plain = plain_of(data)
    videos = CorruptedVideos(plain, [(CORRUPTIONS[name], (0, 5))])
    sample, expected = videos[0, 4], plain[4]
    assert sample.clips.shape == (12, 3, 4, 32, 32)  # 2 severities x 2 views x 3 crops
    assert torch.equal(sample.clips[:6], expected.clips)
    assert not torch.equal(sample.clips[6:], expected.clips) or name == "box_jumble"  # one segment
    assert (sample.labels[0], sample.index, sample.error) == (1, 4, "")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bytes_for_any_number_of_workers(data, workers):
    videos = corrupted(data)
    keys = [[(number, row) for row in (8, 1, 4)] for number in range(4)]
    alone = [torch.cat([videos[key].clips for key in part]) for part in keys]
    loader = Loader(videos, keys, workers=workers, prefetch=2, timeout=60, pin_memory=False)
    assert [torch.equal(batch.clips, clips) for batch, clips in zip(loader, alone, strict=True)] == [True] * 4


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_the_same_bytes_with_each_decoder_and_wherever_the_file_is(data, tmp_path, backend):
    folder = tmp_path / "elsewhere"
    shutil.copytree(data, folder)
    keys = [(number, row) for number in range(4) for row in (0, 3)]
    first = [corrupted(data)[key].clips for key in keys]
    other = corrupted(folder, DATA__DECODING_BACKEND=backend)
    assert all(torch.equal(clips, other[key].clips) for key, clips in zip(keys, first, strict=True))


def test_time_is_corrupted_in_the_frames_of_the_file(data):
    with open_video(data / "2.mp4") as reader:
        seconds = reader.times[[0, 3, 5, 11]][None]
        numbers = [
            [read_number(frame) for frame in _reordered(reader, seconds, CORRUPTIONS["sampling"], severity, 0)]
            for severity in (0, 2)
        ]
    assert numbers == [[200, 203, 205, 211], [200, 200, 204, 208]]


def test_a_bad_video_is_reported_and_a_damaged_one_skipped(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "3.mp4").write_bytes(b"")
    videos = corrupted(folder)
    sample = videos[1, 3]
    assert "3.mp4: is empty" in sample.error
    assert sample.clips.shape == (18, 3, 4, 32, 32)
    assert not sample.clips.any()
