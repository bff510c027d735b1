"""The test of a checkpoint: several compressed grids in one pass over the videos, clips of another geometry."""

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data import dataset
from lookupvit_video.distributed import world as world_module
from lookupvit_video.distributed.world import World
from lookupvit_video.evaluation import evaluate as evaluate_module
from lookupvit_video.evaluation import run_test as test_module
from lookupvit_video.evaluation.evaluate import Results
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model, model_spec
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
        for key in ("top1", "gmacs_per_view"):
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
    (JOINT | {"MODEL__TOKENIZER": "convolutional"}, ["tokenizer.positions: resized from a grid of (2, 4, 4) to (4"]),
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


def test_classes_must_be_the_checkpoints_in_its_order(tmp_path):
    write_checkpoint(tmp_path)
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    theirs = model_spec(checkpoint.config).settings_not_in_weights
    test_module._check_fit(theirs, CLASSES, "single_label", checkpoint)
    for others in (CLASSES[::-1], CLASSES[:2], [*CLASSES, "class 3"], ["class 0", "class 2", "class 1"]):
        with pytest.raises(ValueError, match=r"model\.pt: its classes are not those of the data"):
            test_module._check_fit(theirs, others, "single_label", checkpoint)


@pytest.mark.parametrize(("macs", "wanted"), [(8_512_345_678, 8.512), (180_280_000_000, 180.3), (12_345_678, 0.01235)])
def test_billions_have_four_digits(macs, wanted):
    assert test_module.gmacs(macs) == wanted


def test_only_a_lookupvit_is_tested_with_several_grids():
    known = [Budget((1, 2, 2)), Budget((1, 2, 2), 4), Budget((2, 3, 3)), Budget((1, 1, 1), 0, (1, 0.5))]
    assert test_module._budgets(known, [(1, 2, 2), (1, 1, 1)]) == [known[0], known[1], known[3]]
    assert test_module._budgets((), [(1, 2, 2)]) == [None]


def test_each_budget_is_a_row_and_costs_what_its_pass_takes(data, tmp_path):
    write_checkpoint(tmp_path, MODEL__EXITS="[1]", MODEL__KEEPS="[[1,0.5]]")
    overrides = settings(data, tmp_path / "run", TEST__CHECKPOINT_FILE_PATH=tmp_path / "model.pt", MODEL__EXITS="[1]",
                         MODEL__KEEPS="[[1,0.5]]", TEST__GRIDS="[[2,2,2]]")  # fmt: skip
    cfg = load_config("tests/small.yaml", overrides)
    found = test_module.run_test(cfg, CLASSES, World(0, 1, torch.device("cpu")))
    spec = model_spec(cfg)
    costs = {budget.name: sum(spec.budget_macs(budget).values()) for budget in spec.budgets}
    assert len(costs) == 6
    rows = {row["grid"]: row["gmacs_per_view"] for row in found["grids"]}
    assert rows == {name: test_module.gmacs(cost) for name, cost in costs.items()}
    assert list(rows.values()) == sorted(rows.values())


