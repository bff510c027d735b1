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


def test_segments_are_compared_with_labelled_ones(checkpoint, tmp_path):
    for name in "xy":
        write_video(tmp_path / f"{name}.mp4", frames=40, fps=8)
    (tmp_path / "truth.csv").write_text("path,label,start,end\nx.mp4,a,0,1\nx.mp4,b,3,4\ny.mp4,e,0,5\ngone.mp4,a,0,1\n")
    done = call_tool(
        TOOL, "--truth", tmp_path / "truth.csv", "--checkpoint", checkpoint, "--stride", 1, "--background", "e",
        "--json", tmp_path / "t.json", "--hard-negatives", tmp_path / "hard.csv", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 1  # a video is not there: what is in it counts as missed
    assert "gone.mp4" in done.stderr
    facts = json.loads((tmp_path / "t.json").read_text())
    assert len(facts["timelines"]) == 2
    assert facts["metrics"]["true"] == 3  # without the background
    assert {"map_0.3", "map_0.7", "map", "segment_f1", "false_alarms_an_hour"} <= set(facts["metrics"])
    assert "\nsegment_f1 " in done.stdout
    rows = [row.split(",") for row in (tmp_path / "hard.csv").read_text().splitlines()]
    assert rows[0] == ["path", "label", "start", "end"]
    assert {row[1] for row in rows[1:]} == {"e"}
    of_x = [(float(row[2]), float(row[3])) for row in rows[1:] if row[0].endswith("x.mp4")]
    assert of_x == [(1.0, 3.0)]  # the one window of 2 s between the spans
    assert sum(row[0].endswith("y.mp4") for row in rows) == 2


def test_several_change_costs_are_compared(checkpoint, tmp_path):
    write_video(tmp_path / "x.mp4", frames=80, fps=8)
    (tmp_path / "truth.csv").write_text("path,label,start,end\nx.mp4,a,0,5\nx.mp4,b,5,10\n")
    options = ["--truth", tmp_path / "truth.csv", "--checkpoint", checkpoint, "--stride", 1, "--device", "cpu"]
    alone = {}
    for cost in ("0", "50"):
        assert call_tool(TOOL, *options, "--change-cost", cost, "--json", tmp_path / "one.json").returncode == 0
        alone[cost] = json.loads((tmp_path / "one.json").read_text())
    done = call_tool(TOOL, *options, "--change-cost", 0, 50, "--json", tmp_path / "both.json")
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["change_costs"] == {cost: facts["metrics"] for cost, facts in alone.items()}
    best = max(alone, key=lambda cost: alone[cost]["metrics"]["segment_f1"])
    assert both["change_cost"] == float(best)
    assert both["metrics"] == alone[best]["metrics"]
    assert both["timelines"] == alone[best]["timelines"]
    assert done.stdout.splitlines()[0].split() == ["change", "cost", "0", "50"]
    assert done.stdout.splitlines()[-1] == f"highest segment F1: --change-cost {best}"


@pytest.mark.parametrize("options", [[], ["x.mp4", "--truth", "t.csv"], ["--truth", "t.csv", "--png", "x.png"],
                                     ["x.mp4", "--hard-negatives", "h.csv"],
                                     ["x.mp4", "--change-cost", "1", "2"]])  # fmt: skip
def test_a_video_or_a_list(checkpoint, options):
    assert call_tool(TOOL, *options, "--checkpoint", checkpoint).returncode == 2
