"""Names of files and classes in any bytes, through all commands: what comes out is what went in."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest

from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes, load_split, read_class_list
from lookupvit_video.inference.batch import find_videos
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.log import record_bad_videos
from lookupvit_video.text import decode, open_text
from tests.small import ROOT, call_tool, run_command, run_net, settings
from tests.videos import write_video

LATIN, BROKEN, ASIAN = "caf\udce9", "na\nme \x1b[31m$x$ $y_", "跳 é"  # a Latin-1 disk; what a terminal obeys; UTF-8
CLASSES = sorted([LATIN, BROKEN, ASIAN])
LISTS = {"DATA__TRAIN_LIST": "train", "DATA__VAL_LIST": "val", "DATA__TEST_LIST": "val"}


def video_name(number):
    return f"{number}\udcfe\udcff\n,\x1b.mp4"


def make_folders(root, classes, name=video_name):
    """Class folders train and val; of each class one video in val is an error page."""
    for number, label in enumerate(classes):
        for split in ("train", "val"):
            (root / split / label).mkdir(parents=True)
            for index in range(2):
                path = root / split / label / name(index)
                if (split, index) == ("val", 1):
                    path.write_bytes(b"<html>not found</html>")
                else:
                    write_video(path, frames=8, size=(48, 32), first_number=100 * number + index)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(data, output, what the commands said): trained, tested, and used, all under names that are not UTF-8."""
    folder = tmp_path_factory.mktemp("names")
    data, output = folder / "data\udcff", folder / "out\udcfd"
    make_folders(data, CLASSES)
    changes = {**LISTS, "SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "DATA__MAX_BAD_FRACTION": 0.5}
    said = {"run_net": run_net(settings(data, output, DATA__INDEX_CACHE=output / "index", **changes))}
    model = output / "model.pt"
    video = data / "train" / LATIN / video_name(0)
    check = ["--processes", 1, "--out", output / "check", data / "train", data / "val"]
    said["check_dataset"] = call_tool("tools/check_dataset.py", *check)
    predict = [data / "val", "--workers", 0, "--json", output / "a.jsonl", "--csv", output / "a.csv"]
    said["predict"] = call_tool("tools/predict.py", "--checkpoint", model, *predict, "--draw", output / "drawn")
    lines = ["--json", output / "t.json", "--png", output / "t.png", "--annotate", output / "t.mp4"]
    said["timeline"] = call_tool("tools/timeline.py", "--checkpoint", model, video, *lines)
    said["explain"] = call_tool("tools/explain.py", "--checkpoint", model, video, "--out", output / "explained")
    return data, output, said


def table(path):
    with open_text(path) as file:
        return list(csv.DictReader(file))


def test_every_command_ends_as_it_would_with_other_names(run):
    _, _, said = run
    codes = {name: result.returncode for name, result in said.items()}
    assert codes == {"run_net": 0, "check_dataset": 1, "predict": 1, "timeline": 0, "explain": 0}, said


def test_no_terminal_is_steered_by_a_name(run):
    _, _, said = run
    for name, result in said.items():
        assert "\x1b" not in result.stdout + result.stderr, name
    assert [line for line in said["run_net"].stderr.splitlines() if line.startswith("me ")] == []  # after "na\n"


def test_tables_of_a_run_name_the_very_files(run):
    data, output, _ = run
    expected = {str(data / "val" / label / video_name(index)) for label in CLASSES for index in range(2)}
    bad = {path for path in expected if path.endswith(video_name(1))}
    rows = table(output / "test_predictions.csv")
    assert {row["path"] for row in rows} == expected
    assert {row["label"] for row in rows} == set(CLASSES)
    assert {row["path"] for row in table(output / "bad_videos.csv")} == bad
    results = json.loads((output / "test_results.json").read_bytes())
    assert {row["path"] for row in results["bad_videos"]} == bad
    assert list(results["per_class"]) == CLASSES
    assert os.fsencode(min(expected)) in b"".join((output / "test_predictions.csv").read_bytes().split(b'"'))


def test_reports_of_the_check_name_the_very_files(run):
    data, output, _ = run
    expected = {str(data / s / c / video_name(i)) for s in ("train", "val") for c in CLASSES for i in range(2)}
    assert {row["path"] for row in table(output / "check" / "report.csv")} == expected
    report = json.loads((output / "check" / "report.json").read_bytes())
    assert {row["path"] for row in report["files"]} == expected
    changes = {**LISTS, "DATA__VAL_LIST": "train", "DATA__TRAIN_LIST": "val"}
    cfg = load_config(None, settings(data, output, **changes, DATA__SKIP_LIST=output / "check" / "bad_videos.csv"))
    kept = load_split(cfg, "train", load_classes(cfg))
    assert {video.path for video in kept} == {str(data / "val" / c / video_name(0)) for c in CLASSES}


def test_answers_name_the_very_files_and_are_found_again(run):
    data, output, _ = run
    good = {str(data / "val" / label / video_name(0)) for label in CLASSES}
    rows = [json.loads(line) for line in (output / "a.jsonl").read_bytes().splitlines()]
    assert {row["path"] for row in rows if not row.get("error")} == good
    assert {row["path"] for row in table(output / "a.csv") if not row["error"]} == good
    arguments = [data / "val", "--workers", 0, "--resume"]
    for option in ("--json", "--csv"):
        again = call_tool(
            "tools/predict.py", "--checkpoint", output / "model.pt", *arguments, option,
            output / f"a.{'csv' if option == '--csv' else 'jsonl'}",
        )  # fmt: skip
        assert "3 of 6 videos have an answer already" in again.stderr
    assert len(list((output / "drawn").iterdir())) == 3
    assert json.loads((output / "t.json").read_bytes())["path"] == str(data / "train" / LATIN / video_name(0))
    assert json.loads((output / "explained" / "explained.json").read_bytes())["videos"][0]["path"].endswith(
        video_name(0)
    )


def test_a_checkpoint_keeps_the_names(run, tmp_path):
    data, output, _ = run
    checkpoint = load_checkpoint(output / "model.pt")
    assert checkpoint.classes == CLASSES
    assert data / "x" == Path(checkpoint.config.DATA.PATH_TO_DATA_DIR) / "x"
    folder = tmp_path / "hub\udcff"
    model = load_model(output / "model.pt")
    model.save_pretrained(folder)
    assert load_model(folder).classes == CLASSES
    assert load_config(output / "config.yaml") == load_config(output / "config.yaml", [])
    assert load_config(output / "config.yaml").DATA.PATH_TO_DATA_DIR == str(data)


def test_answers_on_standard_output_are_the_same_bytes(run):
    data, output, _ = run
    paths = [str(data / "val" / label / video_name(0)) for label in CLASSES]
    command = [sys.executable, "tools/predict.py", "--checkpoint", output / "model.pt", "-", "--workers", 0]
    pipe = output / "names"
    pipe.write_bytes(b"\0".join(map(os.fsencode, paths)))
    with pipe.open("rb") as names:
        result = run_command([*command, "--csv", "-"], variables={"PYTHONIOENCODING": "ascii"}, stdin=names, text=False)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(decode(result.stdout).splitlines(keepends=True)))
    assert [row["path"] for row in rows] == paths
    assert {row["label_1"] for row in rows} <= set(CLASSES)


