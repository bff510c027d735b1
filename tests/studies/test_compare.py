"""Runs side by side: what is averaged must be the same but for the seed."""

import json

import pytest

from lookupvit_video.config import load_config
from tests.small import call_tool, settings


def write_run(folder, seed, top1, videos=9, **changes):
    folder.mkdir(parents=True)
    cfg = load_config("tests/small.yaml", settings("data", folder, RNG_SEED=seed, **changes))
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "test_results.json").write_text(json.dumps({"top1": top1, "videos": videos, "views": "1x1"}))
    line = {"kind": "train", "step": 4, "step_time": 0.5, "data_time": 0.25}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def compare(*folders):
    return call_tool("tools/compare_runs.py", *folders)


def assert_one_line(done, *parts):
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_seeds_of_one_folder_make_one_line(tmp_path):
    done = compare(write_run(tmp_path / "a_b" / "0", 0, 40.0), write_run(tmp_path / "a_b" / "1", 1, 46.0, LOG_PERIOD=1),
                   write_run(tmp_path / "alone", 0, 50.0))  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| a b", "| alone"]
    assert lines[0].endswith("| 4 | 1.0 | **43.0** ± 4.2 |")
    assert lines[1].endswith("| **50.0** |")


def test_equal_names_in_different_places_stay_apart(tmp_path):
    runs = [write_run(tmp_path / study / "LoRA" / str(seed), seed, 10.0 * seed + extra, DATA__TRAIN_LIST=study + ".csv")
            for study, extra in (("motion", 0), ("digit", 50)) for seed in (0, 1)]  # fmt: skip
    done = compare(*runs)
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]] == ["| motion/LoRA", "| digit/LoRA"]
    assert ["**5.0**" in done.stdout, "**55.0**" in done.stdout] == [True, True]
    done = compare(write_run(tmp_path / "x" / "run", 0, 1.0), write_run(tmp_path / "y" / "run", 0, 3.0))
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]] == ["| x/run", "| y/run"]


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds(tmp_path):
    first = write_run(tmp_path / "a" / "0", 0, 40.0)
    other = write_run(tmp_path / "a" / "1", 1, 46.0, DATA__TRAIN_LIST="other.csv", SOLVER__MAX_EPOCH=3)
    assert_one_line(compare(first, other), f"{first} and {other} would be averaged",
                    "DATA.TRAIN_LIST 'train.csv' and 'other.csv'; SOLVER.MAX_EPOCH 2 and 3")  # fmt: skip
    fewer = write_run(tmp_path / "a" / "2", 2, 46.0, videos=8)
    assert_one_line(compare(first, fewer), "differ in videos 9 and 8")
    again = write_run(tmp_path / "a" / "3", 0, 46.0)
    assert_one_line(compare(first, again), f"{first} and {again} have the same RNG_SEED 0")
    assert_one_line(compare(first, first), f"{first}: this run is named twice")


@pytest.mark.parametrize("name", ["config.yaml", "test_results.json"])
def test_what_is_no_finished_run_gives_one_line(tmp_path, name):
    folder = write_run(tmp_path / "a", 0, 40.0)
    (folder / name).write_text("{")
    assert_one_line(compare(folder), f"{folder / name}")
    (folder / name).unlink()
    assert_one_line(compare(folder), f"{folder / name}: No such file", "give the OUTPUT_DIR of a run that was tested")
