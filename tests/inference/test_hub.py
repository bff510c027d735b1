import json

import pytest
import torch

from lookupvit_video import Predictor, load_model
from lookupvit_video.config import load_config
from lookupvit_video.engine.checkpoint import save_checkpoint
from lookupvit_video.inference.hub import is_hub_id
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import write_video

CLASSES = ["a", "b", "c: d", "e | f", "ü"]
RESULTS = {
    "checkpoint": "/home/somebody/runs/model.pt", "views": "2x3", "precision": "float32", "videos": 123, "top1": 45.67,
    "top5": 89.01, "bad_videos": [{}],
    "grids": [{"grid": "1x2x2", "tokens": 4, "gmacs_per_view": 0.001, "top1": 45.67, "top5": 89.01}],
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    paths = ["DATA.PATH_TO_DATA_DIR", "/home/somebody/data", "OUTPUT_DIR", "/home/somebody/runs"]
    cfg = load_config(None, [*SMALL, *paths, "MODEL.COMPRESSED_GRIDS", "[[1,1,1],[1,2,2]]"])
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "model.pt", cfg=cfg, classes=CLASSES, model=build_model(cfg))
    return load_model(tmp_path / "model.pt", "cpu")


def test_a_saved_model_comes_back_as_it_was(model, tmp_path):
    video = write_video(tmp_path / "x.mp4", frames=12)
    model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for again in (load_model(tmp_path / "saved", "cpu"), Predictor.from_pretrained(str(tmp_path / "saved"), "cpu")):
        assert again.classes == CLASSES
        assert again.predict(video).probabilities == model.predict(video).probabilities
        assert again.grids == model.grids
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_the_config_follows_hugging_face_and_tells_nothing_of_the_machine(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["LookupViT"]
    assert config["id2label"] == {str(label): name for label, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: label for label, name in enumerate(CLASSES)}
    for path in (tmp_path / "saved").iterdir():
        assert b"somebody" not in path.read_bytes()
        assert str(tmp_path.parent).encode() not in path.read_bytes()


def test_the_card_quotes_measurements_of_this_checkpoint_only(model, tmp_path):
    def card():
        model.save_pretrained(tmp_path / "saved")
        return (tmp_path / "saved" / "README.md").read_text()

    assert "Not measured." in card()
    assert f"| 1x1x1 | {model.grids['1x1x1']:.4g} |" in card()
    (tmp_path / "test_results.json").write_text(json.dumps(RESULTS))
    assert "Top-1 45.67 %, top-5 89.01 % of 123 test videos, 2x3 views (times x crops), float32; 1 that" in card()
    assert "| 1x2x2 | 0.001 | 45.67 | 89.01 |" in card()
    for other in ({**RESULTS, "checkpoint": "runs/best.pt"}, {"checkpoint": "model.pt"}, [], 5):
        (tmp_path / "test_results.json").write_text(json.dumps(other))
        assert "Not measured." in card()
    assert card().startswith("---\nlibrary_name: lookupvit_video\npipeline_tag: video-classification\n")


def test_damaged_folders_are_one_clear_error(model, tmp_path):
    folder = tmp_path / "saved"

    def fails(message):
        with pytest.raises(ValueError, match=message) as raised:
            load_model(folder, "cpu")
        assert "\n" not in str(raised.value)

    model.save_pretrained(folder)
    config, weights = (folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()
    for damaged in (weights[:100], b"", b"\xff" * 64, weights[:-8]):
        (folder / "model.safetensors").write_bytes(damaged)
        fails(r"model.safetensors: these weights cannot be read \(damaged")
    (folder / "model.safetensors").unlink()
    fails(r"model.safetensors: these weights cannot be read \(No such file")
    (folder / "model.safetensors").write_bytes(weights)
    for text in ("", "[]", "{}", "[" * 9999, '{"id2label": 3, "lookupvit_video": {}}', '{"id2label": {"5": "a"}}'):
        (folder / "config.json").write_text(text)
        fails("config.json: no config of this project")
    (folder / "config.json").write_text(config.replace('"DIM": 24', '"DIM": 48'))
    fails("geometry must be those of the checkpoint")
    (folder / "config.json").write_text(config.replace('"DIM": 24', '"DIMM": 24'))
    fails(r"config.json \(lookupvit_video\): unknown key MODEL.DIMM")
    (folder / "config.json").unlink()
    fails(r"config.json: cannot be read \(No such file")


def test_ids_of_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    assert is_hub_id("someone/lookupvit-b_k400.v1")
    for path in ("model.pt", "runs/model.pt", "/abs/path", "a/b/c", "../up", "someone/", str(tmp_path)):
        assert not is_hub_id(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"nobody/nothing: no such file or folder, and it cannot be fetched"):
        load_model("nobody/nothing", "cpu")
    with pytest.raises(ValueError, match=r"a/b/c: no such folder, and no id of the Hugging Face Hub"):
        Predictor.from_pretrained("a/b/c", "cpu")
