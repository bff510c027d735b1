"""Answers are kept, resumed, and refused where they are of another measurement."""

import shutil

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.corruptions.table import suite
from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.evaluation.evaluate import eval_loader
from lookupvit_video.evaluation.robustness import answers as module
from lookupvit_video.evaluation.robustness.answers import (
    CLEAN,
    Answering,
    Answers,
    answer_corrupted,
    open_folder,
    read_answers,
)
from tests.small import settings

CLASSES = ["class 0", "class 1", "class 2"]


def predict(clips, grid):
    """Probabilities of three classes that follow from the mean brightness, and from the grid."""
    bright = clips.float().mean((1, 2, 3, 4)) / 255
    logits = torch.stack([bright, 1 - bright, torch.full_like(bright, len(grid or ()) / 10)], -1)
    return (10 * logits).softmax(-1)


def loader_of(data, **changes):
    cfg = load_config("tests/small.yaml", settings(data, "", **changes))
    return eval_loader(cfg, read_manifest(data / "test.csv", CLASSES), World(0, 1, torch.device("cpu")), 1, 3)


@pytest.fixture
def broken(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "3.mp4").write_bytes(b"")
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_every_video_is_answered_at_each_severity_and_grid(broken, tmp_path, batch_size):
    corruptions = suite("brightness", "freeze")
    (tmp_path / "other").mkdir()
    models = [Answering(predict, tmp_path, [None, (1, 2, 2)]), Answering(predict, tmp_path / "other")]
    bad = answer_corrupted(models, loader_of(broken), corruptions, batch_size=batch_size, severities=(1, 5))
    assert [row for row, _ in bad] == [3]
    clean, brighter = read_answers(tmp_path, CLEAN), read_answers(tmp_path, corruptions[0])
    assert clean.predictions.shape == (1, 2, 9)
    assert brighter.confidences.shape == (2, 2, 9)
    assert (clean.predictions[..., 3] == -1).all()
    assert (brighter.confidences[..., 3] == 0).all()
    sample = loader_of(broken).dataset[5]
    for place, grid in enumerate((None, (1, 2, 2))):
        expected = predict(sample.clips, grid).mean(0)
        assert clean.predictions[0, place, 5] == expected.argmax()
        assert clean.confidences[0, place, 5] == pytest.approx(float(expected.max()))
    assert (read_answers(tmp_path / "other", corruptions[0]).confidences == brighter.confidences[:, :1]).all()
    assert not np.allclose(brighter.confidences[1], clean.confidences[0])


def test_what_is_answered_is_not_answered_again(data, tmp_path, monkeypatch):
    corruptions, seen = suite("brightness", "contrast"), []

    def counting(clips, grid):
        seen.append(len(clips))
        if len(seen) > 12:
            raise KeyboardInterrupt
        return predict(clips, grid)

    options = {"batch_size": 4, "severities": (2, 3, 4)}
    with pytest.raises(KeyboardInterrupt):
        answer_corrupted([Answering(counting, tmp_path)], loader_of(data), corruptions, **options)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["brightness.npz", "clean.npz"]
    seen.clear()
    answer_corrupted([Answering(counting, tmp_path)], loader_of(data), corruptions, **options)
    assert len(seen) == 9  # 3 batches x 3 severities of the second corruption
    whole = tmp_path / "whole"
    whole.mkdir()
    answer_corrupted([Answering(predict, whole)], loader_of(data), corruptions, **options)
    for name in ("clean", "brightness", "contrast"):
        assert (np.load(tmp_path / f"{name}.npz")["confidences"] == np.load(whole / f"{name}.npz")["confidences"]).all()


def test_answers_of_another_measurement_are_refused(tmp_path):
    open_folder(tmp_path, {"weights": "a", "grids": [(1, 2)]})
    open_folder(tmp_path, {"weights": "a", "grids": [(1, 2)]})
    with pytest.raises(UserError, match="holds answers with other weights; choose another --out"):
        open_folder(tmp_path, {"weights": "b", "grids": [(1, 2)]})
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: cannot be read"):
        open_folder(tmp_path, {})


def test_a_damaged_video_can_be_refused(data, tmp_path, monkeypatch):
    damaged = module._answer

    def with_damage(*arguments):
        return damaged(*arguments)._replace(damaged=[(2, "cut short")])

    monkeypatch.setattr(module, "_answer", with_damage)
    with pytest.raises(RunFailure, match=r"2\.mp4: damaged: cut short"):
        answer_corrupted([Answering(predict, tmp_path)], loader_of(data), [], batch_size=4, refuse_damaged=True)
    answer_corrupted([Answering(predict, tmp_path)], loader_of(data), [], batch_size=4)


def test_an_unread_video_is_never_right():
    answers = Answers(np.array([[[0, -1, 2]]]), np.zeros((1, 1, 3)))
    assert answers.right(np.array([0, 1, 1])).tolist() == [[[True, False, False]]]
