"""One run at a time in OUTPUT_DIR, Ctrl-C, and errors whose one line is the last: with real processes.

LOOKUPVIT_ALL_FAULTS=1 in the environment: five runs of each kind of error, and a small /dev/shm (as root).
"""

import errno
import gc
import multiprocessing.synchronize
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, training_checkpoints
from lookupvit_video.config import load_config
from lookupvit_video.data.loader import report_worker_failures
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import RunFailure
from lookupvit_video.files import atomic_write, named_failures
from lookupvit_video.processes import lock as lock_module
from lookupvit_video.training import output as output_module
from lookupvit_video.training.output import report_disk_failures, sole_writer
from tests.small import call_tool, make_videos, run_command, run_net, settings, started
from tests.training.test_faults import ALL, LIMIT, full_series

LONG = {"SOLVER__MAX_EPOCH": 500, "TEST__ENABLE": False, "TRAIN__CHECKPOINT_STEPS": 1, "TRAIN__EVAL_PERIOD": 0}
NET = [sys.executable, "tools/run_net.py", "--cfg", "tests/small.yaml"]


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def wait_for_step(process, number):
    told = []
    for line in process.stderr:
        told.append(line)
        if f" step {number}/" in line:
            return
    raise AssertionError("".join(told))


def test_a_second_run_is_refused_and_a_killed_one_makes_room(data, tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.2)
    folder = tmp_path / "run"
    with started([*NET, *settings(data, folder, **LONG)], LIMIT, stderr=subprocess.PIPE) as first:
        wait_for_step(first, 3)  # by then the checkpoint of step 1 is complete
        first.send_signal(signal.SIGSTOP)  # so that it writes nothing itself
        before = contents(folder)
        for more in ({}, {"TRAIN__ENABLE": False}):
            second = run_net(settings(data, folder, **{**LONG, **more}))
            assert second.returncode == 2, second.stderr
            line = second.stderr.splitlines()[-1]
            assert f"OUTPUT_DIR {folder}: process {first.pid} on {socket.gethostname()} is writing there since" in line
            assert line.endswith("; choose another OUTPUT_DIR or stop it")
        assert contents(folder) == before
        first.kill()
        first.wait(60)
    done = load_checkpoint(training_checkpoints(folder)[0]).step
    again = run_net(settings(data, folder, **{**LONG, "SOLVER__MAX_EPOCH": (done + 4) // 2}))
    assert again.returncode == 0, again.stderr
    assert f"step {done}" in again.stderr
    assert not (folder / ".lock").exists()


def test_a_dry_run_may_look_on(data, tmp_path):
    (tmp_path / ".lock").write_text("{}")
    cfg = load_config("tests/small.yaml", settings(data, tmp_path))
    with sole_writer(cfg.OUTPUT_DIR, World(0, 1, torch.device("cpu"))):
        done = call_tool(*NET[1:], "--dry-run", *settings(data, tmp_path))
    assert done.returncode == 0, done.stderr


def test_only_the_main_process_reports(data, tmp_path, monkeypatch):
    """The second of two processes leaves with the code that the first one has."""
    cfg = load_config("tests/small.yaml", settings(data, tmp_path))
    monkeypatch.setattr(output_module, "gather_objects", lambda value, world: [2, value])
    with pytest.raises(SystemExit, match="2"), sole_writer(cfg.OUTPUT_DIR, World(1, 2, torch.device("cpu"))):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_like_sigterm_and_says_where_the_run_resumes(data, tmp_path):
    options = {**LONG, "TRAIN__CHECKPOINT_STEPS": 0, "TRAIN__CHECKPOINT_PERIOD": 999, "DATA_LOADER__NUM_WORKERS": 1}
    with started([*NET, *settings(data, tmp_path, **options)], LIMIT, stderr=subprocess.PIPE) as process:
        wait_for_step(process, 3)
        os.killpg(process.pid, signal.SIGINT)  # with the workers, as a terminal does
        told = process.stderr.read()
        assert process.wait(60) == 130, told
    (saved,) = training_checkpoints(tmp_path)
    step = load_checkpoint(saved).step
    assert told.splitlines()[-1] == (
        f"run_net.py: stopped by SIGINT after step {step}; saved {saved}, the same command resumes from it"
    )
    assert "Traceback" not in told
    again = run_net(settings(data, tmp_path, **{**options, "SOLVER__MAX_EPOCH": (step + 4) // 2}))
    assert again.returncode == 0, again.stderr
    assert f"resume: {saved}, step {step}" in again.stderr


def spoilt(data, folder):
    """A data set whose videos end early, but for the first."""
    make_videos(folder)
    for index in range(1, 9):
        (folder / f"{index}.mp4").write_bytes((folder / f"{index}.mp4").read_bytes()[:900])
    return folder


WAYS = ("fork", "spawn", "forkserver") if ALL else ("fork",)


@pytest.mark.parametrize("way", WAYS)
def test_the_clear_line_is_the_last_one_with_workers(data, tmp_path, way):
    # Spawned workers import torch, each on its own: on a busy machine that takes minutes.
    options = {"DATA_LOADER__NUM_WORKERS": 2, "DATA_LOADER__TIMEOUT": 250, "DIST_TIMEOUT": 300}
    overrides = settings(spoilt(data, tmp_path / "data"), tmp_path / "run", **options)
    script = (
        f"import multiprocessing, runpy, sys; sys.argv = {['run_net.py', *NET[2:], *overrides]!r}\n"
        f"if __name__ == '__main__':\n    multiprocessing.set_start_method({way!r})\n"
        "    runpy.run_path('tools/run_net.py', run_name='__main__')\n"
    )
    (tmp_path / "script.py").write_text(script)
    for _ in range(5 if ALL else 1):
        done = run_command([sys.executable, tmp_path / "script.py"], variables={"PYTHONPATH": os.getcwd()})
        assert done.returncode == 1, done.stderr
        assert "Exception ignored" not in done.stderr
        assert "Traceback" not in done.stderr
        assert "training videos cannot be read or are damaged; the reasons are in " in done.stderr.splitlines()[-1]


# What is full -----------------------------------------------------------------------------------------------------


def test_full_shared_memory_is_not_blamed_on_the_output(data, tmp_path, monkeypatch):
    plain, left, unraised = multiprocessing.synchronize.SemLock.__init__, [0], []

    def fails_later(self, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, *arguments, **options)

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", fails_later)
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraised.append(found.exc_value))
    for left[0] in (0, 3, 6):  # before the first queue, before a worker is started, and after that
        done = run_net(settings(data, tmp_path, DATA_LOADER__NUM_WORKERS=2, TEST__ENABLE=False))
        gc.collect()
        assert done.returncode == 1
        line = done.stderr.splitlines()[-1]
        assert "error: there is no shared memory for the decoding workers; make /dev/shm larger" in line
        assert "--shm-size" in line
        assert "DATA_LOADER.NUM_WORKERS" in line
        assert "OUTPUT_DIR" not in line
        assert "Traceback" not in done.stderr
    assert unraised == []


def test_other_limits_at_the_start_of_the_workers_are_named(data, tmp_path, monkeypatch):
    for number, part in ((errno.EMFILE, "raise `ulimit -n`"), (errno.EAGAIN, "allows no more processes")):

        def fail(self, *arguments, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fail)
        done = run_net(settings(data, tmp_path / str(number), DATA_LOADER__NUM_WORKERS=2))
        assert done.returncode == 1
        assert part in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("text", "part"), [
    ("DataLoader worker (pid 3) is killed by signal: Bus error. It is ...", "found no shared memory for its batch"),
    ("unable to write to file </torch_3_1>: No space left on device (28)", "found no shared memory for its batch"),
    ("Caught OSError in DataLoader worker process 0.\nTrace:\nOSError: [Errno 28] No space left on device: '/tmp/p'",
     "a decoding worker has no space for its files (OSError: [Errno 28] No space left on device: '/tmp/p')"),
    ("Too many open files. Communication with the workers is no longer possible", "raise `ulimit -n`"),
])  # fmt: skip
def test_what_workers_report_is_attributed(text, part):
    with pytest.raises(RunFailure) as found, report_worker_failures():
        raise (OSError if "OSError" in text else RuntimeError)(text)
    assert part in str(found.value)


def test_errors_of_the_system_pass_through_the_watch_over_workers():
    with pytest.raises(OSError, match="full"), report_worker_failures():
        raise OSError(errno.ENOSPC, "full", "/run/x.pt")


def test_a_file_is_blamed_by_its_path(tmp_path):
    cfg = load_config("tests/small.yaml", ["OUTPUT_DIR", str(tmp_path / "run")])

    def raised(filename):
        try:
            with report_disk_failures(cfg.OUTPUT_DIR):
                raise OSError(errno.ENOSPC, "No space left on device", filename)
        except (OSError, RunFailure) as error:
            return error

    assert isinstance(raised(str(tmp_path / "run" / "log.jsonl")), RunFailure)
    for filename in (None, "/dev/shm/x", str(tmp_path / "runs"), "/tmp/pymp-x/listener"):
        assert type(raised(filename)) is OSError
    for write in (named_failures, atomic_write):
        with pytest.raises(OSError, match=r"x\.csv") as found, write(tmp_path / "x.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")  # as file.write says it
        assert found.value.filename == str(tmp_path / "x.csv")


@full_series
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", ["4k", "24k", "64k", "200k"])
def test_a_small_shared_memory_gives_one_line(data, tmp_path, size):
    overrides = settings(data, tmp_path, DATA_LOADER__NUM_WORKERS=2, DATA_LOADER__TIMEOUT=30)
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    done = run_command(["unshare", "-m", "sh", "-c", mount, "sh", *NET, *overrides])
    print(done.stderr.splitlines()[-1])
    assert done.returncode == 1
    assert "no shared memory for" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
