"""What `lookupvit benchmark budgets` measures: every budget in turns, its shares of the largest, and accuracies."""

import argparse
import json

import pytest
import torch

from lookupvit_video.benchmarks import budgets
from lookupvit_video.benchmarks.budgets import Model, add_shares, config_with, contenders_of, drawn, trained_model
from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.commands import benchmark as command
from lookupvit_video.config import load_config
from lookupvit_video.models.budget import Budget, parse_budget
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import measured_macs
from lookupvit_video.models.kernels.int8 import linear_layers
from tests.small import SMALL

SETTINGS = [str(word) for pair in SMALL.items() for word in pair]
SEVERAL = ["MODEL.EXITS", "[1]", "MODEL.KEEPS", "[[1],[1,0.5]]"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two checkpoints: one with three budgets and the results of a test, and a dense ViT with them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in (("one", SEVERAL), ("vit", ["MODEL.ARCH", "vit"])):
        cfg = load_config("tests/small.yaml", [*SETTINGS, *overrides])
        (folder / name).mkdir()
        save_checkpoint(folder / name / "model.pt", cfg=cfg, classes=list("abc"), model=build_model(cfg))
        found = {"checkpoint": "model.pt", "top1": 70.0, "videos": 9, "views": "1x1", "precision": "float32"}
        if name == "one":
            found["grids"] = [{"grid": "1x2x2,b1", "top1": 60.0}, {"grid": "1x2x2", "top1": 65.0}]
        (folder / name / "test_results.json").write_text(json.dumps(found))
    return folder


def test_a_config_is_given_the_budgets_that_are_asked_for():
    asked = [parse_budget("1x2x2,b1"), parse_budget("2x2x2,k1-0.5")]
    cfg = config_with("tests/small.yaml", SETTINGS, asked, 8)
    assert (cfg.DATA.NUM_FRAMES, cfg.MODEL.EXITS) == (8, [1])
    model = build_model(cfg).eval()
    for contender, budget in zip(contenders_of(Model("x", model, cfg, asked)), asked, strict=True):
        clip = torch.zeros(1, 3, 8, 32, 32)
        assert contender.name == budget.name
        assert contender.macs == measured_macs(model, clip, budget)
        assert torch.equal(contender.call(model, clip)[0], model(clip, budget))
    own = config_with("tests/small.yaml", SETTINGS, [], None)
    assert (own.DATA.NUM_FRAMES, own.MODEL.EXITS) == (4, [])


def test_shares_are_of_the_largest_budget_of_the_first_model_in_the_same_round():
    rows = [{"model": "a", "macs": 50, "seconds": [1.0, 4.0, 2.0], "batch": 2},
            {"model": "a", "macs": 100, "seconds": [2.0, 4.0, 8.0], "batch": 2},
            {"model": "b", "macs": 300, "seconds": [2.0, 4.0, 8.0], "batch": 2}]  # fmt: skip
    add_shares(rows, "a")
    assert [row["share_of_macs"] for row in rows] == [0.5, 1.0, 3.0]
    assert [row["share_of_time"] for row in rows] == [0.5, 1.0, 1.0]  # the median of 0.5, 1 and 0.25
    assert [row["conversion"] for row in rows] == [1.0, 1.0, 3.0]
    assert [row["ms"] for row in rows] == [1000.0, 2000.0, 2000.0]


def test_a_checkpoint_has_its_budgets_and_what_its_test_measured(runs):
    one = trained_model(str(runs / "one"), [], CPU)
    assert one.top1 == {"1x2x2,b1": 60.0, "1x2x2": 65.0}
    assert one.budgets == model_spec(one.cfg).budgets
    assert trained_model(str(runs / "one"), [Budget((1, 2, 2), 1)], CPU).budgets == [Budget((1, 2, 2), 1)]
    assert trained_model(str(runs / "vit"), [], CPU).top1 == {"": 70.0}
    with pytest.raises(ValueError, match=r"no budget 1x1x1; it has 1x2x2, "):
        trained_model(str(runs / "one"), [Budget((1, 1, 1))], CPU)


def test_models_of_other_clips_are_not_compared(runs):
    one = trained_model(str(runs / "one"), [], CPU)
    cfg = config_with("tests/small.yaml", SETTINGS, [], 8)
    other = Model("x", build_model(cfg), cfg, [])
    with pytest.raises(ValueError, match=r"x: takes 8 frames of 32 pixels, .* 4 of 32"):
        budgets.benchmark([one, other], argparse.Namespace(batch=[1], threads=[1]))


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["lookupvit benchmark budgets", *map(str, words), "--rounds", "2", "--seconds",
                                     "0.001", "--threads", "1"])  # fmt: skip
    assert command.budgets() == 0
    return capsys.readouterr().out


def test_checkpoints_are_compared_and_drawn(runs, tmp_path, monkeypatch, capsys):
    files = [tmp_path / f"a.{suffix}" for suffix in ("json", "md", "png")]
    out = run(monkeypatch, capsys, "--checkpoint", runs / "one", runs / "vit", "--batch", 1, 2,
              "--json", files[0], "--markdown", files[1], "--plot", files[2])  # fmt: skip
    rows = json.loads(files[0].read_text())["rows"]
    assert [(row["batch"], row["budget"]) for row in rows] == [
        (batch, name) for batch in (1, 2) for name in ("1x2x2", "1x2x2,b1", "1x2x2,k1-0.5", "")
    ]
    assert files[1].read_text() == out
    assert files[2].read_bytes()[:4] == b"\x89PNG"
    for row in rows:
        name = row["budget"] or "-"
        assert f"| {name} | {row['macs'] / 1e9:.4g} | {row['share_of_macs']:.3f} |" in out
    points = drawn(rows)
    assert [point.name for point in points[str(runs / "one")]] == ["1x2x2", "1x2x2,b1"]  # those with accuracies
    assert [point.top1 for point in points[str(runs / "vit")]] == [70.0]
    with pytest.raises(ValueError, match="--plot: no accuracies; test the checkpoints"):
        drawn([{**row, "top1": None} for row in rows])


def test_eight_bits_take_turns_with_floats(runs, tmp_path, monkeypatch, capsys):
    run(monkeypatch, capsys, "--checkpoint", runs / "one", "--budgets", "1x2x2,b1", "--int8", "--json",
        tmp_path / "a.json")  # fmt: skip
    plain, small = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert (small["model"], small["budget"]) == (f"{runs / 'one'}, int8", plain["budget"])
    assert (small["share_of_macs"], small["top1"]) == (1, None)
    one = trained_model(str(runs / "one"), [], CPU)
    assert linear_layers(budgets.eight_bit(one).module) == {}
    assert linear_layers(one.module)
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--checkpoint", runs / "one", "--int8", "--precision", "bfloat16")


def test_a_config_is_measured_with_random_weights(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "--cfg", "tests/small.yaml", "--process-time", "--frames", 4, 8,
              "--budgets", "1x2x2", "1x2x2,b1", *SETTINGS)  # fmt: skip
    assert [line.split(" | ")[:4] for line in out.splitlines() if "x2x2" in line and line.count("|") > 8] == [
        [f"| {frames}", "1", "1", name] for frames in (4, 8) for name in ("1x2x2", "1x2x2,b1")
    ]
    assert "at least 0.8" in out
    assert "float32, CPU time of the process" in out
    assert "top-1" not in out
