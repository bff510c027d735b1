"""Exported models against the checkpoint.

AOTInductor compiles C++ for most of a minute; it, and more kinds of models in the other formats, run when asked for:
LOOKUPVIT_ALL_EXPORTS=1 python -m pytest tests/inference/test_export.py
"""

import os

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.engine.checkpoint import save_checkpoint
from lookupvit_video.inference.export import (
    accuracy,
    check_format,
    deployed_model,
    example_clips,
    export_model,
    load_exported,
)
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import make_videos

CLASSES = ["a", "b", "c"]
MODELS = {
    "lookupvit": "MODEL.COMPRESSED_GRIDS [[1,2,2],[2,3,3]]",
    "factorised": "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 1",
    "transpose": "MODEL.REVERSE_WEIGHTS transpose MODEL.POOL attentive",
    "vit": "MODEL.ARCH vit MODEL.POOL class",
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


@pytest.mark.parametrize("name", MODELS if ALL else ["lookupvit"])
def test_onnx_answers_as_the_checkpoint_does(tmp_path, name):
    pytest.importorskip("onnxruntime")
    check(tmp_path, "onnx", MODELS[name])


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

    with pytest.raises(ValueError, match=r"x\.pt2: as pt2 the model answers otherwise: .* differs by 0\.01"):
        export_model(Drifting(), example_clips(model), tmp_path / "x.pt2", "pt2")
    assert not (tmp_path / "x.pt2").exists()


def test_eight_bit_weights(tmp_path):
    pytest.importorskip("torchao")
    make_videos(tmp_path / "data", count=6)
    (tmp_path / "data" / "2.mp4").write_bytes(b"")
    model = predictor(tmp_path, "MODEL.DIM 192 DATA.SAMPLING_RATE 2")
    videos = read_manifest(tmp_path / "data" / "test.csv", CLASSES)
    plain, small = deployed_model(model), deployed_model(model, int8=True)
    clips = example_clips(model)
    files = {name: export_model(part, clips, tmp_path / name, "pt2") for name, part in (("p", plain), ("s", small))}
    assert files["s"]["bytes"] < 0.5 * files["p"]["bytes"]
    difference = (load_exported(tmp_path / "s", "pt2")(clips) - plain(clips)).abs().max()
    assert 1e-7 < difference < 0.05
    assert all(parameter.dtype == torch.float32 for parameter in model.model.parameters())  # its own is left alone
    right = sum(
        CLASSES.index(model.predict(video.path, num_views=1, num_crops=1).labels[0]) == video.label
        for row, video in enumerate(videos) if row != 2
    )  # fmt: skip
    assert accuracy(plain, model, videos, "float32") == pytest.approx(100 * right / 6)
    assert 0 <= accuracy(small, model, videos, "int8") <= 100


def test_what_is_missing_is_told():
    with pytest.raises(ValueError, match="format 'tflite': choose from pt2, onnx, aoti"):
        check_format("tflite")
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(ValueError, match=r"there is no compiler here: install g\+\+"),
    ):
        check_format("aoti")
