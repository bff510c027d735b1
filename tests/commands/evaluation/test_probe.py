"""`lookupvit probe`, from lists and weights to a checkpoint."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.distributed.world import World
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from lookupvit_video.processes.stop_signals import Stopped
from tests.models.vits import saved
from tests.small import call_tool, settings


def run(folder, data, *arguments, **changes):
    words = settings(data, folder, **changes)
    return call_tool("tools/probe.py", "--cfg", "tests/small.yaml", *arguments, *words)


def test_a_probe_writes_the_best_rate(data, tmp_path):
    torch.manual_seed(0)
    source = build_model(load_config("tests/small.yaml", settings(data, tmp_path)))
    weights = saved(tmp_path / "weights.pt", source)
    wanted = ("--rates", 5, "--epochs", 30, "--time", "--json", tmp_path / "p.json")
    done = run(tmp_path / "out", data, *wanted, MODEL__INIT_FROM=weights)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "p.json").read_text())
    assert len(found["rates"]) == len(found["top1"]) == 5
    assert found["best"] in found["rates"]
    assert max(found["top1"]) > 50  # the lists are the same videos
    times = [found[name] for name in ("features_seconds", "seconds", "one_rate_seconds")]
    assert found["ratio"] == pytest.approx((times[0] + times[1]) / (times[0] + times[2]))
    assert f"all rates take {found['ratio']:.3f} times as long with the features" in done.stderr
    model = load_checkpoint(tmp_path / "out" / "model.pt").model
    for name, value in source.state_dict().items():
        assert torch.equal(model[name], value) == (not name.startswith("heads.")), name
    assert load_model(tmp_path / "out" / "model.pt").classes[0] == "class 0"


def test_clips_that_cannot_be_read_are_counted(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "3.mp4").write_bytes(b"no video")
    torch.manual_seed(0)
    folder = tmp_path / "out"
    source = build_model(load_config("tests/small.yaml", settings(tmp_path / "data", folder)))
    weights = saved(tmp_path / "weights.pt", source)
    done = run(folder, tmp_path / "data", "--rates", 1, "--epochs", 1, MODEL__INIT_FROM=weights)
    assert done.returncode == 0, done.stderr
    assert "train: 1 of 9 clips cannot be read and are left out" in done.stderr


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("lookupvit_video.distributed.world.init_world", lambda *_: World(0, 2, torch.device("cpu")))
    monkeypatch.setattr("lookupvit_video.training.output.sole_writer", lambda *_: nullcontext())
    done = run(tmp_path / "out", data, MODEL__INIT_FROM="x.pt")
    assert done.returncode == 2
    assert "2 processes: a probe needs all features in one; start it without torchrun" in done.stderr


def test_ctrl_c_ends_with_its_exit_code(data, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Stopped("stopped by SIGINT; nothing was kept", interrupted=True)

    monkeypatch.setattr("lookupvit_video.training.finetuning.cached_probe.train_probe", stop)
    done = run(tmp_path / "out", data, MODEL__INIT_FROM="x.pt")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "probe.py: stopped by SIGINT; nothing was kept"


def test_without_weights_there_is_nothing_to_probe(data, tmp_path):
    done = run(tmp_path / "out", data)
    assert done.returncode == 2
    assert "MODEL.INIT_FROM is empty; name the weights to probe" in done.stderr
