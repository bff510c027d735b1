"""Users' mistakes are one line and exit code 2 in every command; a bug keeps its traceback and exits with 1."""

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.errors import BUG
from lookupvit_video.models.build import build_model
from lookupvit_video.models.lookupvit import LookupViT
from tests.commands.test_train import assert_one_clear_line
from tests.small import call_tool, make_videos, settings

TRAIN = ("train", "--cfg", "tests/small.yaml")


def lookupvit(*words):
    return call_tool("lookupvit_video/__main__.py", *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos with lists, and the checkpoint of a small model with random weights, which has one compressed grid."""
    folder = tmp_path_factory.mktemp("mistakes")
    make_videos(folder, count=4)
    cfg = load_config("tests/small.yaml", settings(folder, folder / "run"))
    torch.manual_seed(0)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=["a", "b", "c"], model=build_model(cfg))
    (folder / "text.pt").write_text("hello")
    (folder / "study.yaml").write_text("rows: {}\n")
    return folder


@pytest.mark.parametrize(("words", "parts"), [
    (["train", "--cfg", "k400_lvti"], ["k400_lvti", "k400_lvit"]),
    ([*TRAIN, "MODEL.DEPHT", "2"], ["MODEL.DEPHT", "did you mean MODEL.DEPTH"]),
    ([*TRAIN, "MODEL.DEPTH"], ["MODEL.DEPTH", "has no value"]),
    ([*TRAIN, "MODEL.DEPTH", "two"], ["MODEL.DEPTH", "'two'"]),
    ([*TRAIN, "DATA.PATH_TO_DATA_DIR", "{}/none"], ["none", "No such file"]),
    (["test", "--cfg", "tests/small.yaml", "DATA.PATH_TO_DATA_DIR", "{}", "MODEL.NUM_CLASSES", "3",
      "TEST.CHECKPOINT_FILE_PATH", "{}/none.pt"], ["none.pt", "No such file"]),
    (["predict", "--checkpoint", "{}/none.pt", "{}/0.mp4"], ["none.pt", "No such file"]),
    (["predict", "--checkpoint", "{}/text.pt", "{}/0.mp4"], ["text.pt"]),
    (["predict", "--checkpoint", "{}/model.pt", "{}/none.mp4"], ["none.mp4", "no such file"]),
    (["predict", "--checkpoint", "{}/model.pt", "--grid", "9x9x9", "{}/0.mp4"], ["9x9x9", "this checkpoint has"]),
    (["timeline", "--checkpoint", "{}/model.pt", "{}/none.mp4"], ["none.mp4"]),
    (["timeline", "--checkpoint", "{}/model.pt", "{}/0.mp4", "--annotate", "{}/x.txt"], ["x.txt", ".mp4"]),
    (["explain", "--checkpoint", "{}/model.pt", "--out", "{}/out", "--list", "{}/none.csv"], ["none.csv"]),
    (["calibrate", "--checkpoint", "{}/model.pt", "--drop", "1"],
     ["model.pt", "one compressed grid", "MODEL.COMPRESSED_GRIDS"]),
    (["export", "--checkpoint", "{}/model.pt", "--out", "{}/out", "--grid", "9x9x9"], ["9x9x9", "made with"]),
    (["merge-lora", "{}/model.pt", "--out", "{}/x.pt"], ["model.pt", "MODEL.ADAPTER is none"]),
    (["check", "{}/none"], ["none"]),
    (["check-configs", "{}/none.yaml"], ["none.yaml"]),
    (["flops", "--cfg", "k400_vit", "--sweep"], ["--sweep", "vit has no compressed tokens"]),
    (["benchmark", "model", "--dim", "100"], ["--dim 100", "multiple of 64"]),
    (["study", "--study", "{}/study.yaml"], ["study.yaml", "configs, seeds and rows"]),
    (["compare", "{}"], ["config.yaml", "OUTPUT_DIR"]),
    (["prepare", "kinetics", "--dataset", "k400", "--annotations", "{}/none.csv", "--out", "{}/out"], ["none.csv"]),
    (["prepare", "ssv2", "--annotations", "{}/none", "--videos", "{}", "--out", "{}/out"], ["none"]),
    (["prepare", "subset", "--of", "{}", "--out", "{}/out", "--classes", "blue"], ["--classes", "'blue'", "class 0"]),
])  # fmt: skip
def test_mistakes_give_one_line(folder, words, parts):
    done = lookupvit(*(word.format(folder) for word in words))
    assert_one_clear_line(done, 2, "lookupvit", *parts)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_bug_keeps_its_traceback(folder, tmp_path, monkeypatch, command):
    def forward(self, *arguments, **options):
        return [][0]

    monkeypatch.setattr(LookupViT, "forward", forward)
    if command == "train":
        done = lookupvit(*TRAIN, *settings(folder, tmp_path))
    else:
        done = lookupvit("predict", "--checkpoint", folder / "model.pt", "--workers", 0, folder / "0.mp4")
    assert done.returncode == 1, done.stderr
    assert "IndexError: list index out of range" in done.stderr
    assert "in forward" in done.stderr
    assert done.stderr.splitlines()[-1] == f"lookupvit {command}: {BUG}"
