"""A run whose list is small trains a probe on cached features, then tests it."""

import json

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from lookupvit_video.training.finetuning.cached_probe import Probed
from tests.models.vits import saved
from tests.small import call_tool, run_net, settings


@pytest.fixture
def weights(data, tmp_path):
    torch.manual_seed(0)
    return saved(tmp_path / "weights.pt", build_model(load_config("tests/small.yaml", settings(data, tmp_path))))


def test_a_small_list_trains_a_probe_and_is_tested(data, tmp_path, weights):
    folder = tmp_path / "out"
    words = settings(data, folder, MODEL__INIT_FROM=weights, TRAIN__FINETUNE="auto")
    done = run_net(words)
    assert done.returncode == 0, done.stderr
    assert "fine-tuning: probe, as there are 3 training videos a class, fewer than" in done.stderr
    model = load_checkpoint(folder / "model.pt")
    assert (model.config.TRAIN.FINETUNE, model.config.MODEL.FREEZE_ENCODER) == ("probe", True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    scores = [line["top1"] for line in lines if line["kind"] == "probe"]
    assert len(scores) == 20
    results = json.loads((folder / "test_results.json").read_text())
    assert results["top1"] == pytest.approx(max(scores), abs=0.01)  # the lists are the same videos
    again = call_tool("tools/run_net.py", "--cfg", folder / "config.yaml", "OUTPUT_DIR", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for name, value in load_checkpoint(tmp_path / "again" / "model.pt").model.items():
        assert torch.equal(value, model.model[name]), name


def test_a_dry_run_of_a_probe_writes_nothing(data, tmp_path, weights):
    words = settings(data, tmp_path / "out", MODEL__INIT_FROM=weights, TRAIN__FINETUNE="probe", TRAIN__BATCH_SIZE=64)
    done = call_tool("tools/run_net.py", "--cfg", "tests/small.yaml", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    assert "steps      none: features of all clips once" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_probe_needs_a_validation(data, tmp_path, weights):
    words = settings(data, tmp_path / "out", MODEL__INIT_FROM=weights, TRAIN__FINETUNE="probe", TRAIN__EVAL_PERIOD=0)
    done = run_net(words)
    assert done.returncode == 2
    assert "TRAIN.EVAL_PERIOD is 0, but validation chooses a probe's learning rate; set it to 1" in done.stderr


def test_the_ratio_counts_the_features():
    assert Probed([1.0], [50.0], 1.0, 8, features_seconds=8.0, seconds=4.0, one_rate_seconds=2.0).ratio == 1.2
    assert Probed([1.0], [50.0], 1.0, 8, features_seconds=8.0, seconds=4.0).ratio is None