def test_the_main_process_writes_what_all_have_found(data, tmp_path, monkeypatch):
    """The second of two processes reads the second, fourth, ... video, and writes nothing."""
    write_checkpoint(tmp_path)
    for module in (evaluate_module, world_module):
        monkeypatch.setattr(module, "gather_objects", lambda own, world: [own])
    overrides = settings(data, tmp_path / "run", TEST__CHECKPOINT_FILE_PATH=tmp_path / "model.pt",
                         TEST__NUM_ENSEMBLE_VIEWS=2)  # fmt: skip
    cfg = load_config("tests/small.yaml", overrides)
    shares, plain = [], test_module.evaluate

    def watched(model, loader, videos, *rest):
        (results,) = plain(model, loader, videos, *rest)
        shares.append([row for row in range(9) if results.probabilities[row].any()])
        assert [video.path for video in videos] == [str(data / f"{number}.mp4") for number in range(9)]
        return [results]

    loaders, plain_loader = [], evaluate_module.build_eval_loader
    monkeypatch.setattr(test_module, "evaluate", watched)
    monkeypatch.setattr(
        evaluate_module, "build_eval_loader", lambda *a, **g: loaders.append(g) or plain_loader(*a, **g)
    )
    (tmp_path / "run").mkdir()
    assert test_module.run_test(cfg, CLASSES, World(1, 2, torch.device("cpu"))) is None
    assert list((tmp_path / "run").iterdir()) == []
    first = test_module.run_test(cfg, CLASSES, World(0, 2, torch.device("cpu")))
    assert shares == [[1, 3, 5, 7], [0, 2, 4, 6, 8]]
    facts = {name: first[name] for name in ("checkpoint", "arch", "step", "views", "precision", "videos")}
    assert facts == {"checkpoint": str(tmp_path / "model.pt"), "arch": "lookupvit", "step": 7, "views": "2x1",
                     "precision": "float32", "videos": 9}  # fmt: skip
    assert [given["pin_memory"] for given in loaders] == [False, False]  # there is no GPU to copy to
    assert first["gmacs_per_view"] == test_module.gmacs(sum(model_spec(cfg).macs().values()))
    assert first["parameters"] == sum(p.numel() for p in build_model(cfg).parameters())
    assert first == json.loads((tmp_path / "run" / "test_results.json").read_text())


def test_the_runs_own_model_is_tested_unless_another_is_named(data, tmp_path, monkeypatch):
    moved, plain = [], torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *given: moved.append(given) or plain(self, *given))
    write_checkpoint(tmp_path)
    cfg = load_config("tests/small.yaml", settings(data, tmp_path, TEST__GRIDS="[[1,1,1]]"))
    found = test_module.run_test(cfg, CLASSES, World(0, 1, torch.device("cpu")))
    assert found["checkpoint"] == str(tmp_path / "model.pt")
    assert [row["grid"] for row in found["grids"]] == ["1x1x1", "1x2x2"]
    assert (torch.device("cpu"),) in moved  # the model goes to the device before it answers


def test_a_line_for_each_grid_the_cheapest_first():
    probabilities = np.linspace(0, 1, 7)[None].repeat(3, axis=0)  # seven classes, the last the likeliest
    few, many = (Results(np.array(labels), probabilities, []) for labels in ([6, 5, 1], [6, 6, 2]))
    names = ["top1", "top5"]
    budgets = [Budget((2, 3, 1)), Budget((1, 1, 2))]
    assert test_module._budget_table(1, budgets, [4_567_800_000, 1_234_560_000], [many, few], names) == [
        {"grid": "1x1x2", "tokens": 2, "gmacs_per_view": 1.235, "top1": 33.33, "top5": 66.67},
        {"grid": "2x3x1", "tokens": 6, "gmacs_per_view": 4.568, "top1": 66.67, "top5": 100.0},
    ]
    rows = test_module._budget_table(2, [Budget((2, 3))], [10**9], [few], names)
    assert [(row["grid"], row["tokens"]) for row in rows] == [("2x3", 12)]  # at each of two times


def test_bad_videos_of_the_test_are_listed(data, tmp_path, monkeypatch):
    labels = np.arange(9) % 3
    probabilities = np.eye(3, dtype=np.float32)[labels]
    probabilities[4] = 0
    monkeypatch.setattr(test_module, "evaluate", lambda *_: [Results(labels, probabilities, [(4, "cut")])])
    write_checkpoint(tmp_path)
    cfg = load_config("tests/small.yaml", settings(data, tmp_path))
    summary = test_module.run_test(cfg, CLASSES, World(0, 1, torch.device("cpu")))
    with (tmp_path / "bad_videos.csv").open(newline="") as file:
        assert [row[:3] for row in list(csv.reader(file))[1:]] == [["test", str(data / "4.mp4"), "cut"]]
    assert summary == json.loads((tmp_path / "test_results.json").read_text())
    assert (summary["step"], summary["top1"], summary["videos"]) == (7, 88.89, 9)
    assert not (tmp_path / "accuracy_vs_gmacs.csv").exists()
