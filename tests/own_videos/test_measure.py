"""Which clips are read to predict what reading costs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import Video
from lookupvit_video.own_videos import measure as module
from tests.small import ROOT, settings


def clips_read(monkeypatch, videos):
    """Measure with a data set that only notes what is asked of it: (draw, row)."""
    asked = list[tuple[int, int]]()
    loader = SimpleNamespace(dataset=SimpleNamespace(__getitem__=asked.append))
    monkeypatch.setattr(module, "build_train_loader", lambda *_, **__: loader)
    cfg = load_config(ROOT / "tests/small.yaml", settings(Path("data"), Path("run")))
    module.measure(cfg, [Video(f"{i}.mp4", 0) for i in range(videos)], torch.device("cpu"))
    return asked


@pytest.mark.parametrize("videos", [1, 3, 16])
def test_few_videos_are_read_several_times(monkeypatch, videos):
    """The cost of a clip varies within a long video, by its distance from a key frame."""
    asked = clips_read(monkeypatch, videos)
    rows = sorted({row for _, row in asked})
    assert len(rows) == min(videos, module.VIDEOS)
    assert [row for draw, row in asked if draw == 0] == rows  # each video once for the first time
    assert len(set(asked)) == len(asked) == len(rows) + module.VIDEOS
    assert len({draw for draw, row in asked if row == rows[0]}) == 1 + -(-module.VIDEOS // len(rows))


def test_reading_ends_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(module, "READING", 0)
    assert clips_read(monkeypatch, 3) == [(0, 0), (1, 0)]
