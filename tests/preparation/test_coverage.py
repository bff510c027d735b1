"""What training and the check say of classes that the lists do not cover."""

import json
import re

import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import Video, load_classes, load_split
from lookupvit_video.preparation.check import ListedVideo
from lookupvit_video.preparation.coverage import (
    class_counts,
    classes_of_inputs,
    coverage_warnings,
    imbalance_warning,
    shared_warning,
    warnings_of_rows,
    warnings_of_run,
)
from lookupvit_video.preparation.inspect_file import FileReport, Problem
from lookupvit_video.remote import joined
from tests.small import call_tool, make_videos, run_net, settings


def test_videos_a_class_fit_one_line():
    videos = [Video("x.mp4", label) for label in [0] * 3 + [2]]
    assert class_counts(videos, ["left", "never", "a\nb"]) == "left 3, never 0, a\\nb 1"
    videos = [Video("x.mp4", label) for label in range(11) for _ in range(label)]
    assert class_counts(videos, "abcdefghijk") == "fewest a 0, b 1, c 2, d 3, e 4; most k 10"


@pytest.mark.parametrize(
    ("classes", "used", "expected"),
    [
        ("abc", {"train": {0, 1, 2}, "val": {0}}, []),
        ("a", {"train": {0}}, [r"there is a single class \(a\)"]),
        ("abc", {"train": {1}}, [r"all training videos are of a single class \(b\)",
                                 r"2 of 3 classes have no training video \(a, c\)"]),
        ("abcd", {"train": {0, 1, 2}}, [r"1 of 4 classes have no training video \(d\)"]),
        ("abcd", {"train": {0, 1, 2}, "val": {3}, "test": {0, 3}},
         [r"1 of 4 classes have no training video \(d\)", r"1 classes have videos in val but none in training \(d\)",
          r"1 classes have videos in test but none in training \(d\)"]),
        ("0123", {"train": {1, 2, 3}, "val": {1}},
         [r"1 of 4 classes have no training video \(0\)",
          r"no list has a video of label 0 \(0\): .* subtract 1 and set MODEL\.NUM_CLASSES 3"]),
        ("0123", {"train": {1, 2, 3}, "val": {0}}, [r"1 of 4", r"1 classes have videos in val"]),
        ("0123456789ABCDEF", {"train": {0, 1}}, [r"14 of 16 classes .*\(2, 3, .*, B and 4 more\)"]),
    ],
)  # fmt: skip
def test_warnings(classes, used, expected):
    found = coverage_warnings(list(classes), used)
    assert len(found) == len(expected), found
    for pattern, line in zip(expected, found, strict=True):
        assert re.match(pattern, line), line


def test_files_that_training_shares_with_a_held_out_split_are_counted_whatever_their_spans():
    train = [Video("/v/a.mp4", 0, 0.0, 3.0), Video("/v/b.mp4", 1)]
    assert shared_warning(train, [Video("/v/c.mp4", 0)], "test") == ""
    found = shared_warning(train, [Video("/v/c.mp4", 0), Video("/v/a.mp4", 0, 2.0, 5.0)], "test")
    assert found.startswith("1 of 2 test rows are of files that training reads too, such as /v/a.mp4: ")


def write_lists(folder, **labels):
    for split, numbers in labels.items():
        for number in numbers:
            (folder / f"{split}_{number}.mp4").touch()
        rows = "".join(f"{split}_{number}.mp4,{number}\n" for number in numbers)
        (folder / f"{split}.csv").write_text(f"path,label\n{rows}")


def warnings_of(folder, *overrides, classes=4):
    cfg = load_config(None, ["DATA.PATH_TO_DATA_DIR", str(folder), "MODEL.NUM_CLASSES", str(classes), *overrides])
    names = load_classes(cfg)
    test_list = joined(folder, cfg.DATA.TEST_LIST) if cfg.TEST.ENABLE else ""
    return warnings_of_run(names, load_split(cfg, "train", names), load_split(cfg, "val", names), test_list)


