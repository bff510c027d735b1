"""calibrate, check and features in several processes: the results of one process, each video once."""

import csv
import json
import shutil

import pytest

from lookupvit_video.inference.features.store import load_features
from tests.commands.inference.test_features import folder as clips  # noqa: F401 - a fixture
from tests.commands.test_calibrate import folder as calibrated  # noqa: F401 - a fixture
from tests.ranks import call_ranks


def assert_all_ended(done, code=0):
    assert [one.returncode for one in done] == [code] * len(done), "\n".join(one.stderr for one in done)


@pytest.fixture(scope="module")
def calibrations(calibrated, tmp_path_factory):  # noqa: F811
    """What calibrate writes, by the number of processes; one video of eleven cannot be read."""
    (calibrated / "bad.mp4").write_text("hello")
    rows = (calibrated / "val.csv").read_text() + "bad.mp4,1\n"
    (calibrated / "eleven.csv").write_text(rows)

    def run(size):
        out = tmp_path_factory.mktemp(f"processes_{size}")
        shutil.copy(calibrated / "model.pt", out)
        done = call_ranks(size, "tools/calibrate.py", "--checkpoint", out / "model.pt", "--workers", 0, "--views", 2,
                          "--list", calibrated / "eleven.csv", "--check-list", calibrated / "test.csv")  # fmt: skip
        assert_all_ended(done)
        assert sum("bad.mp4 is left out" in one.stderr for one in done) == 1
        return [json.loads((out / f"model.{name}.json").read_text()) for name in ("calibration", "adaptive")]

    return run


def test_calibrate_finds_the_same_with_any_number_of_processes(calibrations):
    alone = calibrations(1)
    for size in (2, 3):
        assert calibrations(size) == alone


def checked(size, out, *arguments):
    """What check reports: without the order in which files are listed, which is that of the lists."""
    done = call_ranks(size, "tools/check_dataset.py", *arguments, "--processes", 1, "--sheet", 0, "--out", out)
    assert [one.returncode for one in done] == [1] + [0] * (size - 1)  # the first one reports
    assert done[0].stdout, done[0].stderr
    assert [bool(one.stdout) for one in done] == [True] + [False] * (size - 1)
    report = json.loads((out / "report.json").read_text())
    report["page"] = (out / "report.html").read_text()  # has what --model found
    with (out / "report.csv").open(newline="") as file:
        return report, list(csv.DictReader(file)), done[0].stdout.replace(str(out), "OUT")


def test_check_reports_the_same_with_any_number_of_processes(calibrated, tmp_path):  # noqa: F811
    (calibrated / "bad.mp4").write_text("hello")
    (calibrated / "eleven.csv").write_text((calibrated / "val.csv").read_text() + "bad.mp4,1\n")
    what = [calibrated / "eleven.csv", "--duplicates", "--model", calibrated / "model.pt"]
    alone = checked(1, tmp_path / "1", *what)
    assert len(alone[1]) == 11
    for size in (2, 3):
        assert checked(size, tmp_path / str(size), *what) == alone


def features(clips, size, out, *arguments):  # noqa: F811
    return call_ranks(size, "tools/features.py", "--checkpoint", clips / "model.pt", "--workers", 0, "--batch-size", 2,
                      "--out", out, *arguments)  # fmt: skip


@pytest.fixture(scope="module")
def alone(clips, tmp_path_factory):  # noqa: F811
    """The features of six videos, by one process; one more cannot be read."""
    out = tmp_path_factory.mktemp("alone") / "f.npy"
    assert_all_ended(call_ranks(1, "tools/features.py", "--checkpoint", clips / "model.pt", "--workers", 0,
                                "--batch-size", 2, "--out", out, clips / "clips"), 1)  # fmt: skip
    return out


@pytest.mark.parametrize("size", [2, 3])
def test_features_are_one_file_and_the_same_bytes(clips, alone, tmp_path, size):  # noqa: F811
    out = tmp_path / "f.npy"
    done = features(clips, size, out, clips / "clips", "--query", alone, "--json", tmp_path / "f.jsonl")
    assert_all_ended(done, 1)
    assert "6 videos with features, 1 failed" in done[0].stderr
    assert sum("bad.mp4: is text" in one.stderr for one in done) == 1
    assert out.read_bytes() == alone.read_bytes()
    assert (tmp_path / "f.npy.json").read_text() == alone.with_name("f.npy.json").read_text()
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == sorted(load_features(alone).paths)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.jsonl", "f.npy", "f.npy.json"]


def test_another_number_of_processes_adds_the_features_that_are_missing(clips, alone, tmp_path):  # noqa: F811
    out = tmp_path / "f.npy"
    first = [clips / "clips" / f"{number}.mp4" for number in range(4)]
    assert_all_ended(features(clips, 3, out, *first))
    done = features(clips, 2, out, clips / "clips", "--resume")
    assert_all_ended(done, 1)
    assert "4 of 7 videos have features already" in done[0].stderr
    assert out.read_bytes() == alone.read_bytes()


def test_several_processes_refuse_what_they_cannot_share(clips, tmp_path):  # noqa: F811
    for done in features(clips, 2, tmp_path / "f.npy", "-"):
        assert done.returncode == 2
        assert "2 processes cannot share standard input" in done.stderr