def test_a_bad_video_is_appended_under_its_name(tmp_path):
    for number in range(2):
        record_bad_videos(tmp_path, [("train", f"/{number}\udcff\r\n.mp4", "gone")])
    assert [row["path"] for row in table(tmp_path / "bad_videos.csv")] == ["/0\udcff\r\n.mp4", "/1\udcff\r\n.mp4"]


def test_lists_of_any_bytes(tmp_path):
    (tmp_path / "a\udcff.mp4").touch()
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\nb\n")
    assert read_class_list(tmp_path / "classes.txt") == [LATIN, "b"]
    (tmp_path / "list.txt").write_bytes(b"a\xff.mp4\n")
    assert find_videos([], [str(tmp_path / "list.txt")]) == ([str(tmp_path / "a\udcff.mp4")], [])
    for text in (b"path,label\na\xff.mp4,caf\xe9\n", b"a\xff.mp4 caf\xe9\n"):
        (tmp_path / "train.csv").write_bytes(text)
        cfg = load_config(None, ["DATA.PATH_TO_DATA_DIR", str(tmp_path), "MODEL.NUM_CLASSES", "2"])
        (video,) = load_split(cfg, "train", load_classes(cfg))
        assert (video.path, video.label) == (str(tmp_path / "a\udcff.mp4"), 0)


def test_a_list_in_another_encoding_than_the_disk_is_explained(tmp_path):
    (tmp_path / "é.mp4").touch()
    (tmp_path / "classes.txt").write_text("é\n", encoding="utf-8")
    cfg = load_config(None, ["DATA.PATH_TO_DATA_DIR", str(tmp_path), "MODEL.NUM_CLASSES", "1"])
    (tmp_path / "train.csv").write_bytes(b"path,label\n\xe9.mp4,0\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: video .*not UTF-8"):
        load_split(cfg, "train", ["é"])
    (tmp_path / "train.csv").write_bytes(b"path,label\n\xc3\xa9.mp4,\xe9\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: label .* save the list as UTF-8"):
        load_split(cfg, "train", ["é"])


ASCII = """
import runpy, sys
for arguments in ARGUMENTS:
    sys.argv = list(arguments)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        print("code", arguments[0], end.code)
"""


def test_a_forced_ascii_locale(tmp_path):
    classes = ["café", "跳び", "naïve"]
    make_folders(tmp_path / "ü", classes, name=lambda number: f"ß{number}.mp4")
    output = tmp_path / "ö"
    changes = {**LISTS, "SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "DATA__MAX_BAD_FRACTION": 0.5}
    commands = [
        ["tools/run_net.py", "--cfg", "tests/small.yaml", *settings(tmp_path / "ü", output, **changes)],
        ["tools/predict.py", "--checkpoint", str(output / "model.pt"), str(tmp_path / "ü" / "val"), "--workers", "0"],
    ]
    script = tmp_path / "script.py"
    script.write_text(ASCII.replace("ARGUMENTS", ascii(commands)))
    variables = {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }  # fmt: skip
    result = run_command([sys.executable, script], variables=variables)
    assert "Traceback" not in result.stderr, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("code")] == [
        "code tools/run_net.py 0",
        "code tools/predict.py 1",  # the error pages
    ]
    assert {row["label"] for row in table(output / "test_predictions.csv")} == set(classes)
    assert "caf\\xe9" in result.stdout  # as predict.py writes it
    assert (output / "confusion_matrix.png").is_file()
