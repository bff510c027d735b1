"""The commands as users run them: what they print, and one clear line for each mistake."""

import json
import shutil

import pytest
import torch

from tests.small import ROOT, call_tool, make_videos, run_net, settings
from tests.videos import write_audio, write_video


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data folder and the checkpoint of a small run on it."""
    folder = tmp_path_factory.mktemp("trained")
    make_videos(folder / "data")
    done = run_net(settings(folder / "data", folder / "run", TEST__NUM_ENSEMBLE_VIEWS=2, SOLVER__MAX_EPOCH=1,
                            SOLVER__WARMUP_EPOCHS=0))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def predict(trained, *arguments):
    model = trained / "run" / "model.pt"
    return call_tool("tools/predict.py", "--checkpoint", model, "--workers", 0, *arguments)


def make_bad_files(folder):
    """Write one file of each kind that is no readable video; missing.mp4 is not written."""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video")
    write_audio(folder / "audio.mp4")
    write_video(folder / "long.mp4", frames=48)
    whole = (folder / "long.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])


def assert_one_clear_line(done, code, *parts):
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stderr
    for part in parts:
        assert part in errors[0], errors[0]


def test_predict_agrees_with_the_test(trained, tmp_path):
    done = predict(trained, *[trained / "data" / f"{i}.mp4" for i in range(3)], "--json", tmp_path / "a.json")
    answers = [json.loads(line) for line in (tmp_path / "a.json").read_text().splitlines()]
    rows = (trained / "run" / "test_predictions.csv").read_text().splitlines()[1:4]
    assert done.returncode == 0
    for answer, row in zip(answers, rows, strict=True):
        _, _, prediction, probability = row.split(",")
        best = max(answer["classes"], key=answer["classes"].get)
        assert best == prediction
        assert answer["classes"][best] == pytest.approx(float(probability), abs=1e-3)


@pytest.mark.parametrize(("name", "reason"), [
    ("missing.mp4", "no such file"), ("empty.mp4", "empty"), ("text.mp4", "is text, not a video"),
    ("audio.mp4", "no video stream"), ("cut.mp4", "truncated"),
])  # fmt: skip
def test_predict_alone_with_a_bad_file(trained, tmp_path, name, reason):
    make_bad_files(tmp_path)
    assert_one_clear_line(predict(trained, tmp_path / name), 2, name, reason)


def test_predict_with_an_unreadable_checkpoint(trained, tmp_path):
    (tmp_path / "x.pt").write_text("nothing")
    video = trained / "data" / "1.mp4"
    done = call_tool("tools/predict.py", "--checkpoint", tmp_path / "x.pt", video)
    assert_one_clear_line(done, 2, "x.pt", "cannot be read", "training wrote")
    done = call_tool("tools/predict.py", "--checkpoint", tmp_path / "y.pt", video)
    assert_one_clear_line(done, 2, "y.pt", "No such file")
    assert_one_clear_line(predict(trained, video, "--device", "cuda:99"), 2, "--device cuda:99")


@pytest.mark.parametrize(("changes", "parts"), [
    ({"DATA__TRAIN_LIST": "none.csv"}, ["none.csv", "No such file", "DATA.PATH_TO_DATA_DIR"]),
    ({"DATA__CLASS_LIST": "short.txt"}, ["short.txt", "MODEL.NUM_CLASSES is 3", "set MODEL.NUM_CLASSES 2"]),
    ({"DATA__TRAIN_LIST": "range.csv"}, ["range.csv, line 3", "label 3 is out of range", "0 to 2"]),
    ({"DATA__TRAIN_LIST": "lost.csv"}, ["lost.csv, line 2", "lost.mp4 does not exist", "fix the list"]),
    ({"MODEL__COMPRESED_GRID": "[1,1,1]"}, ["MODEL.COMPRESED_GRID", "did you mean MODEL.COMPRESSED_GRID"]),
    ({"MODEL__COMPRESSED_GRID": "[9,9,9]"}, ["MODEL.COMPRESSED_GRID", "larger than"]),
    ({"TRAIN__BATCH_SIZE": "64"}, ["TRAIN.BATCH_SIZE", "64 videos a step", "holds 9"]),
    ({"TRAIN__ENABLE": "False", "TEST__CHECKPOINT_FILE_PATH": "nowhere.pt"}, ["nowhere.pt", "No such file"]),
    ({"MODEL__INIT_FROM": "nowhere.pt"}, ["nowhere.pt: no such file", "MODEL.INIT_FROM"]),
    ({"DISTILL__TEACHER": "nowhere.pt"}, ["nowhere.pt: no such file", "DISTILL.TEACHER"]),
    ({"TEST__GRIDS": "[[2,2]]"}, ["TEST.GRIDS: [2, 2]", "t x h x w"]),
])  # fmt: skip
def test_mistakes_in_a_run_give_one_line(trained, tmp_path, changes, parts):
    data = tmp_path / "data"
    shutil.copytree(trained / "data", data)
    (data / "short.txt").write_text("a\nb\n")
    (data / "range.csv").write_text("path,label\n0.mp4,1\n1.mp4,3\n")
    (data / "lost.csv").write_text("path,label\nlost.mp4,1\n")
    assert_one_clear_line(run_net(settings(data, tmp_path / "run", **changes)), 2, *parts)


def test_weights_that_fit_nothing_give_one_line(trained, tmp_path):
    def begin(weights, **changes):
        torch.save(weights, tmp_path / "x.pt")
        overrides = settings(trained / "data", tmp_path / "run", MODEL__INIT_FROM=tmp_path / "x.pt", **changes)
        return run_net(overrides)

    assert_one_clear_line(begin({"a.weight": torch.zeros(3)}), 2, "x.pt: not a ViT with known parameter", "a.weight")
    assert_one_clear_line(begin([1, 2]), 2, "x.pt: it holds no named tensors")
    own = torch.load(trained / "run" / "model.pt", weights_only=True)
    assert_one_clear_line(begin(own, MODEL__DIM=48), 2, "x.pt: its width is 24, the model's 48", "MODEL.DIM 24")
    assert_one_clear_line(begin(own, MODEL__ARCH="vit"), 2, "x.pt: a LookupViT does not fit into a dense ViT")
    assert not (tmp_path / "run" / "model.pt").exists()


def test_a_teacher_that_does_not_fit_gives_one_line(trained, tmp_path):
    teacher = {"DISTILL__TEACHER": trained / "run" / "model.pt"}
    done = run_net(settings(trained / "data", tmp_path, **teacher, DATA__NUM_FRAMES=8))
    assert_one_clear_line(done, 2, "model.pt: its DATA.NUM_FRAMES is 4, the student's 8")
    done = run_net(settings(trained / "data", tmp_path, **teacher, MODEL__DIM=48, DISTILL__FEATURE_WEIGHT=1))
    assert_one_clear_line(done, 2, "DISTILL.FEATURE_WEIGHT", "width is 24, the student's 48")


def test_mistakes_in_a_config_file_name_file_and_line(tmp_path):
    (tmp_path / "twice.yaml").write_text("MODEL:\n  DIM: 24\n  DIM: 48\n")
    done = call_tool("tools/run_net.py", "--cfg", tmp_path / "twice.yaml")
    assert_one_clear_line(done, 2, "twice.yaml, line 3", "DIM is there twice")
    done = call_tool("tools/check_configs.py", tmp_path / "twice.yaml")
    assert_one_clear_line(done, 2, "twice.yaml, line 3")
    done = call_tool("tools/run_net.py", "--cfg", tmp_path / "none.yaml")
    assert_one_clear_line(done, 2, "none.yaml", "No such file")


SCRIPTS = sorted(
    str(path.relative_to(ROOT)) for folder in ("tools", "datasets") for path in ROOT.glob(folder + "/**/*.py")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(script):
    done = call_tool(script, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert "--help" in done.stdout


def kinetics_layout(folder, suffix, codec):
    """Class folders of videos under train/, val/ and test/, and SlowFast's "path label" lists."""
    classes = [f"class {label}" for label in range(4)]
    for split in ("train", "val", "test"):
        lines = []
        for label, name in enumerate(classes):
            path = folder / split / name / f"clip_{split}_{label}{suffix}"
            path.parent.mkdir(parents=True)
            write_video(path, frames=12, size=(64, 48), first_number=label, codec=codec)
            lines.append(f"{path.relative_to(folder)} {label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")


@pytest.mark.parametrize(("cfg", "suffix", "codec", "lists"), [
    ("configs/k400_lvit.yaml", ".mp4", "libx264", {}),
    ("configs/k400_lvit.yaml", ".mp4", "libx264",
     {"DATA__TRAIN_LIST": "train", "DATA__VAL_LIST": "val", "DATA__TEST_LIST": "test", "DATA__CLASS_LIST": "-"}),
    ("configs/ssv2_lvit.yaml", ".webm", "libvpx-vp9", {}),
    ("configs/ssv2_vit.yaml", ".webm", "libvpx-vp9", {}),
])  # fmt: skip
def test_the_recipes_run_under_torchrun(tmp_path, cfg, suffix, codec, lists):
    """The published recipes with a small model: two steps of training and the multi-view test in two processes."""
    kinetics_layout(tmp_path / "data", suffix, codec)
    small = settings(tmp_path / "data", tmp_path / "run", **lists, MODEL__NUM_CLASSES=4)
    done = run_net(small, cfg=cfg, processes=2)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["videos"] == 4
    assert results["views"] == ("5x3" if "k400" in cfg else "2x3")
    assert "step 4/4" in done.stderr
