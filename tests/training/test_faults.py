"""What may happen to machines, disks and numbers happens here for real. docs/reliability.md has the figures.

LOOKUPVIT_ALL_FAULTS=1 in the environment: 36 kills instead of 3, a full and a read-only disk (as root), a process that
hangs.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import checkpoint_path, load_checkpoint, training_checkpoints
from lookupvit_video.distributed.world import World
from lookupvit_video.log import JsonLines, read_json_lines
from lookupvit_video.training import step as step_module
from lookupvit_video.training.step_log import bad_step_text, slow_processes
from tests.small import ROOT, make_videos, run_net, settings, started
from tests.training.test_resume import assert_same_end

ALL = os.environ.get("LOOKUPVIT_ALL_FAULTS") == "1"
LIMIT = 900 if ALL else 400  # seconds that a run may take
full_series = pytest.mark.skipif(not ALL, reason="LOOKUPVIT_ALL_FAULTS=1 runs it")
SHORT = {"TEST__ENABLE": False, "SOLVER__MAX_EPOCH": 2}
TWO = World(0, 2, torch.device("cpu"), ("here", "there"))
EXACT = {
    "LOG_PERIOD": 1, "TRAIN__CHECKPOINT_STEPS": 2, "SOLVER__EMA_DECAY": 0.9, "MIXUP__ENABLE": True,
    "MODEL__COMPRESSED_GRIDS": "[[1,2,2],[1,1,1],[2,3,3]]", "AUG__NUM_SAMPLE": 2, "MODEL__DROP_PATH": 0.2,
    "DATA__SAMPLER": "balanced", "TEST__ENABLE": False,
}  # fmt: skip


class Fleet:
    """torchrun with two processes, whose log is read as it grows, and whose processes can be found by rank."""

    def __init__(self, folder: Path, overrides: list[str], restarts: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "stderr.txt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                   f"--max-restarts={restarts}", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
                   "tools/run_net.py", "--cfg", "tests/small.yaml", *overrides]  # fmt: skip
        self.started = contextlib.ExitStack()
        with self.log.open("w") as file:
            self.process = self.started.enter_context(started(command, LIMIT, stderr=file, stdout=file))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.started.close()

    def count(self, text: str) -> int:
        return self.log.read_text(errors="replace").count(text)

    def wait_for(self, happened) -> bool:
        """Wait until ``happened()``; return False if the run ended before."""
        while not happened():
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def find(self, rank: int) -> int | None:
        """Return the process id of a rank, from /proc, if it lives."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.process.pid and f"\0RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                    return int(entry.name)
        return None

    def signal(self, rank: int, number: int) -> bool:
        pid = self.find(rank)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return True
        return False


def assert_newest_is_sound(folder):
    """The newest checkpoint can be read, whatever was killed just now."""
    for path in training_checkpoints(folder)[:1]:
        load_checkpoint(path)


