"""That a test which starts processes cannot wait without end."""

import sys
import time

from tests.small import run_command

# As torchrun does: a process in a session of its own, which outlives its parent and holds the pipe.
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(50)"], start_new_session=True)
print("started", flush=True)
"""


def test_what_a_test_starts_ends_with_all_its_processes():
    began = time.monotonic()
    done = run_command([sys.executable, "-c", PARENT], limit=3)
    assert done.stdout == "started\n"
    assert time.monotonic() - began < 20
