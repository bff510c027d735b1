"""Whole runs on real mp4 files, in real processes."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain, repeat

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, training_checkpoints
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import Video
from lookupvit_video.distributed.utilization import peak_flops, utilization
from lookupvit_video.distributed.world import World
from lookupvit_video.drawing import figures
from lookupvit_video.errors import RunFailure
from lookupvit_video.evaluation.metrics import METRICS, metric
from lookupvit_video.log import read_json_lines
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.training import step as step_module
from lookupvit_video.training import train as train_module
from lookupvit_video.training.losses import ClassificationLoss
from lookupvit_video.training.run import draw_budget
from lookupvit_video.training.step import loss_of_heads
from lookupvit_video.training.step_log import StepLog
from tests.small import call_tool, make_videos, run_net, run_tool, settings, started

NET = ("tools/run_net.py", "--cfg", "tests/small.yaml")
GRIDS = "[[1,2,2],[1,1,1],[2,3,3]]"
ONE_EPOCH = {"SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "TEST__ENABLE": False}
NO_STEP = {"SOLVER__BASE_LR": 0, "SOLVER__WARMUP_START_LR": 0, "SOLVER__COSINE_END_LR": 0}  # weights stay as they began


def weights(folder):
    return load_checkpoint(folder / "model.pt").model


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def losses(folder):
    return [entry["loss"] for entry in read_json_lines(folder / "log.jsonl", "train")]


def test_loss_is_the_mean_over_heads_and_clips_wherever_a_bad_one_is():
    logits = (torch.randn(4, 3), torch.randn(4, 3))
    targets = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    valid = torch.tensor([True, True, True, False])
    expected = sum(torch.nn.functional.cross_entropy(head[:3], targets[:3], label_smoothing=0.1) for head in logits) / 2
    smoothed = ClassificationLoss(smoothing=0.1)
    whole = loss_of_heads(logits, targets, valid, smoothed)
    torch.testing.assert_close(whole, expected * 3 / 4)
    halves = [
        loss_of_heads([head[at] for head in logits], targets[at], valid[at], smoothed) for at in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)  # in two processes or parts as in one
    assert loss_of_heads(logits, targets, torch.zeros(4, dtype=torch.bool), smoothed) == 0


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_videos():
    log = StepLog(World(0, 1, torch.device("cpu")), [Video("a.mp4", 0), Video("b.mp4", 1)])
    log.add(torch.tensor(1.0), torch.tensor(2.0), [0])
    log.add(torch.tensor(float("nan")), torch.tensor(2.0), [1])
    with pytest.raises(
        RunFailure, match=r"step 11: the loss is nan in rank 0, .* norm is 2; rank 0 read b\.mp4; lower"
    ):
        log.settle(11)


def test_a_line_is_the_mean_of_its_steps_whether_settled_at_once_or_in_between():
    lines = []
    for settled_early in (False, True):
        log = StepLog(World(0, 1, torch.device("cpu")), [])
        for value in (0.1, 0.7, 0.3):
            log.add(torch.tensor(value), torch.tensor(2 * value), [])
            if settled_early:
                log.settle(1)
        log.settle(1)
        facts, _ = log.summary(4)
        lines.append((facts["loss"], facts["grad_norm"]))
    assert lines[0] == lines[1] == (pytest.approx(1.1 / 3), pytest.approx(2.2 / 3))


def grid_of(cfg, step):
    """Return the compressed grid that a run draws for a step."""
    return budget_of(cfg, step).grid


def budget_of(cfg, step):
    """Return the budget that a run draws for a step."""
    model = cfg.MODEL
    return draw_budget(Budget(tuple(model.COMPRESSED_GRID)), model.COMPRESSED_GRIDS, model.COMPRESSED_GRID_WEIGHTS,
                       model.KEEPS, cfg.RNG_SEED, step)  # fmt: skip


def drawn(overrides="", steps=range(400)):
    cfg = load_config("tests/small.yaml", [*settings("", "", MODEL__COMPRESSED_GRIDS=GRIDS), *overrides.split()])
    return [grid_of(cfg, step) for step in steps]


def test_grids_follow_from_seed_and_step_alone():
    first = drawn()
    random.seed(5)
    torch.manual_seed(5)
    assert drawn(steps=reversed(range(400))) == first[::-1]
    assert drawn("RNG_SEED 1") != first
    counts = Counter(first)
    assert counts.keys() == {(1, 2, 2), (1, 1, 1), (2, 3, 3)}
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_grids_are_drawn_by_their_weights():
    counts = Counter(drawn("MODEL.COMPRESSED_GRID_WEIGHTS [6,3,1]"))
    for grid, share in {(1, 2, 2): 0.6, (1, 1, 1): 0.3, (2, 3, 3): 0.1}.items():
        assert counts[grid] / 400 == pytest.approx(share, abs=0.05)


def test_shares_are_drawn_as_well_and_change_no_grid():
    overrides = settings("", "", MODEL__COMPRESSED_GRIDS=GRIDS, MODEL__KEEPS="[[1],[1,0.5],[1,0.25]]")
    cfg = load_config("tests/small.yaml", overrides)
    budgets = [budget_of(cfg, step) for step in range(400)]
    assert [budget.grid for budget in budgets] == drawn()
    counts = Counter((budget.grid, budget.keep) for budget in budgets)
    assert len(counts) == 9
    assert max(counts.values()) < 2 * min(counts.values())
    assert draw_budget(Budget((1, 1, 1), 0, (1, 0.5)), [], [], [], 0, 0) is None
    assert draw_budget(Budget((1, 1, 1), 0, (1, 0.5)), [[2, 2, 2]], [], [], 0, 0) == ((2, 2, 2), 0, (1, 0.5))
    assert draw_budget(Budget((1, 1, 1)), [], [], [[1, 0.5]], 0, 0) == ((1, 1, 1), 0, (1, 0.5))


def test_all_parts_of_a_step_have_its_budget_and_validation_the_default(data, tmp_path, monkeypatch):
    seen = {True: [], False: []}
    plain = LookupViT.start

    def watched(model, tokens, budget, order):
        seen[model.training].append(budget)
        return plain(model, tokens, budget, order)

    monkeypatch.setattr(LookupViT, "start", watched)
    overrides = settings(data, tmp_path, MODEL__COMPRESSED_GRIDS=GRIDS, MODEL__KEEPS="[[1],[1,0.5]]",
                         TRAIN__ACCUMULATION_STEPS=2, SOLVER__MAX_EPOCH=3, TEST__ENABLE=False)  # fmt: skip
    done = run_net(overrides)
    assert done.returncode == 0, done.stderr
    cfg = load_config("tests/small.yaml", overrides)
    assert seen[True] == [budget_of(cfg, step) for step in range(6) for _ in range(2)]
    assert len(set(seen[True])) > 1
    assert set(seen[False]) == {Budget(tuple(cfg.MODEL.COMPRESSED_GRID))}


def test_a_run_leaves_everything_it_promises(data, tmp_path):
    done = run_net(settings(data, tmp_path, TEST__NUM_ENSEMBLE_VIEWS=2, TEST__NUM_SPATIAL_CROPS=3, AUG__NUM_SAMPLE=2,
                            MIXUP__ENABLE=True, AUG__RE_PROB=0.5, AUG__RAND_AUGMENT_OPS=2, AUG__COLOR_JITTER=0.4,
                            MODEL__DROP_PATH=0.1, TRAIN__ACCUMULATION_STEPS=2, DATA_LOADER__NUM_WORKERS=1))  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["videos"] == 9
    assert results["views"] == "2x3"
    assert results["gmacs_per_view"] > 0
    assert json.loads((tmp_path / "test_results.json").read_text())["top1"] == results["top1"]
    for picture in ("curves.png", "confusion_matrix.png", "train_clips.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "test_predictions.csv").open()))
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert results["top1"] == pytest.approx(100 * right / 9, abs=0.01)
    entries = read_json_lines(tmp_path / "log.jsonl", "train")
    assert [entry["step"] for entry in entries] == list(range(1, 9))  # 9 videos, 2 a step, 2 epochs
    wanted = {"loss", "lr", "grad_norm", "clips_per_second", "data_time", "data_share", "step_time", "memory_gib",
              "eta_seconds"}  # fmt: skip
    assert wanted <= entries[0].keys()
    assert [entry["loss"] > 0 for entry in read_json_lines(tmp_path / "log.jsonl", "val")] == [True, True]
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    assert checkpoint.classes == ["class 0", "class 1", "class 2"]
    assert (tmp_path / "config.yaml").read_text() == checkpoint.config.dump()
    again = run_net(settings(data, tmp_path, AUG__NUM_SAMPLE=2))
    assert "resume" in again.stderr  # finished: nothing is trained again


def test_a_metric_added_at_run_time_chooses_the_best_and_is_in_logs_curves_and_results(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "made_up", None)  # removed after the test
    values, pictures = chain([5.0, 1.0, 3.0], repeat(7.0)), []

    @metric("made up", higher_is_better=False, percent=False)
    def made_up(scores, labels):
        assert scores.shape == (9, 3)
        return next(values)

    monkeypatch.setattr(figures, "save_figure", lambda figure, path, **_: pictures.append((path.name, figure)))
    done = run_net(settings(data, tmp_path, SOLVER__MAX_EPOCH=3, TEST__METRICS="[top1,made_up]",
                            TRAIN__BEST_METRIC="made_up"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [entry["made_up"] for entry in read_json_lines(tmp_path / "log.jsonl", "val")] == [5, 1, 3]
    assert "top5" not in read_json_lines(tmp_path / "log.jsonl", "val")[0]
    assert "made up 1.0000 of 9 videos" in done.stderr
    assert load_checkpoint(tmp_path / "best.pt").step == 4  # the second of three epochs
    last = load_checkpoint(training_checkpoints(tmp_path)[0])
    assert (last.state["best"], last.best_top1) == ({"made_up": 1.0}, -1.0)
    assert json.loads((tmp_path / "test_results.json").read_text())["made_up"] == 7
    curves = dict(pictures)["curves.png"]
    labels = {line.get_label() for axis in curves.axes for line in axis.lines}
    assert labels == {
        "training loss",
        "validation loss",
        "learning rate",
        "top1",
        "made_up",
        "best: epoch 2, made_up 1",
    }


def test_an_unknown_metric_is_reported_in_one_line_before_the_first_step(data, tmp_path):
    done = run_net(settings(data, tmp_path, TEST__METRICS="[top1,top7]"))
    assert done.returncode == 2
    assert "TEST.METRICS: there is no metric 'top7'; choose from top1, top5, mean_class_accuracy, nll" in done.stderr
    assert "Traceback" not in done.stderr
    assert not training_checkpoints(tmp_path)


def test_killed_and_resumed_equals_uninterrupted(data, vit, tmp_path):
    options = {"SOLVER__MAX_EPOCH": 6, "MODEL__DROP_PATH": 0.2, "MIXUP__ENABLE": True, "AUG__NUM_SAMPLE": 2,
               "MODEL__COMPRESSED_GRIDS": GRIDS, "DISTILL__TEACHER": vit / "model.pt", "DISTILL__FEATURE_WEIGHT": 1,
               "DISTILL__BLOCK_WEIGHT": 1, "TEST__ENABLE": False}  # fmt: skip
    whole = run_tool(*NET, *settings(data, tmp_path / "whole", **options))
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, *NET, *settings(data, tmp_path / "killed", **options)]
    with started(command, limit=240, stderr=subprocess.DEVNULL) as process:
        while len(training_checkpoints(tmp_path / "killed")) < 2:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "model.pt").exists()
    resumed = run_tool(*NET, *settings(data, tmp_path / "killed", **options))
    assert "resume" in resumed.stderr
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_two_processes_train_and_test_as_one_does(data, vit, tmp_path):
    options = {"TEST__NUM_ENSEMBLE_VIEWS": 2, "MODEL__COMPRESSED_GRIDS": GRIDS, "TEST__GRIDS": "[[2,4,4]]",
               "DISTILL__TEACHER": vit / "model.pt", "DISTILL__FEATURE_WEIGHT": 1,
               "DISTILL__BLOCK_WEIGHT": 1}  # fmt: skip
    alone = run_net(settings(data, tmp_path / "one", **options))
    both = run_net(settings(data, tmp_path / "two", **options), processes=2)
    assert both.returncode == 0, both.stderr
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    for name in one:
        found, expected = two[name], one[name]
        if name.endswith("qkv.bias"):
            # That of the keys adds the same to all logits of a query: its gradient is rounding, and AdamW's steps too.
            found, expected = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=name)
    # The same checkpoint, tested by one process and by two: every video once, the same answers.
    tested = run_net(settings(data, tmp_path / "retest", **options, TRAIN__ENABLE=False,
                              TEST__CHECKPOINT_FILE_PATH=tmp_path / "one" / "model.pt"), processes=2)  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in (alone, tested))
    assert second["videos"] == 9
    assert {k: first[k] for k in ("top1", "grids")} == {k: second[k] for k in ("top1", "grids")}
    rows = [(tmp_path / name / "test_predictions.csv").read_text() for name in ("one", "retest")]
    assert [row.split(",")[:3] for row in rows[0].split()] == [row.split(",")[:3] for row in rows[1].split()]


def test_bad_videos_are_skipped_listed_and_bounded(data, tmp_path):
    videos = tmp_path / "data"
    make_videos(videos)
    (videos / "4.mp4").write_bytes(b"")
    tolerant = run_net(settings(videos, tmp_path / "a", DATA__MAX_BAD_FRACTION=0.2))
    assert tolerant.returncode == 0, tolerant.stderr
    results = json.loads(tolerant.stdout.splitlines()[-1])
    assert [os.path.basename(bad["path"]) for bad in results["bad_videos"]] == ["4.mp4"]
    assert results["top1"] <= 100 * 8 / 9  # it counts as wrong
    listed = list(csv.DictReader((tmp_path / "a" / "bad_videos.csv").open()))
    assert {row["split"] for row in listed} == {"train", "val", "test"}
    assert "empty" in listed[0]["reason"]
    strict = run_net(settings(videos, tmp_path / "b", DATA__MAX_BAD_FRACTION=0.05, SOLVER__MAX_EPOCH=3))
    assert strict.returncode == 1
    assert "1 of 9 training videos cannot be read" in strict.stderr
    assert "Traceback" not in strict.stderr


def test_bad_videos_of_all_processes_count_together(data, tmp_path, monkeypatch):
    """Another process has found two bad ones; more than one is not allowed."""
    monkeypatch.setattr(
        train_module, "gather_objects", lambda value, world: [value, {3, 4}] if isinstance(value, set) else [value]
    )
    done = run_net(settings(data, tmp_path, **ONE_EPOCH, DATA__MAX_BAD_FRACTION=0.2))
    assert done.returncode == 1
    assert "error: 2 of 9 training videos cannot be read" in done.stderr


def test_a_gpu_whose_memory_is_full_gives_one_line(data, tmp_path, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr(step_module, "forward", full)
    done = run_net(settings(data, tmp_path, **ONE_EPOCH))
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "error: the GPU's memory is full (CUDA out of memory. Tried to allocate 2.00 GiB); raise TRAIN.ACC" in line


def test_resume_refuses_other_steps_clips_and_models(data, tmp_path):
    assert run_net(settings(data, tmp_path, **ONE_EPOCH)).returncode == 0
    for changes, difference in (
        ({"TRAIN__BATCH_SIZE": 3}, "TRAIN.BATCH_SIZE was 4 and is now 3"),
        ({"AUG__NUM_SAMPLE": 2}, "AUG.NUM_SAMPLE was 1 and is now 2"),
        ({"DATA__NUM_FRAMES": 8}, "DATA.NUM_FRAMES was 4 and is now 8"),
        ({"DATA__TRAIN_CROP_SIZE": 48, "DATA__TEST_CROP_SIZE": 48}, "DATA.TRAIN_CROP_SIZE was 32 and is now 48"),
    ):
        other = run_net(settings(data, tmp_path, **changes))
        assert other.returncode == 2
        assert difference in other.stderr
        assert "choose another OUTPUT_DIR" in other.stderr
    other_heads = run_net(settings(data, tmp_path, MODEL__NUM_HEADS=2))  # which no shape tells
    assert other_heads.returncode == 2
    assert "it was trained with MODEL.NUM_HEADS 3, the config says 2" in other_heads.stderr
    afresh = run_net(settings(data, tmp_path, TRAIN__AUTO_RESUME=False))
    assert afresh.returncode == 2
    assert "has checkpoints, but TRAIN.AUTO_RESUME is False" in afresh.stderr
    other_model = run_net(settings(data, tmp_path, MODEL__DEPTH=1))
    assert other_model.returncode == 2
    assert "is missing in the model" in other_model.stderr


def test_a_dense_vit_begins_a_lookupvit(data, vit, tmp_path):
    start = shutil.copy(vit / "model.pt", tmp_path / "start.pt")
    overrides = settings(data, tmp_path, **ONE_EPOCH, **NO_STEP, MODEL__INIT_FROM=start)
    done = run_net(overrides)
    assert done.returncode == 0, done.stderr
    assert "initialized from this project's ViT" in done.stderr
    loaded = next(line for line in done.stderr.splitlines() if line.startswith("  loaded"))
    assert "tokenizer.positions" in loaded
    assert "blocks.*.refine.attention.qkv.weight x2" in loaded
    source, own = weights(vit), weights(tmp_path)
    for name in ("tokenizer.positions", "tokenizer.projection.weight"):
        assert torch.equal(source[name], own[name])
    blocks = [name for name in source if name.startswith("blocks.")]
    assert len(blocks) == 24
    for name in blocks:
        _, number, inside = name.split(".", 2)
        assert torch.equal(source[name], own[f"blocks.{number}.refine.{inside}"]), name
    start.unlink()
    again = run_net(overrides)  # the run resumes: this is not looked at
    assert again.returncode == 0, again.stderr
    assert "resume" in again.stderr
    assert "initialised" not in again.stderr


@pytest.mark.parametrize(("arch", "pool"), [("vit", "average"), ("lookupvit", "attentive")])
def test_a_frozen_encoder_leaves_the_heads_to_learn(data, vit, tmp_path, arch, pool):
    options = {**ONE_EPOCH, "MODEL__FREEZE_ENCODER": True, "MODEL__INIT_FROM": vit / "model.pt", "MODEL__ARCH": arch,
               "MODEL__POOL": pool}  # fmt: skip
    for folder, changes in (("before", NO_STEP), ("after", {})):
        done = run_net(settings(data, tmp_path / folder, **options, **changes))
        assert done.returncode == 0, done.stderr
    before, after = (weights(tmp_path / folder) for folder in ("before", "after"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(("head.", "heads."))}
    if arch == "vit":
        assert all(torch.equal(after[name], value) for name, value in weights(vit).items() if name not in changed)


def test_a_dry_run_tells_the_plan_makes_a_step_and_writes_nothing(data, tmp_path):
    before = sorted(path.name for path in data.iterdir())
    done = call_tool(*NET, "--dry-run", *settings(data, tmp_path / "run", AUG__NUM_SAMPLE=2, SOLVER__EMA_DECAY=0.9))
    assert done.returncode == 0, done.stderr
    plan = {line.split()[0]: line for line in done.stdout.splitlines()}
    model = build_model(load_config("tests/small.yaml", settings(data, tmp_path)))
    assert f"{count_parameters(model) / 1e6:.2f} M parameters" in plan["model"]
    assert "0.0005335 GMACs a clip" in plan["model"]
    assert "9 training videos, 9 for validation, 3 classes" in plan["data"]
    assert "8 = 2 epochs x 4, 0 done" in plan["steps"]
    assert "first 1e-06, peak 0.001" in plan["rate"]
    estimate, peak = (float(re.search(r"([\d.]+) GiB", plan[line])[1]) for line in ("memory", "one"))
    assert 0.75 * peak <= estimate <= 1.25 * peak
    assert "loss 1." in plan["one"]
    assert not (tmp_path / "run").exists()
    assert sorted(path.name for path in data.iterdir()) == before
    too_few = call_tool(*NET, "--dry-run", *settings(data, tmp_path / "run", TRAIN__BATCH_SIZE=10))
    assert too_few.returncode == 2
    assert "TRAIN.BATCH_SIZE needs 10 videos a step, but the training list holds 9" in too_few.stderr


def test_tensorboard_has_the_curves(data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = run_net(settings(data, tmp_path, TEST__ENABLE=False, TENSORBOARD__ENABLE=True))
    assert done.returncode == 0, done.stderr
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    wanted = [entry["loss"] for entry in read_json_lines(tmp_path / "log.jsonl", "train")]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(wanted, rel=1e-5)
    assert [event.step for event in events.Scalars("val/top1")] == [2, 4]


def test_utilization_is_operations_over_the_peak(monkeypatch):
    world = World(0, 4, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    macs = 10**15
    assert utilization(macs, 10.0, world, torch.bfloat16) == pytest.approx(6 * macs / (10 * 4 * 989e12))
    assert utilization(macs, 10.0, world, torch.float32) is None
    assert utilization(macs, 10.0, World(0, 1, torch.device("cpu")), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H20", 148), ("NVIDIA A100-SXM4-80GB", 312),
     ("NVIDIA A10G", 70), ("NVIDIA L40S", 362), ("NVIDIA L40", 181), ("NVIDIA L4", 121), ("another", None)],
)  # fmt: skip
def test_the_peak_is_that_of_the_card(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == (peak and peak * 1e12)
    assert peak_flops(torch.device("cuda"), torch.float32) is None
