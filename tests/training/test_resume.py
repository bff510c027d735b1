"""A run that was interrupted ends as one that was not, to the bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from lookupvit_video import __version__
from lookupvit_video.checkpoints.checkpoint import (
    checkpoint_path,
    checkpoint_seen_by_main,
    load_checkpoint,
    training_checkpoints,
)
from lookupvit_video.checkpoints.random_state import random_state, restore_random_state
from lookupvit_video.config import load_config
from lookupvit_video.distributed.world import World
from lookupvit_video.log import read_json_lines
from lookupvit_video.training import run as run_module
from tests.small import run_net, settings, started

# 4 steps an epoch; log lines of 3 steps, which no checkpoint but every third falls together with
OPTIONS = {
    "SOLVER__MAX_EPOCH": 3, "LOG_PERIOD": 3, "TRAIN__CHECKPOINT_STEPS": 1, "TRAIN__KEEP_CHECKPOINTS": 99,
    "SOLVER__EMA_DECAY": 0.9, "MODEL__COMPRESSED_GRIDS": "[[1,2,2],[1,1,1],[2,3,3]]", "MIXUP__ENABLE": True,
    "MODEL__EXITS": "[1]", "MODEL__KEEPS": "[[1],[1,0.5]]",
    "AUG__NUM_SAMPLE": 2, "AUG__RE_PROB": 0.5, "MODEL__DROP_PATH": 0.2, "TEST__ENABLE": False,
}  # fmt: skip


def equal(a, b):
    """Whether nested data are the same to the bit, and of the same types."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_end(one, other):
    """Compare all that two runs left: what goes on, what is used, what was logged."""
    first, second = (load_checkpoint(training_checkpoints(folder)[0]) for folder in (one, other))
    for part in ("step", "best_top1", "model", "optimizer", "ema"):
        assert equal(getattr(first, part), getattr(second, part)), part
    for part in ("scaler", "losses", "bad_rows", "position", "to_validate"):
        assert equal(first.state[part], second.state[part]), part
    assert equal(load_checkpoint(one / "model.pt").model, load_checkpoint(other / "model.pt").model)
    for kind, names in (("train", ("step", "loss", "grad_norm", "lr")), ("val", ("step", "top1", "bad"))):
        lines = [
            [{name: entry[name] for name in names} for entry in read_json_lines(folder / "log.jsonl", kind)]
            for folder in (one, other)
        ]
        assert lines[0] == lines[1] != []


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an undisturbed run with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_net(settings(data, folder, **OPTIONS))
    assert done.returncode == 0, done.stderr
    return folder


