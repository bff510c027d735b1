"""Runs of pre-training: what they log and draw, what they resume from, and what starts from their result."""

import signal
import sys
import time

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import checkpoint_path, load_checkpoint, training_checkpoints
from lookupvit_video.config import load_config, with_settings
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.distributed.world import World
from lookupvit_video.log import read_json_lines
from lookupvit_video.training.train import train
from tests.small import call_tool, run_net, settings, started
from tests.training.test_resume import equal

COMMON = {
    "TEST__ENABLE": False, "SOLVER__EMA_DECAY": 0.9, "MODEL__COMPRESSED_GRIDS": "[[1,2,2],[2,2,2]]",
    "TRAIN__CHECKPOINT_STEPS": 1, "TRAIN__KEEP_CHECKPOINTS": 9, "DATA__TRAIN_LIST": ".", "DATA__SAMPLER": "shuffled",
}  # fmt: skip
MASKED = {**COMMON, "TRAIN__TASK": "masked", "PRETRAIN__DECODER_WIDTH": 16, "PRETRAIN__DECODER_DEPTH": 1}
MOVING = {**COMMON, "TRAIN__TASK": "moving", "TRAIN__BATCH_SIZE": 8, "AUG__NUM_SAMPLE": 2, "DATA__RANDOM_FLIP": False}


@pytest.fixture(scope="module", params=[MASKED, MOVING], ids=["masked", "moving"])
def options(request):
    """The settings of a run of either task."""
    return request.param


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory, options):
    """The folder of a run on a folder of videos."""
    folder = tmp_path_factory.mktemp("pretrained")
    done = run_net(settings(data, folder, **options))
    assert done.returncode == 0, done.stderr
    return folder


def test_accuracy_of_the_features_and_their_rank_are_logged(pretrained):
    first, second = read_json_lines(pretrained / "log.jsonl", "val")
    assert (first["epoch"], second["epoch"], second["videos"]) == (1, 2, 9)
    assert {"knn", "probe"} <= second.keys()
    assert 2 < second["rank"] <= 9
    for picture in ("reconstruction.png", "curves.png"):
        assert (pretrained / picture).stat().st_size > 5000


def test_kill_9_and_resume_equals_undisturbed_to_the_bit(data, pretrained, options, tmp_path):
    overrides = settings(data, tmp_path, **options)
    with started([sys.executable, "tools/run_net.py", "--cfg", "tests/small.yaml", *overrides]) as process:
        while process.poll() is None and not training_checkpoints(tmp_path):
            time.sleep(0.001)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert load_checkpoint(training_checkpoints(tmp_path)[0]).step < 4
    done = run_net(overrides)
    assert done.returncode == 0, done.stderr
    assert "resume: " in done.stderr
    one, other = (load_checkpoint(checkpoint_path(folder, 4)) for folder in (pretrained, tmp_path))
    assert any(name.startswith("decoder.") for name in one.model)
    for part in ("model", "optimizer", "ema"):
        assert equal(getattr(one, part), getattr(other, part)), part
    result = load_checkpoint(pretrained / "model.pt").model  # is of the averaged weights
    assert all(equal(value, one.ema[f"encoder.{name}"]) for name, value in result.items())
    assert not all(equal(value, one.model[f"encoder.{name}"]) for name, value in result.items())


@pytest.mark.parametrize("rows", ["{0}.mp4", "{0}.mp4,somebody's note"])
def test_any_list_of_paths_trains_as_the_folder_does(data, pretrained, options, tmp_path, rows):
    (tmp_path / "list.csv").write_text("".join(f"{data}/{rows.format(number)}\n" for number in range(9)))
    cfg = load_config("tests/small.yaml", settings(data, tmp_path / "out", **options))
    cfg = with_settings(cfg, {"DATA.TRAIN_LIST": str(tmp_path / "list.csv"), "TRAIN.EVAL_PERIOD": 0})
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    train(cfg, load_classes(cfg), World(0, 1, torch.device("cpu")))
    of_list, of_folder = (
        [line["loss"] for line in read_json_lines(folder / "log.jsonl", "train")]
        for folder in (tmp_path / "out", pretrained)
    )
    assert of_list == of_folder
    assert len(of_list) == 4


def test_fine_tuning_starts_from_the_result(data, pretrained, tmp_path):
    source = load_checkpoint(pretrained / "model.pt")
    changes = {"MODEL__INIT_FROM": pretrained / "model.pt", "SOLVER__BASE_LR": 0, "SOLVER__COSINE_END_LR": 0}
    done = run_net(settings(data, tmp_path, SOLVER__WARMUP_START_LR=0, SOLVER__WARMUP_EPOCHS=0, **changes))
    assert done.returncode == 0, done.stderr
    assert "initialized from this project's LookupViT" in done.stderr
    assert "the classifier was loaded" not in done.stderr
    tuned = load_checkpoint(tmp_path / "model.pt").model
    assert all(equal(value, source.model[name]) for name, value in tuned.items() if not name.startswith("heads."))


def test_a_collapsed_model_raises_the_alarm(data, pretrained, options, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = checkpoint_path(tmp_path, 3)
    content = torch.load(checkpoint_path(pretrained, 3), weights_only=True)
    for weights in (content["model"], content["ema"]):
        weights["encoder.tokenizer.projection.weight"].zero_()  # all clips are the same tokens
    torch.save(content, path)
    done = run_net(settings(data, tmp_path, **{**options, "SOLVER__BASE_LR": 0}))
    assert done.returncode == 0, done.stderr
    assert "the features have collapsed: their effective rank is 1.00" in done.stderr


def test_the_result_does_not_predict(pretrained, data):
    done = call_tool("tools/predict.py", "--checkpoint", pretrained / "model.pt", data / "0.mp4")
    assert done.returncode == 2
    assert "pre-trained without labels, so it has no classifier; train one with MODEL.INIT_FROM" in done.stderr


def test_settings_that_pretraining_cannot_use_are_refused(data, tmp_path):
    for change, text in (
        ({"TEST__ENABLE": True}, "set TEST.ENABLE False: there is no classifier yet"),
        ({"MIXUP__ENABLE": True}, "set MIXUP.ENABLE False"),
        ({"MODEL__ENCODER": "factorised", "MODEL__COMPRESSED_GRID": "[2,2]"}, "only for MODEL.ARCH lookupvit or vit"),
    ):
        done = run_net(settings(data, tmp_path, **{**MASKED, "MODEL__COMPRESSED_GRIDS": "[]", **change}))
        assert done.returncode == 2
        assert text in done.stderr
