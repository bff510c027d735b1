"""`lookupvit train --data`: from a folder of real video files to a tested model, without a config."""

import json
import shutil

import pytest
import yaml

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import read_manifest
from tests.small import call_tool
from tests.videos import write_video

QUICK = ("MODEL.DIM", 24, "MODEL.NUM_HEADS", 2, "MODEL.DEPTH", 1, "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0,
         "DATA.NUM_FRAMES", 4)  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve clips in two classes, named like six recordings."""
    folder = tmp_path_factory.mktemp("own") / "my clips"
    for number in range(12):
        path = folder / ("run", "座る")[number % 2] / f"r{number // 2}_{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames=12, first_number=100 * number)
    return folder


def train(*words):
    return call_tool("tools/run_net.py", *words)


def rows(folder, split):
    return [video.path for video in read_manifest(folder / f"data/{split}.csv", ["run", "座る"])]


def test_from_a_folder_to_a_tested_model(videos, tmp_path):
    command = ("--data", videos, "--minutes", 1, "--group-by", r"r\d", "OUTPUT_DIR", tmp_path, *QUICK)
    done = train(*command)
    assert done.returncode == 0, done.stderr
    lists = {split: rows(tmp_path, split) for split in ("train", "val", "test")}
    assert len(lists["train"]) + len(lists["val"]) == 12
    assert lists["test"] == lists["val"]
    recordings = [{path.rpartition("/")[2][:2] for path in lists[split]} for split in ("train", "val")]
    assert not recordings[0] & recordings[1]
    assert json.loads((tmp_path / "test_results.json").read_text())["videos"] == len(lists["test"])
    assert "split 12 videos by 6 groups, with RNG_SEED 0" in done.stderr
    assert "predicted: " in done.stderr
    # what the log prints is the config of the run
    log = [line.partition(" ")[2] for line in done.stderr.splitlines()]
    first = next(i for i, line in enumerate(log) if line.startswith("settings, with the reasons")) + 1
    last = next(i for i, line in enumerate(log) if line.startswith("predicted: "))
    printed = tmp_path / "printed.yaml"
    printed.write_text("\n".join(log[first:last]))
    config = load_config(tmp_path / "config.yaml")
    assert load_config(printed) == config
    assert "  # " in printed.read_text()
    assert (config.AUTO.ENABLE, config.MODEL.NUM_CLASSES, config.DATA.NUM_FRAMES) == (False, 2, 4)
    # a second call resumes: same splits and settings
    again = train(*command)
    assert again.returncode == 0, again.stderr
    assert "from which this run resumes" in again.stderr
    assert load_config(tmp_path / "config.yaml") == config
    other = train(*command, "RNG_SEED", 1)
    assert other.returncode == 2
    assert "RNG_SEED was 0 when this run began and is now 1; choose another OUTPUT_DIR" in other.stderr


def test_what_is_wrong_with_the_videos_is_said_and_does_not_stop(videos, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(videos, folder)
    (folder / "run" / "broken.mp4").write_bytes(b"\0\1\2" * 1000)
    (folder / "empty").mkdir()
    for copy in range(24):
        shutil.copy(folder / "run" / "r0_0.mp4", folder / "run" / f"copy{copy}.mp4")
    done = train("--data", folder, "OUTPUT_DIR", tmp_path / "run", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "1 classes have no video and are left out: empty" in done.stderr
    assert f"1 videos cannot be read, see {tmp_path / 'run/data/left_out.csv'}" in done.stderr
    assert "'run' has " in done.stderr
    assert not any("broken" in path for split in ("train", "val") for path in rows(tmp_path / "run", split))
    assert "Warning" not in done.stderr


def test_a_shipped_config_and_three_folders(videos, tmp_path):
    for split in ("train", "val", "test"):
        for kind in ("run", "座る"):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            shutil.copytree(videos / kind, tmp_path / "data" / split / kind)
    done = train("--cfg", "configs/own_videos.yaml", "DATA.PATH_TO_DATA_DIR", tmp_path / "data", "OUTPUT_DIR",
                 tmp_path / "run", "TRAIN.ENABLE", False, "TEST.ENABLE", False, *QUICK)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [len(rows(tmp_path / "run", split)) for split in ("train", "val", "test")] == [12, 12, 12]
    assert all("/val/" in path for path in rows(tmp_path / "run", "val"))


def test_weights_decide_clip_and_model(videos, tmp_path):
    first = (
        "--data",
        videos,
        "OUTPUT_DIR",
        tmp_path / "first",
        *QUICK,
        "DATA.MEAN",
        "[0.4,0.4,0.4]",
        "TEST.ENABLE",
        False,
        "MODEL.TOKENIZER",
        "convolutional",
    )
    assert train(*first).returncode == 0
    weights = tmp_path / "first" / "model.pt"
    done = train("--data", videos, "--dry-run", "OUTPUT_DIR", tmp_path / "second", "MODEL.INIT_FROM", weights)
    assert done.returncode == 0, done.stderr
    log = done.stderr.split("reuse them:\n")[1].split("predicted: ")[0].splitlines()[:-1]
    settings = yaml.safe_load("\n".join(line.partition(" ")[2] for line in log))
    assert (settings["MODEL"]["DIM"], settings["DATA"]["NUM_FRAMES"], settings["DATA"]["MEAN"]) == (24, 4, [0.4] * 3)
    assert settings["MODEL"]["TOKENIZER"] == "convolutional"
    assert settings["SOLVER"]["BASE_LR"] == pytest.approx(2e-4)
    assert not (tmp_path / "second").exists()


def test_a_start_without_labels(videos, tmp_path):
    quick = (
        *QUICK,
        "MODEL.LOOKUP_CONV",
        "[3,3,3]",
        "SOLVER.BASE_LR",
        2e-3,
        "TRAIN.TASK",
        "masked",
        "TEST.ENABLE",
        False,
    )
    first = train("--data", videos, "OUTPUT_DIR", tmp_path / "first", *quick)
    assert first.returncode == 0, first.stderr
    weights = tmp_path / "first" / "model.pt"
    done = train("--data", videos, "--dry-run", "OUTPUT_DIR", tmp_path / "second", "MODEL.INIT_FROM", weights)
    assert done.returncode == 0, done.stderr
    assert "LOOKUP_CONV: [3, 3, 3]  # as the weights" in done.stderr
    assert "BASE_LR: 0.001  # width 24" in done.stderr  # that from random weights


@pytest.mark.parametrize(("words", "message"), [
    (["--cfg", "own_videos"], "DATA.PATH_TO_DATA_DIR is empty; name your folder or list of videos: --data PLACE"),
    (["--data", "typo"], "typo: no such folder or list of videos"),
    ([], "give --data PLACE, or --cfg CONFIG"),
])  # fmt: skip
def test_mistakes(words, message, tmp_path):
    done = train(*words, *(["OUTPUT_DIR", tmp_path] if words else []))
    assert done.returncode == 2
    assert message in done.stderr


def test_a_list_with_several_labels_trains_for_several_labels(videos, tmp_path):
    files = sorted(videos.rglob("*.mp4"))
    labels = ["run", "jump", "run|jump", ""] * 3
    lines = [f"{file},{label}\n" for file, label in zip(files, labels, strict=True)]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines), encoding="utf-8")
    done = train("--data", tmp_path / "list.csv", "--minutes", 1, "OUTPUT_DIR", tmp_path / "run", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "TASK: multi_label" in done.stderr
    assert "mean_average_precision" in json.loads((tmp_path / "run/test_results.json").read_text())
    classes = ["jump", "run"]
    split = [v for name in ("train", "val")
             for v in read_manifest(tmp_path / f"run/data/{name}.csv", classes, multi_label=True)]  # fmt: skip
    expected = dict(zip(map(str, files), [(1,), (0,), (0, 1), ()] * 3, strict=True))
    assert {video.path: video.labels for video in split} == expected
