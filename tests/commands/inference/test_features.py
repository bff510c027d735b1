"""lookupvit features as users run it."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.features import extract
from lookupvit_video.inference.features.store import load_features
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import call_tool
from tests.videos import write_video

TOOL = "tools/features.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos, one that is none, and a checkpoint."""
    folder = tmp_path_factory.mktemp("features")
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2"])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=list("abcde"), model=build_model(cfg))
    (folder / "clips").mkdir()
    for number in range(6):
        write_video(folder / "clips" / f"{number}.mp4", frames=12, first_number=100 * number)
    (folder / "clips" / "bad.mp4").write_text("hello")
    return folder


def features(folder, *arguments):
    return call_tool(TOOL, "--checkpoint", folder / "model.pt", "--workers", 0, "--batch-size", 2, *arguments)


def test_saved_and_searched(folder, tmp_path):
    out = tmp_path / "f.npy"
    done = features(folder, folder / "clips", "--out", out)
    assert done.returncode == 1
    assert "bad.mp4: is text, not a video" in done.stderr
    assert "6 videos with features, 1 failed" in done.stderr
    saved = load_features(out)
    assert [os.path.basename(path) for path in saved.paths] == [f"{number}.mp4" for number in range(6)]
    assert saved.rows.shape == (6, 48)
    done = features(folder, folder / "clips" / "4.mp4", "--query", out, "--topk", 2, "--json", tmp_path / "near.jsonl")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "near.jsonl").read_text().splitlines())
    assert row["nearest"][0]["path"] == str(folder / "clips" / "4.mp4")
    assert row["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(row["nearest"]) == 2
    assert done.stdout.splitlines()[0].startswith(f"{folder / 'clips' / '4.mp4'}  0.")


def test_windows_and_tokens(folder, tmp_path):
    video = folder / "clips" / "1.mp4"
    done = features(folder, video, "--out", tmp_path / "f.safetensors", "--stride", 0.05, "--tokens", "compressed",
                    "--half")  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = load_features(tmp_path / "f.safetensors")
    assert saved.rows.dtype == np.float16
    assert saved.rows.ndim == 3
    assert len(saved.rows) > 1
    assert np.diff(saved.times[:-1, 0]).tolist() == pytest.approx([0.05] * (len(saved.rows) - 2))


def test_the_same_bytes_after_an_interruption(folder, tmp_path, monkeypatch):
    out, once = tmp_path / "out" / "f.npy", tmp_path / "once.npy"
    assert features(folder, folder / "clips", "--out", once).returncode == 1

    groups = extract.read_features

    def some(*given):
        yield from itertools.islice(groups(*given), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extract, "read_features", some)
        patch.setattr("lookupvit_video.commands.run_command.PATIENCE", 1e6)  # else it would end this process
        patch.setattr(signal, "signal", lambda *_: None)
        assert features(folder, folder / "clips", "--out", out).returncode == 130
    assert not out.exists()
    done = features(folder, folder / "clips", "--out", out, "--resume")
    assert "4 of 7 videos have features already" in done.stderr
    assert out.read_bytes() == once.read_bytes()


@pytest.mark.parametrize(("options", "message"), [
    (["x.mp4"], "nothing to do: give --out, --query or both"),
    (["--out", "x.npy"], "no videos: name files"),
    (["x.mp4", "--query", "f.npy", "--resume"], "--resume continues what --out holds"),
    (["x.mp4", "--query", "f.npy", "--tokens", "lookup"], "--query: searches in pooled features"),
    (["x.mp4", "--out", "x.txt"], "x.txt: a file of features ends in .npy"),
    (["x.npy", "--out", "x.npy"], "x.npy: cannot be written, it is an input file or given twice"),
    (["x.mp4", "--out", "x.npy", "--window", "2"], "--window is for windows; give --stride as well"),
    (["x.mp4", "--out", "/tmp/none.npy", "--tokens", "lookup", "--grid", "9x9x9"], "9x9x9"),
    (["x.mp4", "--query", "none.npy"], "none.npy: cannot be read (No such file"),
])  # fmt: skip
def test_mistakes_are_reported_in_a_line(folder, options, message):
    done = features(folder, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
