"""tools/calibrate.py on a small model: its figures are those that predict.py then reaches."""

import json

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.commands.test_train import assert_one_clear_line
from tests.models.test_models import SMALL
from tests.small import call_tool, make_videos

CLASSES = [f"class {label}" for label in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled videos and two checkpoints: one with three compressed grids, one with a single one."""
    folder = tmp_path_factory.mktemp("calibrate")
    make_videos(folder, count=10, num_classes=5)
    for name, grids in (("model", "[[1,1,1],[1,2,2],[2,4,4]]"), ("one", "[]")):
        cfg = load_config(None, [*SMALL, "MODEL.COMPRESSED_GRIDS", grids, "DATA.SAMPLING_RATE", "2",
                                 "DATA.PATH_TO_DATA_DIR", str(folder)])  # fmt: skip
        torch.manual_seed(3)
        save_checkpoint(folder / f"{name}.pt", cfg=cfg, classes=CLASSES, model=build_model(cfg))
    return folder


def calibrate(folder, *arguments, name="model"):
    return call_tool("tools/calibrate.py", "--checkpoint", folder / f"{name}.pt", "--workers", 0, *arguments)


def test_what_it_finds_is_what_prediction_then_reaches(folder, tmp_path):
    out = tmp_path / "x.json"
    done = calibrate(folder, "--check-list", folder / "test.csv", "--views", 2, "--drop", 100, "--out", out)
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert facts["calibration"] == facts["check"]  # the same videos in both lists
    assert facts["grids"] == [[1, 1, 1]]  # the cheapest, where all may be lost
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    best = max(point["top1"] for point in facts["calibration"]["curve"])
    done = calibrate(folder, "--accuracy", best, "--views", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert "10 videos are too few to detect a drop below 30.0 points" in done.stderr
    videos = [str(folder / f"{number}.mp4") for number in range(10)]
    answers = load_model(folder / "model.pt", "cpu").predict(videos, num_views=2, adaptive=out)
    right = sum(answer.label == f"class {number % 5}" for number, answer in enumerate(answers))
    assert facts["calibration"]["top1"] == best == 10 * right
    mean = sum(answer.gmacs for answer in answers) / 20
    assert facts["calibration"]["gmacs_per_view"] == pytest.approx(mean, rel=1e-3)


def test_it_writes_beside_the_checkpoint_and_reads_the_validation_list(folder):
    done = calibrate(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "model.adaptive.json").is_file()
    assert (folder / "model.adaptive.png").is_file()
    done = call_tool("tools/predict.py", "--checkpoint", folder / "model.pt", "--adaptive", folder, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "10 videos: mean" in done.stderr


@pytest.mark.parametrize(("name", "arguments", "parts"), [
    ("one", [], ["one.pt: it has one compressed grid, 1x2x2", "MODEL.COMPRESSED_GRIDS"]),
    ("model", ["--accuracy", 100, "--list", "{}/few.csv"], ["an accuracy of 100.00 %: the best"]),
    ("model", ["--list", "{}/none.csv"], ["none.csv", "cannot be read"]),
    ("model", ["--list", "{}/wrong.csv"], ["wrong.csv, line 2", "label 7 is out of range"]),
    ("model", ["--drop", -1], ["--drop: must be 0 to 100"]),
    ("missing", [], ["missing.pt", "No such file"]),
])  # fmt: skip
def test_mistakes_give_one_line(folder, name, arguments, parts):
    # The same video under every label: no model is always right.
    (folder / "few.csv").write_text("path,label\n" + "".join(f"0.mp4,{label}\n" for label in range(5)))
    (folder / "wrong.csv").write_text("path,label\n0.mp4,7\n")
    done = calibrate(folder, *[str(a).format(folder) for a in arguments], name=name)
    assert_one_clear_line(done, 2, *parts)
