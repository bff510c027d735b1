"""lookupvit stream as users run it."""

import json
import os
import signal
import threading
import time

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from tests.inference.streaming.servers import webhook
from tests.models.test_models import SMALL
from tests.small import call_tool
from tests.videos import write_video

TOOL = "tools/stream.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2"])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=list("abcde"), model=build_model(cfg))
    write_video(folder / "x.mkv", frames=60)
    return folder


def stream(folder, *arguments):
    return call_tool(TOOL, "--checkpoint", folder / "model.pt", *arguments)


def test_events_go_to_standard_output_a_file_and_a_webhook(folder, tmp_path):
    done = stream(folder, "--source", folder / "x.mkv")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["event"] for row in rows] == ["start", "end"] * (len(rows) // 2) + ["summary"]
    assert rows[-2]["end"] == pytest.approx(2.5, abs=0.01)
    assert "60 frames in, 0 dropped, 0 cuts" in done.stderr
    assert "latency p50" in done.stderr
    with webhook() as (address, posted):
        done = stream(folder, "--source", folder / "x.mkv", "--out", tmp_path / "e.jsonl", "--webhook", address)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "e.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == list(map(json.loads, posted))
    assert done.stdout == ""


def test_standard_input(folder):
    """In this process: what libav reads is file descriptor 0."""
    kept = os.dup(0)
    try:
        with (folder / "x.mkv").open("rb") as video:
            os.dup2(video.fileno(), 0)
        done = stream(folder, "--source", "-")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["source"], summary["frames"], summary["dropped"]) == ("-", 60, 0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_with_a_summary(folder, tmp_path, name):
    video, out = write_video(tmp_path / "long.mkv", frames=240, fps=4), tmp_path / "e.jsonl"

    def send():
        while not (out.exists() and out.read_text()):  # until windows are answered
            time.sleep(0.02)
        os.kill(os.getpid(), signal.Signals[name])

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    done = stream(folder, "--source", video, "--realtime", "--decisions", "--out", out)
    thread.join()
    assert done.returncode == 0, done.stderr
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    rows = list(map(json.loads, out.read_text().splitlines()))
    assert rows[-1]["event"] == "summary"
    assert 0 < rows[-1]["frames"] < 240
    assert sum(row["event"] == "start" for row in rows) == sum(row["event"] == "end" for row in rows)
    assert "frames in" in done.stderr


@pytest.mark.parametrize(("options", "message"), [
    (["--source", "none.mp4"], "none.mp4: no such file"),
    (["--source", "ftp://h/x"], "a URL must begin with http://, https://, rtsp://, rtsps://"),
    (["--source", "VIDEO", "--source", "VIDEO"], "--source: each one once"),
    (["--source", "VIDEO", "--enter", "0.5", "--leave", "0.6"], "--leave must be at most --enter"),
    (["--source", "VIDEO", "--smooth", "1"], "--leave, --smooth: for classes by themselves; give --enter as well"),
    (["--source", "VIDEO", "--window", "1"], "--window: this model sees clips of a fixed length"),
    (["--source", "VIDEO", "--stride", "0.001"], "--stride must be a number of seconds from 0.01 on"),
    (["--source", "VIDEO", "--webhook", "x"], "--webhook x: must begin with http:// or https://"),
    (["--source", "VIDEO", "--out", "VIDEO"], ": an input file is not written over"),
    (["--source", "VIDEO", "--annotate", "VIDEO"], ": an input file is not written over"),
    (["--source", "VIDEO", "--annotate", "x.avi"], "x.avi: an output video's name must end in .mp4, .mov, .mkv"),
    (["--source", "VIDEO", "--source", "-", "--annotate", "x.mp4"], "--annotate x.mp4: writes the video of one source"),
    (["--source", "VIDEO", "--grid", "9x9x9"], "9x9x9"),
])  # fmt: skip
def test_mistakes_are_reported_in_a_line(folder, options, message):
    done = stream(folder, *[folder / "x.mkv" if word == "VIDEO" else word for word in options])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_source_that_cannot_be_read_is_a_failure(folder, tmp_path):
    (tmp_path / "bad.mp4").write_text("hello")
    done = stream(folder, "--source", tmp_path / "bad.mp4")
    assert done.returncode == 1
    assert "bad.mp4: is text, not a video" in done.stderr
    assert "Traceback" not in done.stderr
