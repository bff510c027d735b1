"""`lookupvit probe`, from lists and weights to a checkpoint."""

import json

import torch

from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.inference.predictor import load_model
from tests.models.vits import saved
from tests.small import call_tool, settings


def run(folder, data, *arguments, **changes):
    words = settings(data, folder, **changes)
    return call_tool("tools/probe.py", "--cfg", "tests/small.yaml", *arguments, *words)


def test_a_probe_writes_the_best_rate(data, tmp_path):
    from lookupvit_video.config import load_config
    from lookupvit_video.models.build import build_model

    torch.manual_seed(0)
    source = build_model(load_config("tests/small.yaml", settings(data, tmp_path)))
    weights = saved(tmp_path / "weights.pt", source)
    wanted = ("--rates", 5, "--epochs", 30, "--json", tmp_path / "p.json")
    done = run(tmp_path / "out", data, *wanted, MODEL__INIT_FROM=weights)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "p.json").read_text())
    assert len(found["rates"]) == len(found["top1"]) == 5
    assert found["best"] in found["rates"]
    assert max(found["top1"]) > 50  # the lists are the same videos
    model = load_checkpoint(tmp_path / "out" / "model.pt").model
    for name, value in source.state_dict().items():
        assert torch.equal(model[name], value) == (not name.startswith("heads.")), name
    assert load_model(tmp_path / "out" / "model.pt").classes[0] == "class 0"


def test_without_weights_there_is_nothing_to_probe(data, tmp_path):
    done = run(tmp_path / "out", data)
    assert done.returncode == 2
    assert "MODEL.INIT_FROM is empty; name the weights to probe" in done.stderr
