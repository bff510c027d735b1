import json

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import call_tool, make_videos

TOOL = "tools/explain.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_videos(folder, count=4)
    return folder


def save(folder, overrides=""):
    cfg = load_config(None, [*SMALL, *f"MODEL.NUM_CLASSES 3 DATA_LOADER.NUM_WORKERS 0 {overrides}".split()])
    torch.manual_seed(0)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=["class 0", "class 1", "class 2"], model=build_model(cfg))
    return folder / "model.pt"


def test_sheets_videos_and_the_table(data, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"")
    done = call_tool(
        TOOL, data / "0.mp4", tmp_path / "bad.mp4", data / "1.mp4", "--checkpoint", save(tmp_path), "--out",
        tmp_path / "out", "--token", "0,1,1", "--lookup", "1,3,3", "--list", data / "test.csv",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("bad.mp4: is empty") == 1
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["000_0.mp4", "000_0.png", "002_1.mp4", "002_1.png", "explained.json"]
    report = json.loads((tmp_path / "out" / "explained.json").read_text())
    assert [sorted(video) for video in report["videos"]] == [
        ["frozen", "path", "real", "shuffled"], ["error", "path"], ["frozen", "path", "real", "shuffled"],
    ]  # fmt: skip
    assert set(report["without_time"]["top1"]) == {"real", "shuffled", "frozen"}
    assert f"real      {report['without_time']['top1']['real']:6.2f} %" in done.stdout
    with open_video(tmp_path / "out" / "000_0.mp4") as reader:
        assert len(reader.times) == 4


def test_other_models_get_the_diagnosis_alone(data, tmp_path):
    checkpoint = save(tmp_path, "MODEL.ARCH vit")
    done = call_tool(TOOL, data / "0.mp4", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["explained.json"]
    assert "shuffled" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give videos, or --list"),
        (["VIDEO", "--token", "a"], "'a': write it as 0,1,1"),
        (["VIDEO", "--token", "0,9,9"], "token 0,9,9: give t,h,w on the grid 1x2x2"),
        (["--list", "no.csv"], "no.csv: the list of videos cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_line(data, tmp_path, options, message):
    options = [data / "0.mp4" if option == "VIDEO" else option for option in options]
    done = call_tool(TOOL, "--checkpoint", save(tmp_path), "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
