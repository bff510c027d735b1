"""A machine that is busy with other work: several processes on one core, for real where asked for; else pretended."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

from lookupvit_video.processes.waiting import seconds_without_processor

_LONGEST = 20.0  # seconds that the others run: some schedulers starve one process for much longer
for_real = pytest.mark.skipif(
    seconds_without_processor() is None or not os.environ.get("LOOKUPVIT_ALL_FAULTS"),
    reason="keeps a core busy, and needs a system that counts the wait: set LOOKUPVIT_ALL_FAULTS=1",
)


def _core():
    return min(os.sched_getaffinity(0))


@contextlib.contextmanager
def busy_core(others=6):
    """Keep the first core busy with other processes, all of them started."""
    burn = (
        f"import os, time; os.sched_setaffinity(0, [{_core()}]); print(flush=True)\n"
        f"end = time.monotonic() + {_LONGEST}\n"
        "while time.monotonic() < end: pass"
    )
    started = [subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) for _ in range(others)]
    try:
        for process in started:
            assert process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def compete(seconds):
    """Use the first core for some seconds of processor time, whoever else wants it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [_core()])
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    os.sched_setaffinity(0, before)
