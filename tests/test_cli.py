"""How a command ends."""

import sys

from tests.small import run_command

# A decoding worker that hangs in C, where no handler of a signal can run, as ``StopSignals`` has one.
STUCK = """
import ctypes, multiprocessing, time
from lookupvit_video.cli import run_command
from lookupvit_video.engine.health import StopSignals
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
