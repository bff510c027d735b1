"""The video processor: files by the rules of the test, and frames that are there already."""

import numpy as np
import pytest
import torch

from lookupvit_video import load_model
from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.hf import LookupViTVideoProcessor
from lookupvit_video.inference.views import read_views
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import write_video


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    cfg = load_config(None, [*SMALL, "TEST.NUM_ENSEMBLE_VIEWS", "2", "TEST.NUM_SPATIAL_CROPS", "3"])
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=list("abcde"), model=build_model(cfg))
    predictor = load_model(folder / "model.pt", "cpu")
    predictor.save_pretrained(folder / "saved")
    return predictor, LookupViTVideoProcessor.from_pretrained(folder / "saved")


def test_a_file_gives_the_clips_of_the_test(saved, tmp_path):
    predictor, processor = saved
    videos = [write_video(tmp_path / f"{i}.mkv", frames=20, size=(64, 40 + 8 * i)) for i in range(2)]
    pixels_BVTCHW = processor(videos)["pixel_values"]
    for video, pixels_VTCHW in zip(videos, pixels_BVTCHW, strict=True):
        clips = torch.from_numpy(read_views(video, predictor.plan).clips)
        torch.testing.assert_close(pixels_VTCHW.transpose(1, 2), predictor.inputs(clips), rtol=0, atol=1e-5)
    torch.testing.assert_close(processor(videos[0])["pixel_values"], pixels_BVTCHW[:1])


def test_frames_become_one_view_a_crop(saved):
    _, processor = saved
    frames = np.random.default_rng(0).integers(0, 256, (7, 40, 64, 3), dtype=np.uint8)
    pixels = processor(frames)["pixel_values"]
    assert pixels.shape == (1, 3, 4, 3, 32, 32)
    torch.testing.assert_close(processor(list(frames[[0, 2, 4, 6]]))["pixel_values"], pixels)
    several = processor([frames, frames[::-1]])["pixel_values"]
    torch.testing.assert_close(several[:1], pixels)
    torch.testing.assert_close(several[1].flip(1), pixels[0])


@pytest.mark.parametrize("frames", [np.zeros((4, 40, 64, 3)), np.zeros((4, 40, 64), np.uint8)])
def test_frames_of_another_kind_are_refused(saved, frames):
    with pytest.raises(ValueError, match="uint8"):
        saved[1](frames)
