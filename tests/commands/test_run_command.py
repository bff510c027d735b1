"""How a command ends."""

import errno
import functools
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from lookupvit_video.commands.run_command import run_command as end
from lookupvit_video.commands.run_command import share_cores
from tests.small import run_command, started

# A decoding worker that hangs in C, where no handler of a signal can run, as ``StopSignals`` has one.
STUCK = """
import ctypes, multiprocessing, time
from lookupvit_video.commands.run_command import run_command
from lookupvit_video.processes.stop_signals import StopSignals
from lookupvit_video.errors import RunFailure

def hang():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

def main():
    with StopSignals():
        multiprocessing.get_context("fork").Process(target=hang, daemon=True).start()
        time.sleep(0.5)
        raise FAILURE("no batch came")

run_command(main)
"""


def test_a_failure_does_not_wait_for_a_worker_that_hangs():
    told = run_command([sys.executable, "-c", STUCK.replace("FAILURE", "RunFailure")], limit=40)
    assert told.returncode == 1, told
    assert told.stderr == "-c: error: no batch came\n"
    traced = run_command([sys.executable, "-c", STUCK.replace("FAILURE", "KeyError")], limit=40)
    assert traced.returncode == 1, traced
    assert "KeyError: 'no batch came'" in traced.stderr


# A closed pipe ----------------------------------------------------------------------------------------------------

PRINTING = """
from lookupvit_video.commands.run_command import run_command

def main():
    for number in range(COUNT):
        print(number, flush=FLUSH)
    return 0

run_command(main)
"""


@pytest.mark.parametrize(("count", "flush"), [(3, False), (9999, False), (9999, True)])
def test_a_reader_that_has_enough_is_no_error(count, flush):
    code = PRINTING.replace("COUNT", str(count)).replace("FLUSH", str(flush))
    read, write = os.pipe()
    os.close(read)
    with started([sys.executable, "-c", code], 40, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.communicate()[1] == ""
    assert process.returncode == 141


def test_another_closed_pipe_is_an_error():
    code = "raise BrokenPipeError(32, 'Broken pipe', 'x.fifo')"
    done = run_command(
        [sys.executable, "-c", PRINTING.replace("print(number, flush=FLUSH)", code).replace("COUNT", "1")]
    )
    assert (done.returncode, done.stderr) == (1, "-c: error: [Errno 32] Broken pipe: 'x.fifo'\n")


# Ctrl-C -----------------------------------------------------------------------------------------------------------

ISOLATED = """
import sys, time
from lookupvit_video.commands.run_command import run_command
from lookupvit_video.processes.pool import run_isolated

def main():
    for outcome in run_isolated(time.sleep, [0, 0, 60, 60], processes=2, timeout=90):
        print(outcome.number, flush=True)
    return 0

run_command(main)
"""
IMPORTING = """
from lookupvit_video.commands.run_command import run_command
import time
print("importing", flush=True)
time.sleep(60)
"""
TWICE = """
import os, signal, sys, time
from lookupvit_video.commands.run_command import run_command
from lookupvit_video.processes.stop_signals import StopSignals

def main():
    with StopSignals() as stop:
        for pause in map(float, sys.argv[1:]):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(pause)
        print("left by itself", stop.name)
    return 5

run_command(main)
"""


@pytest.mark.parametrize(("script", "line"), [(ISOLATED, "1\n"), (IMPORTING, "importing\n")])
def test_ctrl_c_gives_one_line_and_130(script, line):
    with started([sys.executable, "-c", script], 60, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.stdout.readline() != line:
            assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes
        assert process.wait(40) == 130
        assert process.stderr.read() == "-c: interrupted\n"


def test_a_second_ctrl_c_leaves_at_once_and_the_same_one_passed_on_does_not():
    told = run_command([sys.executable, "-c", TWICE, "0.6", "60"], limit=40)
    assert told.returncode == 130, told
    assert told.stderr.splitlines()[-1].startswith("interrupted twice: left without saving; the same command resumes")
    passed_on = run_command([sys.executable, "-c", TWICE, "0.01", "0.01"], limit=40)
    assert (passed_on.returncode, passed_on.stdout) == (5, "left by itself SIGINT\n"), passed_on


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(*arguments):
        raise OSError(*arguments)

    for arguments, part in (
        (
            (errno.ENOSPC, "No space left on device", str(tmp_path / "pymp-x")),
            f"free space in {tmp_path}, or set TMPDIR",
        ),
        ((errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "free space there, or set TMPDIR"),
        ((errno.ENOSPC, "No space left on device", "/elsewhere/x"), "'/elsewhere/x'\n"),
    ):
        with pytest.raises(SystemExit, match="1"):
            end(functools.partial(fail, *arguments))
        assert part in capsys.readouterr().err


def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
