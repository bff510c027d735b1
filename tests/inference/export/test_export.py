"""Exported models against the checkpoint.

AOTInductor compiles C++ for most of a minute; it, and more kinds of models in the other formats, run when asked for:
LOOKUPVIT_ALL_EXPORTS=1 python -m pytest tests/inference/export/test_export.py
"""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.errors import RunFailure
from lookupvit_video.evaluation.calibration import Calibration
from lookupvit_video.inference.export import export as export_module
from lookupvit_video.inference.export import reference
from lookupvit_video.inference.export.description import description
from lookupvit_video.inference.export.export import (
    DeployedModel,
    accuracy,
    clips_of,
    deployed_model,
    example_clips,
    export_model,
)
from lookupvit_video.inference.export.formats import load_exported, onnx_session
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from lookupvit_video.models.kernels.int8 import linear_layers, quantize
from tests.models.test_models import SMALL
from tests.small import make_videos

CLASSES = ["a", "b", "c"]
MODELS = {
    "lookupvit": "MODEL.COMPRESSED_GRIDS [[1,2,2],[2,3,3]]",
    "factorised": "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 1",
    "transpose": "MODEL.REVERSE_WEIGHTS transpose MODEL.POOL attentive",
    "vit": "MODEL.ARCH vit MODEL.POOL class",
    "convolutional": "MODEL.TOKENIZER convolutional MODEL.INPUT changes",
}
PEERS = {"mvit": "MODEL.ARCH mvit MODEL.VARIANT Ti", "x3d": "MODEL.ARCH x3d MODEL.VARIANT XS"}
ALL = "LOOKUPVIT_ALL_EXPORTS" in os.environ


def predictor(folder, overrides=""):
    cfg = load_config(None, [*SMALL, "MODEL.NUM_CLASSES", "3", "DATA_LOADER.NUM_WORKERS", "0", *overrides.split()])
    torch.manual_seed(3)
    model = build_model(cfg)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=CLASSES, model=model)
    return load_model(folder / "model.pt", "cpu")


class Mean(torch.nn.Module):
    """A model of two classes that exports in no time."""

    def forward(self, clips):
        share = clips.float().mean((1, 2, 3, 4))[:, None] / 255
        return torch.cat([share, 1 - share], 1)


@pytest.fixture
def answers(monkeypatch, tmp_path):
    """Export `Mean` as something that loads as a function given; the sizes of the batches that it is asked for."""
    sizes = []

    def export(run, **options):
        def noting(clips):
            sizes.append(len(clips))
            return run(clips)

        sizes.clear()
        monkeypatch.setattr(export_module, "load_exported", lambda path, kind: noting)
        monkeypatch.setattr(export_module, "write", lambda program, kind, path: path.write_bytes(b"12345"))
        monkeypatch.setattr(torch.export, "export", lambda *given, **shapes: None)
        clips = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return export_model(Mean(), clips, tmp_path / "x.pt2", "pt2", **options)

    return export, sizes


def test_an_export_is_compared_on_batches_of_one_two_and_three(answers, tmp_path):
    export, sizes = answers
    assert export(Mean()) == {"format": "pt2", "bytes": 5, "max_difference": 0.0, "is_run": True}
    assert sizes == [2, 1, 3]
    export(Mean(), any_batch=False)
    assert sizes == [2]


@pytest.mark.parametrize("wrong", [1, 2, 3])
@pytest.mark.parametrize("shift", [2e-4, -0.5, float("nan"), float("inf")])
def test_an_export_that_is_wrong_for_one_size_of_batch_is_not_written(answers, tmp_path, wrong, shift):
    export, _ = answers

    def run(clips):
        found = Mean()(clips)
        found[-1, 1] += shift if len(clips) == wrong else 0.0
        return found

    with pytest.raises(ValueError, match=r"x\.pt2: a probability of the pt2 model differs by .*nothing was written"):
        export(run)
    assert not list(tmp_path.iterdir())


def test_an_export_may_differ_by_a_ten_thousandth(answers):
    assert export_module.TOLERANCE == 1e-4
    export, _ = answers
    assert export(lambda clips: Mean()(clips) + 0.9e-4)["max_difference"] == pytest.approx(0.9e-4, rel=0.01)


@pytest.mark.parametrize("any_batch", [True, False])
def test_the_size_of_a_batch_is_free_unless_fixed(monkeypatch, tmp_path, any_batch):
    given = []
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: given.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(Mean(), torch.zeros(2, 3, 2, 4, 4).byte(), tmp_path / "x", "pt2", any_batch=any_batch)
    shapes = given[0]["dynamic_shapes"]
    assert (shapes["clips"][0].__name__ == "batch" and list(shapes["clips"]) == [0]) if any_batch else shapes is None


