"""The tests of the torchcodec backend, where this machine has no FFmpeg of its own: on the libraries inside PyAV.

torchcodec looks for FFmpeg's shared libraries by their plain names. PyAV's wheels for Linux carry them under names of
their own; links in a folder that the loader of a new process searches make them known.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from lookupvit_video.decoding.decord_torchcodec import TorchCodecReader

ROOT = Path(__file__).parents[2]


def link_libraries(folder):
    """Link PyAV's libraries under names that torchcodec looks for (libavcodec.so.62); False: it carries none."""
    for library in (Path(av.__file__).parents[1] / "av.libs").glob("lib*.so.*"):
        plain = re.match(r"(lib(?:av|sw)\w+)-\w+(\.so\.\d+)", library.name)
        if plain:
            (folder / "".join(plain.groups())).symlink_to(library)
    return any(folder.iterdir())


def test_torchcodec_on_the_libraries_of_pyav(tmp_path):
    pytest.importorskip("torchcodec")
    if TorchCodecReader.missing() is None:
        pytest.skip("torchcodec works here as it is: its tests run beside those of the other backends")
    if not link_libraries(tmp_path):
        pytest.skip("this PyAV carries no libraries to lend")
    lent = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    checked = subprocess.run(
        [sys.executable, "-c", "from lookupvit_video.decoding import backends; backends.check_backend('torchcodec')"],
        env=lent, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if checked.returncode:
        pytest.skip(f"torchcodec does not take them: {checked.stderr.splitlines()[-1]}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'nested'}",
         "-k", "torchcodec and not bad and not memory and not index",
         "tests/decoding/test_backends.py", "tests/decoding/test_exactness.py"],
        env=lent, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 80, done.stdout[-400:]
