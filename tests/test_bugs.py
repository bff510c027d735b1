"""A bug in a reader keeps its traceback, in every command and process; a damaged video is one line."""

import os
import sys
from pathlib import Path

import pytest

from lookupvit_video.errors import BUG
from tests.small import ROOT, make_videos, run_command, run_net, settings

BUGS = {"IndexError": "[][0]", "ValueError": "list(zip([1], [1, 2], strict=True))"}
PLANTED = """
import lookupvit_video.decoding.pyav_reader as module
def planted(*_, **__):
    {bug}
module.PyAVReader.frames_at = planted
"""
PAGE = """
import sys
from pathlib import Path
from lookupvit_video.inference.page.page import Page
from lookupvit_video.inference.page.upload import Limits
from lookupvit_video.inference.predictor import load_model
if __name__ == "__main__":
    import logging
    logging.basicConfig()
    *_, shown = Page(load_model(sys.argv[1], "cpu"), Limits()).answer(sys.argv[2], None, Path(sys.argv[3]))
    print(shown.status)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_videos(folder)
    done = run_net(settings(folder, folder / "run", SOLVER__MAX_EPOCH=1, SOLVER__WARMUP_EPOCHS=0, TEST__ENABLE=False))
    assert done.returncode == 0, done.stderr
    (folder / "page.py").write_text(PAGE)
    return folder


def run(command, data, video, workers, folder):
    """Train on a video, predict it, or show it to the page."""
    if command == "train":
        (folder / "classes.txt").write_bytes((data / "classes.txt").read_bytes())
        for split in ("train", "val"):
            (folder / f"{split}.csv").write_text("path,label\n" + f"{video},0\n" * 4)
        changes = {"DATA_LOADER.NUM_WORKERS": workers, "SOLVER.WARMUP_EPOCHS": 0, "DATA.MAX_BAD_FRACTION": 0}
        arguments = ["tools/run_net.py", "--cfg", "tests/small.yaml", *settings(folder, folder / "run", **changes)]
    elif command == "predict":
        arguments = ["tools/predict.py", "--checkpoint", data / "run" / "model.pt", "--workers", workers, video]
    else:
        arguments = [data / "page.py", data / "run" / "model.pt", video, folder]
    variables = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return run_command([sys.executable, *arguments], variables=variables)


@pytest.mark.parametrize(
    ("command", "workers", "error"),
    [
        ("train", 0, "ValueError"),
        ("train", 1, "IndexError"),
        ("predict", 0, "IndexError"),
        ("predict", 1, "ValueError"),
        ("page", 1, "IndexError"),
    ],
)
def test_a_bug_in_a_reader_keeps_its_traceback(data, tmp_path, command, workers, error):
    (tmp_path / "sitecustomize.py").write_text(PLANTED.format(bug=BUGS[error]))
    done = run(command, data, data / "0.mp4", workers, tmp_path)
    assert "Traceback (most recent call last)" in done.stderr
    assert f"in planted\n    {BUGS[error]}" in done.stderr
    assert f"{error}: " in done.stderr
    if command == "page":
        assert "internal error" in done.stdout
        assert "Traceback" not in done.stdout
    else:
        assert done.returncode == 1
        assert BUG in done.stderr


@pytest.mark.parametrize(
    ("command", "workers"), [("train", 0), ("train", 1), ("predict", 0), ("predict", 1), ("page", 1)]
)
def test_a_damaged_video_is_one_line(data, tmp_path, command, workers):
    video = tmp_path / "cut.mp4"
    video.write_bytes(Path(data / "0.mp4").read_bytes()[:-100])  # x264's sizes differ a little from run to run
    done = run(command, data, video, workers, tmp_path)
    assert "Traceback" not in done.stdout + done.stderr
    assert any("truncated: holds" in line for line in (done.stdout + done.stderr).splitlines())
    assert done.returncode in ((0,) if command == "page" else (1, 2))
