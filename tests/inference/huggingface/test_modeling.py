"""Saved models by transformers' own calls: the registered classes, and the code in the folder."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForVideoClassification, Trainer, TrainingArguments, pipeline

import lookupvit_video.hf  # noqa: F401  (registers the classes)
from lookupvit_video import load_model
from lookupvit_video.checkpoints.checkpoint import add_calibration, save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.evaluation.calibration import Calibration
from lookupvit_video.inference.views import read_views
from lookupvit_video.models.build import build_model
from tests.models.test_models import MODELS, SMALL
from tests.videos import write_video

CLASSES = ["a", "b", "c: d", "e | f", "ü"]
VIEWS = ["TEST.NUM_ENSEMBLE_VIEWS", "2", "TEST.NUM_SPATIAL_CROPS", "3"]
CALIBRATED = {"1x2x2": Calibration([0.5], "2x3").as_dict()}
# In place of a process where this package is not installed: nobody can import it.
WITHOUT_THE_PACKAGE = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lookupvit_video":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from transformers import pipeline
answer = pipeline("video-classification", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(answer(sys.argv[2], top_k=5)))
"""


def saved(folder, overrides=(), calibration=None, **more):
    cfg = load_config(None, [*SMALL, *VIEWS, *overrides])
    torch.manual_seed(3)
    model = build_model(cfg)
    for parameter in model.parameters():  # nothing zero, such as the scales of new layers
        torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=CLASSES, model=model, **more)
    if calibration:
        add_calibration(folder / "model.pt", calibration, [])
    predictor = load_model(folder / "model.pt", "cpu")
    predictor.save_pretrained(folder / "saved")
    return predictor


def by_label(answer):
    return {row["label"]: row["score"] for row in answer}


def expected(predictor, video):
    answer = predictor.predict(video, topk=len(CLASSES))
    return pytest.approx(dict(zip(answer.labels, answer.probabilities, strict=True)), abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("huggingface")


@pytest.fixture(scope="module")
def predictor(folder):
    return saved(folder)


@pytest.fixture(scope="module")
def video(folder):
    return write_video(folder / "upright.mp4", frames=20, size=(64, 40), rotation=90)


def test_the_pipeline_answers_as_the_predictor(predictor, folder, video):
    answer = pipeline("video-classification", model=str(folder / "saved"))(video, top_k=5)
    assert by_label(answer) == expected(predictor, video)
    assert len({round(row["score"], 3) for row in answer}) > 2


def test_the_code_in_the_folder_needs_no_package(predictor, folder, video):
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(folder / "saved"), video]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert by_label(json.loads(done.stdout.splitlines()[-1])) == expected(predictor, video)


@pytest.mark.parametrize(
    "name",
    [
        "lookup_conv keep",
        "exits factorised",
        "keep random",
        "convolutional",
        "vit class",
        "vit merge",
        "lora factorised",
    ],
)
def test_kinds_of_models_come_back(name, tmp_path):
    predictor = saved(tmp_path, MODELS[name].split())
    again = AutoModelForVideoClassification.from_pretrained(tmp_path / "saved")
    video = write_video(tmp_path / "x.mp4", frames=12)
    clips = torch.from_numpy(read_views(video, predictor.plan).clips)
    inputs = predictor.inputs(clips)
    with torch.no_grad():
        logits = again(inputs.transpose(1, 2)).logits
        torch.testing.assert_close(logits, predictor.model(inputs), rtol=0, atol=1e-6)


def test_a_model_without_tubelets_has_no_code(tmp_path):
    saved(tmp_path, ["MODEL.ARCH", "mvit", "MODEL.VARIANT", "Ti"])
    assert not list((tmp_path / "saved").glob("*.py"))
    with pytest.raises(ValueError, match=r"lookupvit_video\.load_model"):
        AutoModelForVideoClassification.from_pretrained(tmp_path / "saved")


def test_the_trainer_trains_a_head_for_other_classes(predictor, folder, tmp_path, monkeypatch):
    # Tests run next to this project's folder datasets/, which transformers takes for the library of that name.
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    names = ["left", "right"]
    torch.manual_seed(0)
    model = AutoModelForVideoClassification.from_pretrained(
        folder / "saved", id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    encoder = [name for name, _ in model.named_parameters() if ".heads." not in name]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in encoder:
        torch.testing.assert_close(weights[name], predictor.model.get_parameter(name.removeprefix("network.")))
    clips = torch.randn(16, 4, 3, 32, 32)
    rows = [{"pixel_values": clip + label, "labels": label} for clip, label in zip(clips, [0, 1] * 8, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=8, learning_rate=2e-2, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    trainer.save_model(str(tmp_path / "trained"))
    again = load_model(tmp_path / "trained", "cpu")
    assert again.classes == names
    with torch.no_grad():
        torch.testing.assert_close(again.model(clips.transpose(1, 2)), model.eval()(clips).logits)


def test_calibration_travels_until_the_weights_change(tmp_path):
    predictor = saved(tmp_path, calibration=CALIBRATED)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "saved")
    clips = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        plain = predictor.model(clips.transpose(1, 2))
        torch.testing.assert_close(model(clips).logits, plain / 0.5)
        model.train()(clips)
        torch.testing.assert_close(model.eval()(clips).logits, plain)


def test_several_labels_have_probabilities_of_their_own(tmp_path):
    predictor = saved(tmp_path, ["MODEL.TASK", "multi_label"], thresholds=[0.5] * 5)
    video = write_video(tmp_path / "x.mp4", frames=20)
    answer = by_label(pipeline("video-classification", model=str(tmp_path / "saved"))(video, top_k=5))
    assert answer == expected(predictor, video)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "saved")
    loss = model.train()(torch.randn(2, 4, 3, 32, 32), labels=torch.tensor([[1.0, 0, 0, 1, 0]] * 2)).loss
    assert loss.requires_grad
