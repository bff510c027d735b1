"""Answers without a model: by hand on numbers, and of a run's own lists."""

import json
import shutil

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.studies.baselines import Baselines, motion_energy, neighbors_top1, table_of
from tests.small import call_tool, settings


def test_motion_energy_by_hand():
    clips = torch.zeros(2, 3, 4, 2, 2, dtype=torch.uint8)
    clips[0, :, 2:] = 40  # one change, from the second frame to the third
    mean, deviation, most, when = motion_energy(clips)[0].tolist()
    assert (mean, most, when) == (pytest.approx(40 / 3), 40, pytest.approx(1 / 3))
    assert deviation == pytest.approx(np.std([0, 40, 0]))
    assert motion_energy(clips)[1].tolist() == [0, 0, 0, 0]
    assert motion_energy(clips[:, :, 1:3])[0].tolist() == [40, 0, 40, 0]  # two frames have one change


def test_the_majority_of_five_answers_and_the_nearest_decides():
    train = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [100, 0]])
    labels = np.array([2, 1, 1, 0, 0, 2])
    assert neighbors_top1(train, labels, np.array([[0.0, 0]]), np.array([1])) == 100  # 1 and 0 twice each, 1 is nearer
    assert neighbors_top1(train, labels, np.array([[4.0, 0], [0, 0]]), np.array([0, 2])) == 50
    across = np.array([[0.0, y] for y in (-1000, -500, 0, 500, 1000)] + [[10.0, y] for y in (-2, -1, 0, 1, 2)])
    sides = np.array([0] * 5 + [1] * 5)  # numbers count alike, whatever their unit
    assert neighbors_top1(across, sides, np.array([[0.0, 3]]), np.array([0])) == 100


def test_the_table_has_the_mean():
    table = table_of({"a": Baselines(10, 40.0, 60.0, 80.0), "b": Baselines(12, 50.0, 50.0, 90.0)})
    assert table.splitlines()[-1] == "| mean | 11 | 45.0 | 55.0 | 85.0 |"


def test_a_run_is_compared_on_its_own_lists(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for split, rows in (("train", [0, 3, 6, 1]), ("test", [0, 3, 4, 7])):  # videos of class number % 3
        lines = ["path,label", *(f"{row}.mp4,{row % 3}" for row in rows)]
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "data" / "7.mp4").write_bytes(b"no video")
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = load_config("tests/small.yaml", settings(tmp_path / "data", folder))
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "test_results.json").write_text(json.dumps({"top1": 75.0, "videos": 4, "views": "1x1"}))
    (folder / "log.jsonl").write_text("")
    done = call_tool("lookupvit_video/__main__.py", "baselines", folder)
    assert done.returncode == 0, done.stderr
    name, videos, largest, motion, model = done.stdout.splitlines()[2].strip("| ").split(" | ")
    assert (name, videos, largest, motion, model) == ("run", "4", "50.0", "50.0", "75.0")  # class 0 is the largest
    one_frame = {"DATA__NUM_FRAMES": 1, "MODEL__TUBELET": "[1,8,8]", "MODEL__COMPRESSED_GRID": "[1,2,2]"}
    for changed, message in (
        ({"MODEL__TASK": "multi_label"}, "MODEL.TASK is multi_label; the answers without a model are of one class"),
        (one_frame, "DATA.NUM_FRAMES is 1; motion energy is what changes between two frames"),
    ):
        cfg = load_config("tests/small.yaml", settings(tmp_path / "data", folder, **changed))
        (folder / "config.yaml").write_text(cfg.dump())
        done = call_tool("lookupvit_video/__main__.py", "baselines", folder)
        assert done.returncode == 2
        assert message in done.stderr
