"""Neighbors by direction."""

import numpy as np
import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.inference.features.extract import VideoFeatures
from lookupvit_video.inference.features.search import FeatureSearch
from lookupvit_video.inference.features.store import SavedFeatures

ABOUT = {"tokens": "pooled", "grid": "", "model": "abc"}


def saved(rows, about=ABOUT):
    rows = np.array(rows, np.float32)
    times = np.stack([np.arange(len(rows)), np.arange(len(rows)) + 0.5], 1).reshape(-1, 2)
    return SavedFeatures(about, [f"{row}.mp4" for row in range(len(rows))], times, rows)


def test_the_nearest_point_in_the_same_direction():
    search = FeatureSearch(saved([[1, 0], [0, 1], [10, 1], [-1, 0]]), ABOUT, "f.npy")
    query = VideoFeatures("q.mp4", np.array([[0, 1.25], [2, 3]]), np.array([[5, 0], [0, 0.1]], np.float32))
    first, second = search.nearest(query, 2)
    assert (first["path"], first["start"], first["end"]) == ("q.mp4", 0, 1.25)
    assert [(near["path"], near["start"]) for near in first["nearest"]] == [("0.mp4", 0), ("2.mp4", 2)]
    assert [near["similarity"] for near in first["nearest"]] == pytest.approx([1, 10 / 101**0.5], abs=1e-6)
    assert second["nearest"][0]["path"] == "1.mp4"
    assert len(search.nearest(query, 99)[0]["nearest"]) == 4


def test_features_of_another_model_are_refused():
    with pytest.raises(UserError, match=r"f.npy: its features have model abc, those looked for have xyz"):
        FeatureSearch(saved([[1, 0]]), {**ABOUT, "model": "xyz"}, "f.npy")
    with pytest.raises(UserError, match="its features have grid , those looked for have 1x1x1"):
        FeatureSearch(saved([[1, 0]]), {**ABOUT, "grid": "1x1x1"}, "f.npy")
    for rows in ([[[1, 0]]], []):
        with pytest.raises(UserError, match="a search needs pooled features"):
            FeatureSearch(saved(rows), ABOUT, "f.npy")
