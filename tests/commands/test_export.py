import json

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.export.export import example_clips
from lookupvit_video.inference.export.formats import load_exported
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import call_tool, make_videos

TOOL = "tools/export.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    settings = "MODEL.NUM_CLASSES 3 DATA_LOADER.NUM_WORKERS 0 MODEL.COMPRESSED_GRIDS [[1,2,2],[2,3,3]]".split()
    cfg = load_config(None, [*SMALL, *settings])
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, cfg=cfg, classes=["class 0", "class 1", "class 2"], model=build_model(cfg))
    return path


def test_a_program_its_description_and_its_accuracy(checkpoint, tmp_path):
    make_videos(tmp_path / "data", count=3)
    done = call_tool(
        TOOL, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--int8", "--list", tmp_path / "data" / "test.csv"
    )
    assert done.returncode == 0, done.stderr
    files = {"model.json", "model.pt2", "reference.py", "test_long.mp4", "test_short.mp4"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (facts["weights"], facts["float_layers"]) == ("int8", [])
    program = facts["files"]["model.pt2"]
    line = f"{program['size_ratio']:.2f} of the float weights' size, {program['speed_up']:.2f} times as fast"
    assert line in done.stdout
    assert ("size only" in done.stdout) == (program["speed_up"] < 1.2)
    assert "int8: linear layers in float: none, and the classifiers" in done.stdout
    assert facts["files"]["model.pt2"]["max_difference"] < 1e-4
    assert facts["accuracy"]["videos"] == 3
    assert f"float32: {facts['accuracy']['float32']:.2f} % top-1 on 3 videos" in done.stdout
    assert f"int8:    {facts['accuracy']['int8']:.2f} %, a change of" in done.stdout


def test_a_grid_and_a_fixed_batch(checkpoint, tmp_path):
    done = call_tool(TOOL, "--checkpoint", checkpoint, "--out", tmp_path, "--grid", "2x3x3", "--batch", 3)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["input"]["shape"] == [3, 3, 4, 32, 32]
    assert facts["compressed_grid"] == "2x3x3"
    model = load_model(checkpoint, "cpu")
    clips = example_clips(model, 3, seed=5)
    answers = load_exported(tmp_path / "model.pt2", "pt2")(clips)
    torch.testing.assert_close(answers, model.predict_clips(clips, (2, 3, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "4x4x4"], "--grid 4x4x4: this model was made with 1x2x2, 2x3x3"),
        (["--batch", "0"], "--batch: must be at least 1"),
        (["--list", "no.csv"], "no.csv: the list of videos cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_line(checkpoint, tmp_path, options, message):
    done = call_tool(TOOL, "--checkpoint", checkpoint, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
