"""What `lookupvit benchmark model` and `block` measure: equal operations, right ratios, real memory."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lookupvit_video.benchmarks import contenders
from lookupvit_video.benchmarks import model as benchmark
from lookupvit_video.models.complexity import (
    Shape,
    lookupvit_block_macs,
    lookupvit_macs,
    vit_block_macs,
    vit_macs,
)
from lookupvit_video.models.lookupvit import HEADS
from lookupvit_video.models.pretexts.masked import masked_macs
from tests.small import call_tool

SMALL = ["--dim", 64, "--depth", 1, "--frames", 4, "--size", 32, "--grids", "1x2x2", "2x1x1", "--rounds", 2,
         "--seconds", 0.001, "--threads", 1]  # fmt: skip


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def row(model, seconds, macs, grid=None, **others):
    return {
        "model": model, "seconds": seconds, "macs": macs, "grid": grid, "mode": "inference", "frames": 16, "size": 224,
        "batch": 1, "threads": 1, "parameters": 1, "peak_bytes": 100, **others,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run over inference and training that every test of the command's results shares."""
    folder = tmp_path_factory.mktemp("benchmark")
    files = {name: folder / f"a.{name}" for name in ("json", "md", "png")}
    done = call_tool(
        "tools/benchmark.py", "model", *SMALL, "--only", "lookupvit", "masked", "vit", "timm",
        "--mode", "inference", "train", "--frames", 4, 8,
        "--json", files["json"], "--markdown", files["md"], "--plot", files["png"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(files["json"].read_text()), files


def test_every_contender_has_a_row_in_every_setting(run):
    _, facts, _ = run
    ours, peer = ["LookupViT 1x2x2", "LookupViT 2x1x1", "dense ViT"], "ViT on frames (timm)"
    pretexts = [f"{name}, masked pre-training" for name in ours[:2]]
    names = {"inference": [*ours, "dense ViT, own attention", peer], "train": [*ours[:2], *pretexts, ours[2], peer]}
    wanted = [(mode, frames, name) for mode in names for frames in (4, 8) for name in names[mode]]
    assert [(found["mode"], found["frames"], found["model"]) for found in facts["rows"]] == wanted
    for found in facts["rows"]:
        assert len(found["seconds"]) == 2
        assert min(found["seconds"]) > 0
        trains_all = found["mode"] == "train" and found["model"] not in pretexts  # whose heads do not train
        assert found["peak_bytes"] >= 4 * found["parameters"] * (3 if trains_all else 1)


def test_operations_are_those_of_the_closed_form(run):
    _, facts, _ = run
    for found in facts["rows"]:
        grid = (found["frames"] // 2, 2, 2)
        shape = Shape(grid=grid, tubelet=(2, 16, 16), dim=64, depth=1, num_heads=1, num_classes=400)
        if found["model"].endswith("masked pre-training"):
            compressed = tuple(map(int, found["model"].split()[1].rstrip(",").split("x")))
            assert found["macs"] == sum(masked_macs(shape, 0.9, 192, 2, compressed, HEADS).values())
        elif found["model"].startswith("LookupViT"):
            assert found["macs"] == sum(lookupvit_macs(shape, found["grid"]).values())
        elif found["model"].startswith("dense ViT"):
            assert found["macs"] == sum(vit_macs(shape).values())


def test_tables_say_what_the_json_says(run):
    stdout, facts, files = run
    assert files["md"].read_text() in stdout
    assert files["png"].read_bytes()[:4] == b"\x89PNG"
    for found in facts["rows"]:
        start = f"| {found['mode']} | {found['frames']} | 32 | 1 | 1 | {found['model']} |"
        (line,) = (line for line in stdout.splitlines() if line.startswith(start) and line.count("|") == 17)
        assert f"| {found['clips_per_second']:.3g} |" in line
        assert f"| {found['conversion']:.2f} |" in line
    assert "| time grows |" in stdout
    assert "--only lookupvit masked vit timm" in stdout
    conversions = {"conversion", "conversion over the dense ViT, own attention"}
    shares = {"GMACs of the supervised step", "time of the supervised step"}
    assert {(goal["what"], goal["mode"]) for goal in facts["goals"]} == {
        *((what, "inference") for what in conversions), *((what, "train") for what in shares)
    }  # fmt: skip


def test_published_models_take_part(tmp_path):
    pytest.importorskip("transformers")
    done = call_tool(
        "tools/benchmark.py", "model", *SMALL, "--only", "vit", "videomae", "vivit", "--json", tmp_path / "a.json"
    )
    assert done.returncode == 0, done.stderr
    ours, _, videomae, vivit = json.loads((tmp_path / "a.json").read_text())["rows"]
    # The same transformer on the same tokens; ViViT has a class token and another head.
    assert videomae["macs"] == ours["macs"]
    assert 1 < vivit["macs"] / ours["macs"] < 1.2


def test_ratios_are_of_the_same_round():
    rows = [row("dense ViT", [4.0, 9.0, 6.0], 300), row("LookupViT 4x7x7", [2.0, 3.0, 2.0], 100, (4, 7, 7))]
    benchmark.add_ratios(rows, None)
    assert rows[1]["speed_up"] == 3  # of 2, 3 and 3
    assert rows[1]["mac_ratio"] == 3
    assert rows[1]["conversion"] == 1
    assert rows[1]["clips_per_second"] == 0.5
    assert rows[1]["flops_per_second"] == 100
    train = [row("dense ViT", [4.0], 300, mode="train", batch=8)]
    benchmark.add_ratios(train, 14400)
    assert train[0]["flops_per_second"] == 3 * 2 * 300 * 8 / 4
    assert train[0]["mfu"] == 0.25


def test_best_batches_and_goals():
    rows = []
    for batch, dense, ours, hf in ((1, 4.0, 2.0, 5.0), (8, 16.0, 16.0, 40.0)):
        rows += [
            row("dense ViT", [dense], 300, batch=batch),
            row("LookupViT 4x7x7", [ours], 100, (4, 7, 7), batch=batch),
            row("VideoMAE's ViT (Hugging Face)", [hf], 300, batch=batch),
        ]
        benchmark.add_ratios(rows[-3:], None)
    best = {found["model"]: found for found in benchmark.best_batches(rows)}
    assert [found["batch"] for found in best.values()] == [8, 1, 1]
    assert best["LookupViT 4x7x7"]["speed_up"] == 1  # half a clip a second each
    found = benchmark.compare_with_goals(list(best.values()), False)
    assert [(goal["what"], goal["value"], goal["goal"], goal["met"]) for goal in found] == [
        ("conversion", pytest.approx(1 / 3), "at least 0.95", False),
        ("times VideoMAE's ViT (Hugging Face)", 2.5, "at least 2", True),
    ]
    gpu = benchmark.compare_with_goals(list(best.values()), True)
    assert gpu[0]["goal"] == "at least 0.85"


def test_a_masked_step_is_compared_with_the_supervised_one():
    rows = [
        row("LookupViT 2x7x7", [4.0], 100, (2, 7, 7), mode="train"),
        row("LookupViT 2x7x7, masked pre-training", [1.0], 40, mode="train"),
    ]
    benchmark.add_ratios(rows, None)
    found = benchmark.compare_with_goals(rows, False)
    assert [(goal["what"], goal["value"], goal["goal"], goal["met"]) for goal in found] == [
        ("GMACs of the supervised step", 0.4, "at most 0.35", False),
        ("time of the supervised step", 0.25, "at most 0.35", True),
    ]
    assert {goal["model"] for goal in found} == {rows[1]["model"]}


def test_growth_is_against_the_number_of_tokens():
    rows = [row("dense ViT", [1.0], 1, frames=16), row("dense ViT", [6.0], 4, frames=32)]
    benchmark.add_ratios(rows, None)
    assert "| inference | 224 | 1 | dense ViT | 1568 to 3136 | 6.00 | 3.00 | 1.50 |" in benchmark.growth(rows)
    assert benchmark.growth(rows[:1]) == ""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system has no such counter")
def test_peak_memory_sees_what_a_run_allocates_and_frees():
    def run():
        torch.ones(64 * 2**18)  # 64 MiB

    assert 60 * 2**20 < benchmark.peak_bytes(run, torch.device("cpu")) < 80 * 2**20


def test_resident_memory_counts_adamws_sums():
    model = nn.Linear(10, 10, bias=False)
    contender = contenders.Contender("a", model, lambda model, clips: (model(clips),))
    assert benchmark.resident_bytes(contender) == 400
    contender.optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 10)).sum().backward()
    contender.optimizer.step()
    assert 1200 <= benchmark.resident_bytes(contender) < 1300


def test_turns_begin_with_another_contender_each_round():
    called = []

    def contender(name):
        return contenders.Contender(name, nn.Identity(), lambda model, clips: called.append(name) or (clips,))

    setting = contenders.Setting("inference", 2, 16, 1, 1)
    arguments = argparse.Namespace(device=torch.device("cpu"), precision="float32", rounds=3, seconds=0.0)
    ticks = []
    benchmark.compare([contender(name) for name in "abc"], setting, arguments, lambda: ticks.append(1))
    assert "".join(called) == "aaa" + "bbb" + "ccc" + "abc" + "bca" + "cab"  # first: warm-up, how long, memory
    assert len(ticks) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grids", "4x7"], "'4x7' is not a grid such as 4x7x7"),
        (["--grids", "9x7x7"], "--grids 9x7x7 is larger than the 8x14x14 tubelets of 16 frames of 224 pixels"),
        (["--frames", "7"], "7 frames of 224 pixels cannot be cut into tubelets of (2, 16, 16)"),
        (["--dim", "100"], "--dim 100: take a multiple of 64"),
        (["--rounds", "0"], "must be at least 1, got 0"),
        (["--only", "resnet"], "invalid choice: 'resnet'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = call_tool("tools/benchmark.py", "model", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_account_of_a_block_adds_up_to_the_formulas():
    done = call_tool(
        "tools/benchmark.py",
        "block",
        "--variant",
        "Ti",
        "--tokens",
        32,
        "--compressed",
        8,
        "--rounds",
        1,
        "--threads",
        1,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    named = {row[0]: row[1:] for row in rows}
    assert rows[0][0] == "LookupViT block"
    (middle,) = (i for i, row in enumerate(rows) if row[0] == "dense block")
    for part, macs in ((rows[:middle], lookupvit_block_macs(32, 8, 192)), (rows[middle:], vit_block_macs(32, 192))):
        total = next(row for row in part if row[0] == "sum of the parts")
        assert total[1] == f"{macs / 1e6:.0f}"
    assert float(named["the block"][3]) > 0
    assert "GB/s in a copy" in done.stdout


def test_memory_for_backward_is_reported_for_each_way_to_recompute():
    done = call_tool(
        "tools/benchmark.py", "block", "--kept", "--variant", "Ti", "--tokens", 64, "--compressed", 8,
        "--precision", "bfloat16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    shares = {row[0]: (float(row[2]), float(row[4])) for row in rows[2:]}
    assert shares["dense"] == (1.0, 1.0)
    for i in (0, 1):
        kept = [shares[f"LookupViT{how}"][i] for how in ("", ", write_back recomputed", ", full recomputed")]
        assert 1 > kept[0] > kept[1] > kept[2] > 0
