import json

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import call_tool
from tests.videos import write_video

TOOL = "tools/timeline.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "4", "DATA.TARGET_FPS", "8"])
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, cfg=cfg, classes=list("abcde"), model=build_model(cfg))
    return path


def test_a_time_line_its_picture_and_the_video(checkpoint, tmp_path):
    video = write_video(tmp_path / "x.mp4", frames=40, fps=8, b_frames=2)
    out = {name: tmp_path / "out" / f"t.{name}" for name in ("json", "png", "mp4")}
    done = call_tool(
        TOOL, video, "--checkpoint", checkpoint, "--json", out["json"], "--png", out["png"], "--annotate", out["mp4"],
        "--stride", 1, "--topk", 3, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(out["json"].read_text())
    assert facts["duration"] == 5
    assert facts["window"] == 2
    assert [window["start"] for window in facts["windows"]] == [0, 1, 2, 3]
    assert len(facts["windows"][0]["classes"]) == 3
    assert facts["segments"][0]["start"] == 0
    assert facts["segments"][-1]["end"] == 5
    assert len(done.stdout.splitlines()) == len(facts["segments"])
    assert facts["segments"][0]["label"] in done.stdout
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    with open_video(out["mp4"]) as annotated, open_video(video) as original:
        assert annotated.times.tolist() == pytest.approx(original.times.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--annotate", "x.txt"], "x.txt: an output video's name must end in .mp4"),
        (["--stride", "0"], "--stride must be a number of seconds from 0.01 on"),
        (["--stride", "nan"], "--stride must be a number of seconds from 0.01 on"),
        (["--window", "2"], "--window: this model sees clips of a fixed length"),
        (["--topk", "0"], "--topk: must be at least 1"),
        (["--change-cost", "nan"], "--change-cost: must be at least 0"),
    ],
)
def test_mistakes_are_told_in_a_line(checkpoint, tmp_path, options, message):
    video = write_video(tmp_path / "x.mp4", frames=4)
    done = call_tool(TOOL, video, "--checkpoint", checkpoint, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_video_is_told_in_a_line(checkpoint, tmp_path):
    (tmp_path / "x.mp4").write_text("hello\n")
    done = call_tool(TOOL, tmp_path / "x.mp4", "--checkpoint", checkpoint, "--json", tmp_path / "t.json")
    assert done.returncode == 2
    assert "x.mp4: is text, not a video" in done.stderr
    assert not (tmp_path / "t.json").exists()
