import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lookupvit_video import Predictor, load_model
from lookupvit_video.checkpoints.checkpoint import Checkpoint, save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference import hub
from lookupvit_video.models.build import build_model
from lookupvit_video.remote import is_hub_id
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
    files = {path.name for path in (tmp_path / "saved").iterdir() if path.suffix != ".py"}
    assert files == {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"}
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
        fails("config.json: not a config of this project")
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
    with pytest.raises(ValueError, match=r"a/b/c: no such folder, and not an id of the Hugging Face Hub"):
        Predictor.from_pretrained("a/b/c", "cpu")


# Texts and addresses ------------------------------------------------------------------------------------------------


def card_of(overrides=(), *, classes=CLASSES, costs=None, results=None):
    loaded = Checkpoint(Path(), load_config(None, [*SMALL, *overrides]), classes, {}, None, step=0, best_top1=-1.0)
    return hub.model_card("my-model", loaded, costs or {"1x2x2": 0.123456}, 1234567, results)


def test_a_card_says_what_the_model_takes_and_costs():
    text = card_of(["DATA.SAMPLING_RATE", "4", "DATA.TARGET_FPS", "30"], costs={"1x1x1": 1.23456, "": 2.0})
    assert (
        "# my-model\n\nlookupvit for video classification, 1,234,567 parameters, 5 classes: a, b, c: d, e | f, ü."
        in text
    )
    assert "clips of 4 frames, 0.1333 s apart, of 32 x 32 pixels.\n" in text
    assert "started from random weights." in text
    assert "| 1x1x1 | 1.235 |\n| - | 2 |\n" in text
    assert 'load_model("my-model")' in text
    assert text.endswith("## Accuracy\n\nNot measured.\n")
    assert "one from each of 4 equal parts of the video" in card_of(["DATA.SAMPLING", "segments"])
    assert "started from pretrained weights." in card_of(["MODEL.INIT_FROM", "vit.pt"])


def test_a_card_names_twenty_classes():
    names = [f"class {number}" for number in range(21)]
    assert f"20 classes: {', '.join(names[:20])}.\n" in card_of(classes=names[:20])
    assert f"21 classes: {', '.join(names[:20])}, ... (all 21 in config.json).\n" in card_of(classes=names)


def test_a_card_has_a_row_for_each_grid_that_was_measured():
    plain = {name: value for name, value in RESULTS.items() if name not in ("grids", "bad_videos")}
    text = card_of(results=plain)
    assert text.endswith("2x3 views (times x crops), float32; 0 that could not be read count as wrong.\n")
    rows = [*RESULTS["grids"], {**RESULTS["grids"][0], "grid": "2x4x4", "top1": 46.0}]
    text = card_of(results={**RESULTS, "grids": rows})
    assert text.endswith("| compressed grid | GMACs a view | top-1, % | top-5, % |\n|---|---|---|---|\n"
                         "| 1x2x2 | 0.001 | 45.67 | 89.01 |\n| 2x4x4 | 0.001 | 46.0 | 89.01 |\n")  # fmt: skip


def test_results_are_those_of_the_checkpoint_beside_them(tmp_path):
    (tmp_path / "test_results.json").write_text(json.dumps(RESULTS))
    assert hub.test_results(tmp_path / "model.pt") == RESULTS
    assert hub.test_results(tmp_path / "best.pt") is None
    assert hub.test_results(tmp_path / "elsewhere" / "model.pt") is None
    assert hub.test_results(Path()) is None
    for name in ("top1", "videos", "views", "precision", "checkpoint"):
        (tmp_path / "test_results.json").write_text(json.dumps({k: v for k, v in RESULTS.items() if k != name}))
        assert hub.test_results(tmp_path / "model.pt") is None
    for text in (json.dumps({**RESULTS, "checkpoint": 5}), "[]", "", "\xff"):
        (tmp_path / "test_results.json").write_text(text, encoding="latin-1")
        assert hub.test_results(tmp_path / "model.pt") is None


def test_a_config_leaves_the_machine_behind():
    local = {
        "OUTPUT_DIR": "/home/somebody/runs", "TEST.CHECKPOINT_FILE_PATH": "/home/somebody/a.pt",
        "DATA.PATH_TO_DATA_DIR": "/home/somebody/data", "DATA.PATH_PREFIX": "/home/somebody/videos",
        "DATA.SKIP_LIST": "/home/somebody/skip.csv", "DATA.INDEX_CACHE": "/home/somebody/index",
        "MODEL.INIT_FROM": "/home/somebody/vit.pt",
    }  # fmt: skip
    cfg = load_config(None, [*SMALL, *(part for pair in local.items() for part in pair)])
    settings = yaml.safe_load(cfg.dump())
    found = hub.portable(settings)
    assert "somebody" not in str(found)
    assert settings == yaml.safe_load(cfg.dump())
    assert found["MODEL"]["DIM"] == 24
    assert found == yaml.safe_load(load_config(None, SMALL).dump())
    assert {"DISTILL.TEACHER", "DISTILL.FEATURE_WEIGHT", "DISTILL.BLOCK_WEIGHT"} <= set(hub.LOCAL_KEYS.split())


@pytest.mark.parametrize("name", ["org/model.pt", "org/model.pth", "org/model.bin", "org/model.safetensors", "org", "",
                                  "a/b/c", "org/", "/model", "-org/model", "org/.model", "org/mo del"])  # fmt: skip
def test_what_is_no_id(name):
    assert not is_hub_id(name)


@pytest.mark.parametrize("name", ["org/model", "a/b", "my.org/model-v1.2_x", "org/model.ckpt"])
def test_what_is_an_id(name, tmp_path, monkeypatch):
    assert is_hub_id(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    assert not is_hub_id(name)  # a file of that name comes first


def test_only_config_and_weights_are_fetched(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "saved")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *given, **options: asked.append((given, options)) or str(tmp_path / "saved"),
    )
    assert Predictor.from_pretrained("org/model", "cpu", revision="v1").classes == CLASSES
    assert load_model("org/model", "cpu").source == tmp_path / "saved"
    wanted = ["config.json", "model.safetensors", "calibration.json"]
    assert asked == [
        (("org/model",), {"revision": revision, "allow_patterns": wanted}) for revision in ("v1", None)
    ]  # fmt: skip


def test_without_the_package_of_the_hub_the_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"org/model: no such file or folder; .* pip install huggingface_hub"):
        load_model("org/model", "cpu")


def test_a_folder_is_a_checkpoint_without_a_training(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    found = hub.read_pretrained(tmp_path / "saved")
    assert (found.path, found.classes, found.step, found.best_top1) == (tmp_path / "saved", CLASSES, 0, -1.0)
    assert found.optimizer is None
    text = (tmp_path / "saved" / "config.json").read_text()
    assert json.loads(text)["model_type"] == "lookupvit_video"
    assert text.startswith('{\n  "architectures"')
    assert text.endswith("}\n")
    many = {str(label): f"class {label}" for label in range(12)}
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**json.loads(text), "id2label": many}, sort_keys=True))
    assert hub.read_pretrained(tmp_path / "saved").classes == list(many.values())  # by number, not by letter