def test_what_is_exported_takes_pixels_and_gives_probabilities():
    class Pixels(torch.nn.Module):
        def forward(self, clips, grid=None):
            asked.append(grid)
            return clips.flatten(1)[:, ::8]

    asked, mean, std = [], [0.5, 0.25, 0.1], [0.5, 0.2, 0.4]
    clips = torch.randint(0, 256, (2, 3, 2, 2, 2), dtype=torch.uint8)
    for grid in (None, (1, 2, 2)):
        found = DeployedModel(Pixels(), mean, std, grid)(clips)
        logits = (clips[:, :, 0, 0, 0].double() / 255 - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(found.double(), logits.softmax(-1), rtol=1e-5, atol=1e-6)
    assert asked == [None, (1, 2, 2)]
    assert DeployedModel(Pixels(), mean, std, None).state_dict() == {}


def test_a_deployed_model_is_a_copy_of_plain_operations(tmp_path):
    model = predictor(tmp_path)
    model.model.train()
    before = model.model.blocks[0].cross_attention.kernel
    deployed = deployed_model(model)
    assert not deployed.model.training
    assert model.model.training
    assert model.model.blocks[0].cross_attention.kernel == before
    assert deployed.model.blocks[0].cross_attention.kernel == "eager"
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert deployed.grid is None
    assert deployed_model(model, (1, 2, 2)).grid == (1, 2, 2)


def test_example_clips_are_random_and_the_same_again(tmp_path):
    model = predictor(tmp_path)
    clips = example_clips(model)
    assert (clips.shape, clips.dtype) == ((2, 3, 4, 32, 32), torch.uint8)  # one would be taken for a constant
    assert (int(clips.min()), int(clips.max())) == (0, 255)
    assert torch.equal(clips, example_clips(model, 2, 0))
    assert not torch.equal(clips, example_clips(model, 2, 1))
    assert len(example_clips(model, 5)) == 5


def test_the_share_of_right_answers_is_in_percent(monkeypatch, tmp_path):
    model = predictor(tmp_path)
    labels = torch.tensor([0, 1, 2, -100])
    batches = [SimpleNamespace(clips=torch.eye(4)[rows], labels=labels[rows]) for rows in ([0, 1], [2, 3])]
    given = []
    monkeypatch.setattr(export_module, "build_eval_loader", lambda *args, **options: given.append(options) or batches)
    shares = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]])
    assert accuracy(lambda clips: clips @ shares, model, [None] * 4, "x") == 50.0
    assert given == [{"num_views": 1, "num_crops": 1}]


def check(folder, kind, overrides, sizes=(1, 4)):
    """Export, load again, and compare with the predictor on clips that the export did not see."""
    model = predictor(folder, overrides)
    found = export_model(deployed_model(model), example_clips(model), folder / f"x_{kind}.pt2", kind)
    assert found["max_difference"] < 1e-4
    assert found["bytes"] == (folder / f"x_{kind}.pt2").stat().st_size
    run = load_exported(folder / f"x_{kind}.pt2", kind)
    for size in sizes:
        clips = example_clips(model, size, seed=1)
        torch.testing.assert_close(run(clips), model.predict_clips(clips), rtol=0, atol=1e-4)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["lookupvit", *(list(MODELS)[1:] + list(PEERS) if ALL else ["factorised", "vit"])])
def test_torch_export_answers_as_the_checkpoint_does(tmp_path, name):
    check(tmp_path, "pt2", (MODELS | PEERS)[name])


@pytest.mark.parametrize("name", MODELS if ALL else ["lookupvit", "convolutional"])
def test_onnx_answers_as_the_checkpoint_does(tmp_path, name):
    pytest.importorskip("onnxruntime")
    check(tmp_path, "onnx", MODELS[name])


