"""Logits of each view, of the videos that could be read."""

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.loader import build_eval_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.evaluation.evaluate import predict_clips
from lookupvit_video.evaluation.view_logits import view_logits
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import write_video

CPU = torch.device("cpu")


@pytest.mark.parametrize("multi_label", [False, True])
def test_logits_of_the_views_of_videos_that_can_be_read(tmp_path, multi_label):
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    names = ["0.mp4", "bad.mp4", "1.mp4", "2.mp4"]
    videos = [Video(str(tmp_path / name), row, labels=(row, 0) if multi_label else None)
              for row, name in enumerate(names)]  # fmt: skip
    task = "multi_label" if multi_label else "single_label"
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2", "MODEL.COMPRESSED_GRIDS", "[[1,1,1],[1,2,2]]",
                             "MODEL.TASK", task, "TEST.BATCH_SIZE", "3", "DATA_LOADER.NUM_WORKERS", "0"])  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    options = {"mean": cfg.DATA.MEAN, "std": cfg.DATA.STD, "precision": "float32"}
    loader = build_eval_loader(cfg, videos, num_views=2, num_crops=1)
    found = view_logits(model, loader, videos, CPU, num_classes=5, multi_label=multi_label, grids=[(1, 1, 1), None],
                        **options)  # fmt: skip
    assert [row for row, _ in found.bad] == [1]
    assert found.logits[None].shape == (3, 2, 5)
    expected = np.array([[0], [2], [3]]) == np.arange(5)
    expected[:, 0] |= multi_label
    assert np.array_equal(found.labels, expected if multi_label else [0, 2, 3])
    (batch, *_) = build_eval_loader(cfg, videos[2:3], num_views=2, num_crops=1)
    for grid in (None, (1, 1, 1)):
        shares = predict_clips(model, batch.clips, CPU, grid=grid, **options)
        torch.testing.assert_close(torch.from_numpy(found.logits[grid][1]).softmax(-1), shares)
    assert found.uniform.min() >= 0
