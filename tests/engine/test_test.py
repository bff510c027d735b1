"""The test of a checkpoint: several compressed grids in one pass over the videos, clips of another geometry."""

import csv
import json
import shutil
from collections import Counter

import pytest
import torch
from torch import nn

from lookupvit_video.config import load_config
from lookupvit_video.data import dataset
from lookupvit_video.engine.checkpoint import save_checkpoint
from lookupvit_video.models.build import build_model
from tests.small import run_net, settings

CLASSES = ["class 0", "class 1", "class 2"]
JOINT = {"MODEL__COMPRESSED_GRID": "[1,2,2]"}
FACTORISED = {"MODEL__ENCODER": "factorised", "MODEL__COMPRESSED_GRID": "[2,2]", "MODEL__TEMPORAL_DEPTH": 1}


def write_checkpoint(folder, weight=1.0, bias=0.0, **changes):
    """Write model.pt: random weights, with classifiers that tell clips apart, or answer class 0 (weight 0, bias 9)."""
    cfg = load_config("tests/small.yaml", settings("", "", **changes))
    torch.manual_seed(5)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("linear.weight"):
            nn.init.normal_(parameter, std=weight)
        elif name.endswith("linear.bias"):
            parameter.data[0] = bias
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=CLASSES, model=model, step=7)


def run_test(data, checkpoint, output, **changes):
    return run_net(settings(data, output, **changes, TRAIN__ENABLE=False, TEST__CHECKPOINT_FILE_PATH=checkpoint))


def summary_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("encoder", "grids", "tokens"), [
    (JOINT, ["[1,1,1]", "[1,2,2]", "[2,4,4]"], [1, 4, 32]),
    (FACTORISED, ["[1,1]", "[2,2]", "[4,4]"], [2, 8, 32]),
])  # fmt: skip
def test_one_pass_answers_for_every_grid(data, tmp_path, monkeypatch, encoder, grids, tokens):
    write_checkpoint(tmp_path, **encoder)
    opened = Counter()
    plain = dataset.open_video

    def counting(path, *args, **options):
        opened[path] += 1
        return plain(path, *args, **options)

    monkeypatch.setattr(dataset, "open_video", counting)
    asked = f"[{grids[2]},{grids[1]},{grids[0]},{grids[2]}]"  # the default again, and one of them twice
    found = summary_of(run_test(data, tmp_path / "model.pt", tmp_path / "all", **encoder, TEST__GRIDS=asked))
    assert sorted(opened.values()) == [1] * 9
    rows = found["grids"]
    assert [row["grid"] for row in rows] == [grid.strip("[]").replace(",", "x") for grid in grids]
    assert [row["tokens"] for row in rows] == tokens
    assert found["measured_with"]["torch"] == torch.__version__
    assert [row["gmacs_per_view"] for row in rows] == sorted({row["gmacs_per_view"] for row in rows})
    assert json.loads((tmp_path / "all" / "test_results.json").read_text())["grids"] == rows
    with (tmp_path / "all" / "accuracy_vs_gmacs.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == table
    assert (tmp_path / "all" / "accuracy_vs_gmacs.png").read_bytes().startswith(b"\x89PNG")
    for grid, row in zip(grids, rows, strict=True):
        one = run_test(data, tmp_path / "model.pt", tmp_path / grid, **(encoder | {"MODEL__COMPRESSED_GRID": grid}))
        alone = summary_of(one)
        assert "grids" not in alone
        for key in ("top1", "top5", "gmacs_per_view"):
            assert alone[key] == row[key], (grid, key)
            if grid == encoder["MODEL__COMPRESSED_GRID"]:
                assert found[key] == row[key]


def test_a_bad_video_is_wrong_for_every_grid(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "3.mp4").write_bytes(b"")  # of class 0
    write_checkpoint(tmp_path, weight=0.0, bias=9.0)
    options = {"TEST__GRIDS": "[[2,4,4],[1,1,1]]", "DATA__MAX_BAD_FRACTION": 0.2}
    whole = summary_of(run_test(data, tmp_path / "model.pt", tmp_path / "a", **options))
    assert [row["top1"] for row in whole["grids"]] == [33.33] * 3
    found = summary_of(run_test(tmp_path / "data", tmp_path / "model.pt", tmp_path / "b", **options))
    assert [row["top1"] for row in found["grids"]] == [22.22] * 3
    assert len(found["bad_videos"]) == 1


@pytest.mark.parametrize(("model", "resized"), [
    (JOINT, ["tokenizer.positions: resized from a grid of (2, 4, 4) to (4, 6, 6)"]),
    ({"MODEL__ARCH": "vit"}, ["tokenizer.positions: resized from a grid of (2, 4, 4) to (4, 6, 6)"]),
    (FACTORISED, ["tokenizer.positions: resized from", "temporal.positions: resized from a grid of (2, 1, 1) to (4"]),
])  # fmt: skip
def test_a_checkpoint_is_tested_on_longer_and_larger_clips(data, tmp_path, model, resized):
    write_checkpoint(tmp_path, **model)
    options = {"DATA__NUM_FRAMES": 8, "DATA__TRAIN_CROP_SIZE": 48, "DATA__TEST_CROP_SIZE": 48, "DATA__SAMPLING_RATE": 1}
    small = run_test(data, tmp_path / "model.pt", tmp_path / "small", **model)
    large = run_test(data, tmp_path / "model.pt", tmp_path / "large", **model, **options)
    assert summary_of(large)["gmacs_per_view"] > summary_of(small)["gmacs_per_view"]
    for line in resized:
        assert line in large.stderr
    assert "resized" not in small.stderr


@pytest.mark.parametrize(("model", "key", "values"), [
    ({}, "REVERSE_WEIGHTS", ("scaled", "transpose")), ({"MODEL__ARCH": "vit"}, "NUM_HEADS", (2, 3)),
])  # fmt: skip
def test_settings_that_no_shape_tells_must_be_the_checkpoints(data, tmp_path, model, key, values):
    own, other = values
    write_checkpoint(tmp_path, **model, **{f"MODEL__{key}": own})
    done = run_test(data, tmp_path / "model.pt", tmp_path / "out", **model, **{f"MODEL__{key}": other})
    assert done.returncode == 2
    assert f"model.pt: it was trained with MODEL.{key} {own}, the config says {other}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_whose_positions_cannot_be_resized_says_so(data, tmp_path):
    model = {"MODEL__ARCH": "mvit", "MODEL__VARIANT": "Ti"}
    write_checkpoint(tmp_path, **model)
    done = run_test(data, tmp_path / "model.pt", tmp_path / "out", **model, DATA__NUM_FRAMES=8)
    assert done.returncode == 2
    assert "model.pt: tokenizer.positions." in done.stderr
    assert "geometry must be those of the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