def test_onnx_runtime_reports_no_usage_data(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    calls = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("no reports"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: calls.append("session"))
    facts = {"input": {"name": "clips"}}
    for open_file in (onnx_session, lambda path: reference._loader(onnxruntime, path, facts)):
        open_file(Path("model.onnx"))
        assert calls == ["no reports", "session"]
        calls.clear()


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_several_labels_with_a_temperature_for_each(tmp_path, kind):
    pytest.importorskip("onnxruntime")
    model = predictor(tmp_path, MODELS["lookupvit"] + " MODEL.TASK multi_label")
    temperature = np.linspace(0.5, 2, len(model.classes)).tolist()
    model.calibration = {model.budget_name(None): Calibration(temperature)}
    export_model(deployed_model(model), example_clips(model), tmp_path / "x", kind)
    clips = example_clips(model, 3, seed=1)
    with torch.inference_mode():
        expected = (model.model(model.inputs(clips)) / torch.tensor(temperature)).sigmoid()
    torch.testing.assert_close(load_exported(tmp_path / "x", kind)(clips), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.predict_clips(clips), expected, rtol=0, atol=1e-6)
    found = description(model, batch=None, grid=None, int8=False, device=model.device)
    assert found["output"]["temperature"] == temperature


@pytest.mark.skipif(not ALL, reason="LOOKUPVIT_ALL_EXPORTS is not set")
@pytest.mark.parametrize("name", MODELS)
def test_aotinductor_answers_as_the_checkpoint_does(tmp_path, name):
    check(tmp_path, "aoti", MODELS[name])


def test_a_fixed_batch_and_another_grid(tmp_path):
    model = predictor(tmp_path, MODELS["lookupvit"])
    clips = example_clips(model, 3)
    export_model(deployed_model(model, (2, 3, 3)), clips, tmp_path / "x.pt2", "pt2", any_batch=False)
    run = load_exported(tmp_path / "x.pt2", "pt2")
    torch.testing.assert_close(run(clips), model.predict_clips(clips, (2, 3, 3)), rtol=0, atol=1e-4)
    assert not torch.allclose(run(clips), model.predict_clips(clips), atol=1e-3)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        run(clips[:2])


def test_what_answers_otherwise_is_not_written(tmp_path):
    model = predictor(tmp_path)

    class Drifting(torch.nn.Module):
        """Answers otherwise in a trace than when it runs: what the comparison is there to find."""

        def forward(self, clips):
            shift = 0.0 if torch.compiler.is_exporting() else 0.01
            return clips.float().mean((1, 2, 3, 4))[:, None].softmax(-1) + shift

    with pytest.raises(ValueError, match=r"x\.pt2: a probability of the pt2 model differs by 0\.01"):
        export_model(Drifting(), example_clips(model), tmp_path / "x.pt2", "pt2")
    assert not (tmp_path / "x.pt2").exists()


def test_eight_bits(tmp_path):
    """In ONNX; tests/commands/test_export.py writes a torch.export program."""
    pytest.importorskip("onnxruntime")
    make_videos(tmp_path / "data", count=6)
    (tmp_path / "data" / "2.mp4").write_bytes(b"")
    model = predictor(tmp_path, "MODEL.DIM 192 MODEL.DEPTH 1 DATA.SAMPLING_RATE 2")
    videos = read_manifest(tmp_path / "data" / "test.csv", CLASSES)
    plain, small = deployed_model(model), deployed_model(model, int8=clips_of(model, videos))
    assert linear_layers(small) == {}
    file = export_model(small, example_clips(model), tmp_path / "s", "onnx")
    assert file["bytes"] < 0.6 * sum(value.nbytes for value in plain.state_dict().values())
    for size in (1, 3):
        clips = example_clips(model, size, seed=1)
        difference = (load_exported(tmp_path / "s", "onnx")(clips) - plain(clips)).abs().max()
        assert 1e-7 < difference < 0.05
    assert len(linear_layers(model.model)) == 11  # its own is left alone
    right = sum(
        CLASSES.index(model.predict(video.path, num_views=1, num_crops=1).labels[0]) == video.label
        for row, video in enumerate(videos) if row != 2
    )  # fmt: skip
    assert accuracy(plain, model, videos, "float32") == pytest.approx(100 * right / 6)
    assert 0 <= accuracy(small, model, videos, "int8") <= 100


def test_an_eight_bit_model_that_answers_otherwise_is_not_exported(monkeypatch, tmp_path):
    model = predictor(tmp_path)

    def doubled(part, run):
        replaced = quantize(part, run)
        part.get_submodule("blocks.1.lookup_mlp.0").scale.mul_(2)
        return replaced

    monkeypatch.setattr(export_module, "quantize", doubled)
    with pytest.raises(RunFailure, match=r"blocks\.1\.lookup_mlp\.0: its 8-bit output differs by 1 of itself"):
        deployed_model(model, int8=example_clips(model))


def test_without_videos_layers_are_chosen_on_noise(tmp_path, caplog):
    model = predictor(tmp_path)
    assert torch.equal(clips_of(model, []), example_clips(model))
    assert "give some with --list" in caplog.text
