import inspect
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import lookupvit_video
from lookupvit_video.provenance import commit, measured_with, processor


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_folder_and_whether_files_differ_from_it(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "new.txt").write_text("files that git does not know are no change\n")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head[:7]
    commit.cache_clear()
    (tmp_path / "a.py").write_text("2\n")
    assert commit(tmp_path) == f"{head[:7]}+changes"
    (tmp_path / "inside").mkdir()  # as an installed package in somebody's repository
    assert commit(tmp_path / "inside") == f"version {version('lookupvit_video')}"


def test_the_commit_is_that_of_the_folder_with_this_package():
    default = inspect.signature(commit).parameters["folder"].default
    assert default == Path(lookupvit_video.__file__).parents[1]


def test_versions_and_processor():
    found = measured_with(torch.device("cpu"))
    assert list(found) == ["version", "commit", "torch", "torchvision", "av", "numpy", "processor", "threads"]
    assert found["torch"] == torch.__version__
    assert found["av"] == version("av")
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"] == processor()
    assert processor().endswith(f"({torch.backends.cpu.get_cpu_capability()})")
