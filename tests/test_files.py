"""A file is written whole or not at all, also where the process is killed midway."""

import os
import signal
import subprocess
import sys

import pytest

from lookupvit_video.files import written_whole

KILLED = """
import os, signal, sys
from lookupvit_video.files import written_whole
with written_whole(sys.argv[1]) as path:
    with open(path, "wb") as file:
        file.write(b"new" * 1000)
        file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_success_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with written_whole(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_temporary_stands_beside_with_the_same_suffix(tmp_path):
    with written_whole(tmp_path / "picture.v2.png") as path:
        assert path.parent == tmp_path
        assert path.suffix == ".png"
        assert path.name != "picture.v2.png"
        path.touch()


def test_folders_are_made_and_text_paths_taken(tmp_path):
    with written_whole(str(tmp_path / "new" / "deep" / "a.txt")) as path:
        path.write_text("x")
    assert (tmp_path / "new" / "deep" / "a.txt").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_temporary(tmp_path, error):
    target = tmp_path / "a.json"
    target.write_text("old")

    def fail():
        with written_whole(target) as path:
            path.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_first_write_that_fails_leaves_an_empty_folder(tmp_path):
    def fail():
        with written_whole(tmp_path / "a.json") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_killed_midway_leaves_the_old_file(tmp_path):
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2  # it was in the middle of writing
    with written_whole(target) as path:  # and what it left stands in nobody's way
        path.write_bytes(b"newer")
    assert target.read_bytes() == b"newer"
