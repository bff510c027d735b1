"""Freed memory is reused, in the processes of this package alone."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lookupvit_video.processes.memory import keep_freed_memory
from tests.small import run_command


def test_freed_memory_is_kept_up_to_a_limit(monkeypatch):
    """M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3 and M_MMAP_MAX -4 in glibc's malloc.h."""
    calls = []
    library = SimpleNamespace(mallopt=lambda *given: calls.append(given))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert sorted(calls) == [(-3, 33_554_432), (-1, 268_435_456)]
    calls.clear()
    keep_freed_memory(runs_model=True)
    assert sorted(calls) == [(-4, 0), (-1, 1_073_741_824)]
    for error in (AttributeError, OSError, TypeError):  # no glibc
        monkeypatch.setattr(ctypes, "CDLL", lambda name, error=error: (_ for _ in ()).throw(error))
        keep_freed_memory()


@pytest.mark.skipif(not platform.libc_ver()[0], reason="not glibc")
@pytest.mark.parametrize(("where", "mebibytes"), [("a command", 10), ("a command", 80), ("a decoding worker", 10)])
def test_freed_memory_is_reused(where, mebibytes):
    prepare = {
        "a command": "from lookupvit_video.commands.run_command import run_command as prepare\n",
        "a decoding worker": "from lookupvit_video.data.loader import _prepare_worker\n"
        "def prepare(main): _prepare_worker(0); main()\n",
    }[where]
    count = prepare + (
        "import resource, sys, numpy\n"
        f"def use(): a, b, c = (numpy.ones(({mebibytes}, 1 << 18), numpy.float32) for _ in range(3))\n"
        "def main():\n"
        "    use(); use(); use(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): use()\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "prepare(main) if len(sys.argv) > 1 else main()"
    )
    # what glibc does with large pieces until it has seen some
    fresh = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    options = {"capture_output": True, "check": True, "env": fresh, "timeout": 120}
    faults = [int(subprocess.run([sys.executable, "-c", count, *given], **options).stdout) for given in ([], ["keep"])]
    assert faults[0] > 3000  # each time; few where the kernel gives huge pages
    assert faults[1] < faults[0] / 10


def test_what_is_imported_is_never_looked_through_for_garbage():
    code = """
import gc, sys
from lookupvit_video.processes.memory import importing
before = gc.get_freeze_count()
with importing():
    assert not gc.isenabled()
    import torch
assert gc.isenabled() and gc.get_freeze_count() > before + 100_000, gc.get_freeze_count()
frozen = gc.get_freeze_count()
with importing():  # torch is there
    assert gc.isenabled()
assert gc.get_freeze_count() == frozen
del sys.modules["torch"]
gc.disable()
with importing():  # a user's own choice stays
    pass
assert not gc.isenabled()
print("done")
"""
    done = run_command([sys.executable, "-c", code])
    assert done.stdout == "done\n", done.stderr