def interrupted(whole, folder, step):
    """Make a folder as the undisturbed run would have left it, had it been killed after a step."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoint_path(whole, step), checkpoint_path(folder, step))
    lines = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if int(line.split('"step": ')[1].split(",")[0].rstrip("}\n")) <= step]
    (folder / "log.jsonl").write_text("".join(kept) + '{"kind": "train", "st')  # the line that it was writing
    return folder


# 3: with a log line; 5: between two of them; 8: end of an epoch
STEPS = range(1, 12) if os.environ.get("LOOKUPVIT_ALL_FAULTS") == "1" else (3, 5, 8)


@pytest.mark.parametrize("step", STEPS)
def test_resumed_anywhere_equals_undisturbed(data, whole, tmp_path, step):
    folder = interrupted(whole, tmp_path / "run", step)
    done = run_net(settings(data, folder, **OPTIONS))
    assert done.returncode == 0, done.stderr
    assert f"step_{step:08d}.pt, step {step}" in done.stderr
    assert_same_end(whole, folder)


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_taken(data, whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", 5)
    damaged = checkpoint_path(folder, 6)
    content = bytearray(checkpoint_path(whole, 6).read_bytes())
    content[len(content) // 2] ^= 1  # one bit, which reading alone would not notice
    damaged.write_bytes(content)
    done = run_net(settings(data, folder, **OPTIONS))
    assert done.returncode == 0, done.stderr
    assert f"{damaged}: this checkpoint cannot be read (damaged: the checksum of archive/data/" in done.stderr
    assert "does not match); give a .pt file" in done.stderr
    assert "trying the one before" in done.stderr
    assert "step_00000005.pt, step 5" in done.stderr
    assert_same_end(whole, folder)


def test_what_differs_from_before_is_reported_and_the_config_counts(data, whole, tmp_path, monkeypatch):
    folder = interrupted(whole, tmp_path / "run", 5)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    done = run_net(settings(data, folder, **OPTIONS, SOLVER__WEIGHT_DECAY=0.3, TRAIN__CHECKPOINT_MINUTES=5))
    assert done.returncode == 0, done.stderr
    assert "these settings changed; using the new values: SOLVER.WEIGHT_DECAY 0.05, now 0.3\n" in done.stderr
    assert f"was computed with {threads} threads, this run has {threads + 1}: results may differ" in done.stderr
    groups = load_checkpoint(checkpoint_path(folder, 6)).optimizer["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    again = run_net(settings(data, folder, **OPTIONS, SOLVER__WEIGHT_DECAY=0.3))
    assert "threads" not in again.stderr
    assert "settings changed" not in again.stderr


def test_a_damaged_newest_checkpoint_takes_no_sound_ones_place(data, whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", 3)
    checkpoint_path(folder, 9).write_bytes(checkpoint_path(whole, 9).read_bytes()[:-500])
    # Stopped by its numbers at step 5, so with nothing newer than step 9.
    options = {**OPTIONS, "TRAIN__KEEP_CHECKPOINTS": 1, "SOLVER__BASE_LR": 1e30, "LOG_PERIOD": 1}
    done = run_net(settings(data, folder, **options))
    assert done.returncode == 1
    assert "step_00000009.pt: set aside as step_00000009.pt.damaged" in done.stderr
    (kept,) = training_checkpoints(folder)
    assert checkpoint_path(folder, 3) < kept < checkpoint_path(folder, 9)
    load_checkpoint(kept)


def test_all_processes_resume_from_what_the_main_one_sees(data, whole, tmp_path, monkeypatch):
    """This one is the second, and sees a checkpoint more: its view of a network file system is newer."""
    folder = interrupted(whole, tmp_path / "run", 5)
    shutil.copy(checkpoint_path(whole, 6), checkpoint_path(folder, 6))
    cfg = load_config("tests/small.yaml", settings(data, folder, **OPTIONS))
    chosen = str(checkpoint_path(folder, 5))
    monkeypatch.setattr(run_module, "gather_objects", lambda value, world: [chosen, value])
    second = World(1, 2, torch.device("cpu"))
    assert run_module.newest_checkpoint(cfg, second).step == 5
    late = checkpoint_path(folder, 7)
    threading.Timer(0.5, shutil.copy, [checkpoint_path(whole, 7), late]).start()
    assert checkpoint_seen_by_main(late, patience=20).step == 7
    with pytest.raises(ValueError, match=r"step_00000008\.pt: the main process sees .* that all machines share"):
        checkpoint_seen_by_main(checkpoint_path(folder, 8), patience=0.1)


def test_a_signal_saves_and_leaves_and_the_same_command_resumes(data, whole, tmp_path):
    options = {**OPTIONS, "TRAIN__CHECKPOINT_STEPS": 0, "TRAIN__CHECKPOINT_PERIOD": 99, "DATA_LOADER__NUM_WORKERS": 1}
    command = [sys.executable, "tools/run_net.py", "--cfg", "tests/small.yaml", *settings(data, tmp_path, **options)]
    threads = str(torch.get_num_threads())  # as the whole run, which this process made: others change the last bits
    told = []
    with started(command, limit=240, variables={"OMP_NUM_THREADS": threads}, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            told.append(line)
            if "steps" in line and "train: " in line:  # the loop begins
                os.killpg(process.pid, signal.SIGTERM)  # with the workers, as schedulers do
        assert process.wait(60) == 75, "".join(told)
    (saved,) = training_checkpoints(tmp_path)
    assert "stopped by SIGTERM after step" in told[-1]
    assert str(saved) in told[-1]
    assert not (tmp_path / "model.pt").exists()
    again = run_net(settings(data, tmp_path, **OPTIONS))
    assert again.returncode == 0, again.stderr
    assert_same_end(whole, tmp_path)


def test_the_average_is_the_papers_and_is_what_is_handed_out(whole):
    expected = {name: value.double() for name, value in load_checkpoint(checkpoint_path(whole, 1)).ema.items()}
    for step in range(2, 13):
        weights = load_checkpoint(checkpoint_path(whole, step)).model
        expected = {name: 0.9 * value + 0.1 * weights[name] for name, value in expected.items()}
    last = load_checkpoint(checkpoint_path(whole, 12))
    for name, value in last.ema.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not equal(last.model, last.ema)
    assert equal(load_checkpoint(whole / "model.pt").model, last.ema)


def test_a_checkpoint_has_all_it_promises(whole):
    checkpoint = load_checkpoint(checkpoint_path(whole, 11))
    assert checkpoint.versions == {
        "python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__, "numpy": np.__version__,
        "lookupvit_video": __version__,
    }  # fmt: skip
    assert checkpoint.state["position"] == {"epoch": 2, "step_in_epoch": 3, "videos": 9}
    assert checkpoint.state["threads"] == [torch.get_num_threads()]
    assert len(checkpoint.state["losses"]) == 2  # steps 10 and 11, whose line is not written yet
    assert checkpoint.state["random"][0].keys() == {"python", "numpy", "torch", "cuda"}
    assert checkpoint.classes == ["class 0", "class 1", "class 2"]


def test_random_states_come_back():
    world = World(0, 1, torch.device("cpu"))

    def draws():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    np.random.randn()  # half of a pair is kept for the next one
    state = random_state(world.device)
    first = draws()
    restore_random_state([state], world)
    assert draws() == first
    restore_random_state([], world)  # another number of processes than before
    assert draws() != first


def test_float16_trains_with_a_scale_that_is_lowered_until_it_fits(data, tmp_path):
    options = {"TRAIN__PRECISION": "float16", "TRAIN__CHECKPOINT_STEPS": 1, "SOLVER__MAX_EPOCH": 4,
               "TRAIN__KEEP_CHECKPOINTS": 99, "TEST__ENABLE": False}  # fmt: skip
    done = run_net(settings(data, tmp_path / "a", **options))
    assert done.returncode == 0, done.stderr
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    content = torch.load(checkpoint_path(tmp_path / "a", 2), weights_only=True)
    assert content["state"]["scaler"]["scale"] == 65536
    content["state"]["scaler"]["scale"] = 2.0**30
    torch.save(content, checkpoint_path(tmp_path / "b", 2))
    done = run_net(settings(data, tmp_path / "b", **options))
    assert done.returncode == 0, done.stderr
    assert "step 3: left out, the gradient is too large for float16; its scale is lowered" in done.stderr
    last = load_checkpoint(checkpoint_path(tmp_path / "b", 8))
    assert last.state["scaler"]["scale"] < 2.0**30
    assert last.state["bad_steps"] == 0
    assert all(value.isfinite().all() for value in last.model.values())