def kill_once(fleet: Fleet, folder: Path, kind: str, draw: random.Random) -> bool:
    """Kill -9 at a moment of a kind; return whether a process was there to be killed."""
    steps, validations = fleet.count(" step "), fleet.count("validation of")
    if kind == "checkpoint":  # while the file is being written
        if not fleet.wait_for(lambda: list((folder / "checkpoints").glob(".step_*.tmp.pt"))):
            return False
        return fleet.signal(0, signal.SIGKILL)
    if kind == "validation":
        if not fleet.wait_for(lambda: fleet.count("validation of") > validations):
            return False
        time.sleep(draw.uniform(0, 0.1))
        return fleet.signal(draw.randrange(2), signal.SIGKILL)
    more = draw.randrange(1, 5)
    if not fleet.wait_for(lambda: fleet.count(" step ") >= steps + more):
        return False
    time.sleep(draw.uniform(0, 0.05))
    return fleet.signal(0 if kind == "rank 0" else 1, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Fleet(folder, settings(data, folder, **EXACT, SOLVER__MAX_EPOCH=LENGTH)) as fleet:
        assert fleet.process.wait(LIMIT) == 0, fleet.log.read_text()
    return folder


LENGTH = 12 if ALL else 4  # epochs
KINDS = ("rank 0", "rank 1", "checkpoint", "validation")
SERIES = [(seed, [KINDS[(seed + n) % 4] for n in range(6)]) for seed in range(6)] if ALL else [
    (0, ["rank 1", "checkpoint", "validation"])
]  # fmt: skip


@pytest.mark.parametrize(("seed", "kinds"), SERIES)
def test_kill_9_anywhere_ends_with_the_undisturbed_weights(data, undisturbed, tmp_path, seed, kinds):
    draw, done = random.Random(seed), []
    overrides = settings(data, tmp_path, **EXACT, SOLVER__MAX_EPOCH=LENGTH)
    with Fleet(tmp_path, overrides, restarts=len(kinds)) as fleet:
        for kind in kinds:
            ready = fleet.count("train: ") + bool(done)
            fleet.wait_for(lambda ready=ready: fleet.count("train: ") >= max(ready, 1))
            if kill_once(fleet, tmp_path, kind, draw):
                done.append(kind)
                assert_newest_is_sound(tmp_path)
        assert fleet.process.wait(LIMIT) == 0, fleet.log.read_text()[-5000:]
    print(f"kills: {done}, resumed: {fleet.count('resume: ')}")
    assert len(done) == len(kinds)
    assert_same_end(undisturbed, tmp_path)


def test_torchrun_passes_a_signal_on_and_fewer_processes_finish(data, tmp_path):
    """Two processes are stopped by the signal that a scheduler gives before it takes the machine; one goes on."""
    overrides = settings(data, tmp_path / "run", **SHORT, TRAIN__CHECKPOINT_PERIOD=99)
    with Fleet(tmp_path, overrides, restarts=3) as fleet:
        assert fleet.wait_for(lambda: fleet.count("train: "))
        fleet.process.send_signal(signal.SIGUSR1)
        assert fleet.process.wait(LIMIT) != 0
        told = fleet.log.read_text()
    assert "stopped by SIGUSR1 after step" in told
    assert len(training_checkpoints(tmp_path / "run")) == 1
    again = run_net(settings(data, tmp_path / "run", **SHORT))
    assert again.returncode == 0, again.stderr
    assert "world size was 2 and is now 1; batch size and schedule do not change" in again.stderr
    assert load_checkpoint(tmp_path / "run" / "model.pt").step == 4


SRUN = """#!{python}
# Stands in for srun: it passes USR1 on to its task, and for TERM kills it at once.
import os, signal, subprocess, sys
task = subprocess.Popen([word for word in sys.argv[1:] if word != "--kill-on-bad-exit=1"], start_new_session=True)
signal.signal(signal.SIGUSR1, lambda *_: task.send_signal(signal.SIGUSR1))
signal.signal(signal.SIGTERM, lambda *_: os.killpg(task.pid, signal.SIGKILL))
sys.exit(task.wait())
"""
SCONTROL = """#!/bin/sh
[ "$1" = show ] && echo 127.0.0.1
[ "$1" = requeue ] && echo "$2" > requeued
exit 0
"""


def test_the_slurm_script_saves_and_queues_itself_again(data, tmp_path):
    """Slurm's own commands are stand-ins; bash, torchrun and two processes are real."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    torchrun = f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL), ("torchrun", torchrun)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (commands / "activate").write_text(f"export PATH={commands}:$PATH\n")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    overrides = settings(data, tmp_path / "run", **{**SHORT, "SOLVER__MAX_EPOCH": 500}, TRAIN__CHECKPOINT_PERIOD=999)
    command = ["bash", "tools/slurm/train.sbatch", "--cfg", ROOT / "tests" / "small.yaml", *overrides]
    job = str(random.randrange(10000))  # and the port
    slurm = {"SLURM_JOB_ID": job, "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "here"}
    told = []
    with started(command, LIMIT, slurm, cwd=tmp_path, stderr=subprocess.STDOUT, stdout=subprocess.PIPE) as script:
        for line in script.stdout:
            told.append(line)
            if " step 3/" in line:
                script.send_signal(signal.SIGUSR1)  # to the script alone
        assert script.wait(60) == 0, "".join(told)
    assert (tmp_path / "requeued").read_text().strip() == job
    assert any("stopped by SIGUSR1 after step" in line for line in told)
    (saved,) = training_checkpoints(tmp_path / "run")
    assert load_checkpoint(saved).step >= 3


@full_series
def test_a_process_that_hangs_is_named(data, tmp_path):
    overrides = settings(data, tmp_path / "run", **EXACT, SOLVER__MAX_EPOCH=LENGTH, DIST_TIMEOUT=8,
                         DATA_LOADER__TIMEOUT=5)  # fmt: skip
    with Fleet(tmp_path, overrides, restarts=1) as fleet:
        assert fleet.wait_for(lambda: fleet.count(" step ") > 3)
        assert fleet.signal(1, signal.SIGSTOP)
        assert fleet.wait_for(lambda: fleet.count("process 1 of 2")), fleet.log.read_text()
        assert fleet.process.wait(LIMIT) == 0, fleet.log.read_text()
        told = [line for line in fleet.log.read_text().splitlines() if "error: " in line and "process 1 of 2" in line]
    print(told)
    assert "process 1 of 2 on " in told[0]
    assert "is not responding or has exited" in told[0]


# Numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_that_go_bad_stop_the_run_with_step_rank_and_videos(data, tmp_path):
    done = run_net(settings(data, tmp_path, **SHORT, SOLVER__BASE_LR=1e30, SOLVER__WARMUP_EPOCHS=0, LOG_PERIOD=2))
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "error: step 2: the loss is nan in rank 0, the gradient's norm is nan; rank 0 read " in line
    assert line.count(".mp4") == 4
    assert "lower SOLVER.BASE_LR" in line
    assert not training_checkpoints(tmp_path)


@pytest.mark.parametrize("allowed", [1, 2])
def test_bad_steps_are_left_out_up_to_a_limit(data, tmp_path, monkeypatch, allowed):
    """The loss of the second and of the third step becomes nan."""
    plain, calls = step_module.loss_of_heads, []

    def spoilt(*args):
        calls.append(1)
        return plain(*args) * (float("nan") if len(calls) in (2, 3) else 1)

    monkeypatch.setattr(step_module, "loss_of_heads", spoilt)
    done = run_net(settings(data, tmp_path, **SHORT, TRAIN__MAX_BAD_STEPS=allowed, TRAIN__CHECKPOINT_STEPS=1,
                            TRAIN__KEEP_CHECKPOINTS=9))  # fmt: skip
    assert "step 2: the loss is nan in rank 0" in done.stderr
    assert f"left out, 1 of at most {allowed}" in done.stderr
    assert len(read_json_lines(tmp_path / "log.jsonl", "bad_step")) == 2
    first, second = (load_checkpoint(checkpoint_path(tmp_path, step)) for step in (1, 2))
    assert all(torch.equal(value, second.model[name]) for name, value in first.model.items())
    if allowed == 1:
        assert done.returncode == 1
        assert "TRAIN.MAX_BAD_STEPS is 1" in done.stderr.splitlines()[-1]
    else:
        assert done.returncode == 0, done.stderr
        assert load_checkpoint(tmp_path / "model.pt").step == 4
        assert [entry["loss"] is None for entry in read_json_lines(tmp_path / "log.jsonl", "train")] == [0, 1, 1, 0]


def test_the_process_whose_numbers_went_bad_is_named():
    readings = [(1.0, ["a.mp4"]), (float("inf"), [f"{n}.mp4" for n in range(9)])]
    text = bad_step_text(7, float("nan"), readings)
    assert text == (
        "step 7: the loss is inf in rank 1, the gradient's norm is nan; rank 1 read 0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4, "
        "5.mp4, 6.mp4, 7.mp4 and 1 more"
    )
    text = bad_step_text(7, float("inf"), [(1.0, ["a.mp4"]), (1.0, ["b.mp4"])])
    assert "all losses are finite, the gradient's norm is inf; rank 0 read a.mp4; rank 1 read b.mp4" in text


def test_slow_processes_are_named_with_the_cause():
    assert slow_processes([(0.1, 0.1), (0.11, 0.1)], TWO) == []
    (told,) = slow_processes([(0.1, 0.1), (0.9, 0.1)], TWO)
    assert told == (
        "process 1 of 2 on there is slow: data and forward pass of a step take 1000 ms (900 ms are its data), the "
        "median is 200 ms"
    )
    assert "its forward pass" in slow_processes([(0.0, 0.5), (0.0, 0.1)], TWO)[0]
    assert slow_processes([(0.0, 0.001), (0.0, 0.01)], TWO) == []  # nothing that matters


# Disks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_above(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_gives_one_line_and_loses_no_checkpoint(data, tmp_path):
    options = {**EXACT, "TRAIN__CHECKPOINT_STEPS": 0, "SOLVER__MAX_EPOCH": 2}
    whole = run_net(settings(data, tmp_path / "whole", **options))
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    os.link(checkpoint_path(tmp_path / "whole", 4), checkpoint_path(folder, 4))
    (folder / "log.jsonl").write_text("".join((tmp_path / "whole" / "log.jsonl").read_text().splitlines(True)[:5]))
    with no_file_above(200_000):
        full = run_net(settings(data, folder, **options))
    assert full.returncode == 1
    line = full.stderr.splitlines()[-1]
    assert f"OUTPUT_DIR {folder} cannot be written to: File too large" in line
    assert f"{checkpoint_path(folder, 4)} is complete, and the same command resumes from it" in line
    assert "Traceback" not in full.stderr
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000004.pt"]
    assert run_net(settings(data, folder, **options)).returncode == 0
    assert_same_end(tmp_path / "whole", folder)


def test_an_output_folder_that_cannot_be_made_gives_one_line(data):
    done = run_net(settings(data, "/proc/run", **SHORT))
    assert done.returncode == 1
    assert "error: OUTPUT_DIR /proc/run cannot be written to: No such file or directory" in done.stderr


@full_series
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_small_disk_gets_full_or_read_only(data, tmp_path, fault):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "1500k" if fault == "full" else "9m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True, timeout=60)
    try:
        options = {**EXACT, "SOLVER__MAX_EPOCH": 3, "TRAIN__KEEP_CHECKPOINTS": 99 if fault == "full" else 2}
        if fault == "read-only":
            assert run_net(settings(data, disk, **{**options, "SOLVER__MAX_EPOCH": 2})).returncode == 0
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=60)
        done = run_net(settings(data, disk, **options))
        print(done.stderr.splitlines()[-1])
        assert done.returncode == 1
        reason = "No space left on device" if fault == "full" else "Read-only file system"
        assert reason in done.stderr.splitlines()[-1]
        assert "is complete, and the same command resumes from it" in done.stderr.splitlines()[-1]
        assert_newest_is_sound(disk)
        subprocess.run(["mount", "-o", "remount,rw,size=9m", disk], check=True, timeout=60)
        assert run_net(settings(data, disk, **options)).returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True, timeout=60)


def test_data_whose_disk_is_gone_stops_the_run_and_no_video_is_called_bad(tmp_path):
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    make_videos(videos)
    lists.mkdir()
    for path in [*videos.glob("*.csv"), videos / "classes.txt"]:
        path.rename(lists / path.name)
    overrides = settings(lists, tmp_path / "run", DATA__PATH_PREFIX=videos, TRAIN__CHECKPOINT_STEPS=1,
                         SOLVER__MAX_EPOCH=500, DATA__MAX_BAD_FRACTION=1)  # fmt: skip
    command = [sys.executable, "tools/run_net.py", "--cfg", "tests/small.yaml", *overrides]
    told = []
    with started(command, LIMIT, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            told.append(line)
            if " step 3/" in line:
                videos.rename(tmp_path / "elsewhere")
        assert process.wait(60) == 1, told
    assert f"error: {videos} is missing or empty: is the disk or the share with the videos still mounted?" in told[-1]
    assert not (tmp_path / "run" / "bad_videos.csv").exists()
    assert training_checkpoints(tmp_path / "run")


def test_a_line_that_was_cut_spoils_no_other(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    JsonLines(path).write("train", step=2, loss=float("nan"))
    assert [entry["step"] for entry in read_json_lines(path, "train")] == [1, 2]
    assert read_json_lines(path, "train")[1]["loss"] is None