def test_lists_of_a_run(tmp_path):
    write_lists(tmp_path, train=[0, 1, 2], val=[1], test=[3])
    learned, tested = warnings_of(tmp_path)
    assert "(3): they cannot be learned" in learned
    assert "in test but none in training (3)" in tested
    assert warnings_of(tmp_path, "TEST.ENABLE", "False") == [learned]
    (tmp_path / "test.csv").unlink()
    assert warnings_of(tmp_path) == [learned]
    write_lists(tmp_path, train=[0, 1, 2, 3], test=[3])
    assert warnings_of(tmp_path) == []
    with open(tmp_path / "test.csv", "a") as file:
        file.write("train_2.mp4,2\n")
    (line,) = warnings_of(tmp_path)
    assert line.startswith("1 of 2 test rows are of files that training reads too")


def test_training_and_the_check_warn(tmp_path):
    make_videos(tmp_path, count=4, num_classes=4)
    for split in ("train", "val", "test"):
        text = (tmp_path / f"{split}.csv").read_text()
        (tmp_path / f"{split}.csv").write_text(text.replace("0.mp4,0\n", ""))
    small = settings(tmp_path, tmp_path / "out", MODEL__NUM_CLASSES=4, TRAIN__BATCH_SIZE=2)
    result = run_net(["--dry-run", *small])
    assert result.returncode == 0, result.stderr
    for line in ("1 of 4 classes have no training video (class 0)", "no list has a video of label 0 (class 0)"):
        assert f"train.csv: {line}" in result.stderr
    common = ["--processes", 1, "--sheet", 0, "--out", tmp_path / "report"]
    for arguments in (
        ["--cfg", "tests/small.yaml", *small], [tmp_path / "train.csv"], [tmp_path / "val.csv", tmp_path / "train.csv"],
    ):  # fmt: skip
        result = call_tool("tools/check_dataset.py", *common, *arguments)
        assert "warning: 1 of 4 classes have no training video (class 0)" in result.stdout
        assert "warning: no list has a video of label 0 (class 0)" in result.stdout
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        assert len(report["summary"]["class_warnings"]) == 2


def row(split, label, bad=False):
    facts = FileReport(problems=[Problem("empty", "")] if bad else [])
    return ListedVideo(split, Video(f"{split}{label}.mp4", 0), label, facts)


def test_rows_without_a_config():
    both = [row("train", "a"), row("train", "b"), row("val", "a")]
    assert warnings_of_rows(both, []) == []
    assert "1 of 3 classes" in warnings_of_rows(both, ["a", "b", "c"])[0]
    assert "(b): those" in warnings_of_rows([row("train", "a"), row("train", "c"), row("val", "b")], [])[1]
    assert "(a): a model" in warnings_of_rows([row("train", "a"), row("train", "b", bad=True)], [])[0]
    assert "no list has a video of label 0" in warnings_of_rows([row("mine", "1"), row("mine", "2")], [])[1]
    assert warnings_of_rows([row("x", "a"), row("y", "b")], []) == []  # which is for training is not known
    assert warnings_of_rows([row("x", "")], []) == []


def test_classes_of_lists_and_folders(tmp_path):
    for name in ("train/a", "train/b", "val/c", "lists"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lists" / "classes.txt").write_text("x\na\n")
    inputs = [str(tmp_path / name) for name in ("train", "val", "lists/train.csv")]
    assert classes_of_inputs(inputs) == ["a", "b", "c", "x"]


def test_a_class_with_far_more_videos_than_another_is_named():
    assert imbalance_warning(["run", "jump"], [0] * 40 + [1] * 2) == ""
    line = imbalance_warning(["run", "jump"], [0] * 41 + [1] * 2)
    assert line.startswith("run has 41 training videos and jump has 2")
    assert "DATA.SAMPLER balanced" in line
