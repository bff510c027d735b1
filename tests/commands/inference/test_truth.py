"""Several change costs on one list: the windows are read once, and the best is written."""

import json
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest

from lookupvit_video.commands.inference.truth import score_list
from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.inference.timeline import Timeline


@pytest.fixture
def flickering(monkeypatch):
    """A class for five seconds, then another; a window of each is wrong. Returns the paths that were read."""
    rows = np.full((10, 2), [0.7, 0.3], np.float32)
    rows[5:] = rows[5:, ::-1]
    rows[[2, 7]] = rows[[7, 2]]
    paths: list[str] = []

    def read(predictor, path, **options):
        paths.append(path)
        if path.endswith("damaged.mp4"):
            raise DecodeError(path, "is damaged")
        return Timeline(path, 10.0, 1.0, np.arange(10.0), rows, predictor.classes)

    monkeypatch.setattr("lookupvit_video.inference.timeline.read_timeline", read)
    return paths


def arguments(truth, *change_cost, **others):
    return Namespace(
        truth=truth, stride=None, window=None, batch_size=1, change_cost=list(change_cost), min_probability=0.0, topk=2,
        background="background", **{"json": None, "hard_negatives": None, **others},
    )  # fmt: skip


PREDICTOR = SimpleNamespace(classes=["a", "b"], multi_label=False)


def test_the_best_of_several_change_costs_is_written(flickering, tmp_path, capsys):
    truth = tmp_path / "truth.csv"
    truth.write_text("path,label,start,end\nx.mp4,a,0,5\nx.mp4,b,5,10\n")
    assert score_list(PREDICTOR, arguments(truth, 0.0, 2.0, 50.0, json=tmp_path / "t.json")) == 0
    facts = json.loads((tmp_path / "t.json").read_text())
    assert len(flickering) == 1
    f1 = {cost: its["segment_f1"] for cost, its in facts["change_costs"].items()}
    assert f1 == pytest.approx({"0": 0.0, "2": 100.0, "50": 66.67})  # six segments, two, one of the whole
    assert facts["change_cost"] == 2.0
    assert facts["metrics"] == facts["change_costs"]["2"]
    assert [segment["label"] for segment in facts["timelines"][0]["segments"]] == ["a", "b"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["change", "cost", "0", "2", "50"]
    assert lines[-1] == "highest segment F1: --change-cost 2"


def test_what_a_damaged_video_shows_is_missed(flickering, tmp_path, capsys):
    truth = tmp_path / "truth.csv"
    truth.write_text("path,label,start,end\nx.mp4,a,0,5\nx.mp4,b,5,10\ndamaged.mp4,a,0,\n")
    assert score_list(PREDICTOR, arguments(truth, 2.0, json=tmp_path / "t.json")) == 1
    facts = json.loads((tmp_path / "t.json").read_text())
    assert "change_costs" not in facts
    assert facts["metrics"]["segment_f1"] == pytest.approx(80)  # two found, three true
    assert "is damaged" in capsys.readouterr().err
