"""Studies of a few small runs: the table, and that a study can be stopped, started again and survive a failure."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lookupvit_video.config import load_config
from tests.small import SMALL, call_tool, make_videos, run_tool, settings, started

STUDY = "tools/study.py"
GOOD = {"lookup": {"TEST.GRIDS": [[1, 1, 1]]}, "dense vit": {"MODEL.ARCH": "vit"}}


def write_study(path, data, rows, **changes):
    settings = {**SMALL, "DATA.PATH_TO_DATA_DIR": str(data), "SOLVER.MAX_EPOCH": 1, "SOLVER.WARMUP_EPOCHS": 0}
    study = {"configs": {"small": "tests/small.yaml"}, "seeds": [3], "settings": settings, "rows": rows, **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in study.items() if value is not ...}, sort_keys=False))


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The folder of a study with two good runs and one that fails, and what the command said."""
    folder = tmp_path_factory.mktemp("study")
    make_videos(folder / "data")
    write_study(folder / "study.yaml", folder / "data", {"broken": {"DATA.TRAIN_LIST": "none.csv"}, **GOOD})
    return folder, run_tool(STUDY, "--study", folder / "study.yaml", "--out", folder / "out")


def result_of(folder, row):
    return json.loads((folder / "out" / "small" / row / "3" / "test_results.json").read_text())


def test_a_run_that_fails_leaves_the_others_and_exit_code_1(studied):
    folder, done = studied
    assert done.returncode == 1, done.stderr
    assert "3 runs to do, 1 at a time" in done.stdout
    failed = [line for line in done.stdout.splitlines() if "failed" in line]
    assert len(failed) == 1
    assert failed[0].startswith(f"[1/3] failed: {folder / 'out' / 'small' / 'broken' / '3'}: ")
    assert "none.csv" in failed[0]
    for row in ("lookup", "dense_vit"):
        assert f"{folder / 'out' / 'small' / row / '3'}: {result_of(folder, row)['top1']:.2f} %" in done.stdout
        assert (folder / "out" / "small" / row / "3" / "model.pt").exists()
        assert not list((folder / "out" / "small" / row / "3" / "checkpoints").iterdir())
    assert not (folder / "out" / "small" / "broken" / "3" / "model.pt").exists()


def test_the_table_has_a_line_for_each_row_and_grid(studied):
    folder, done = studied
    lookup, dense = result_of(folder, "lookup"), result_of(folder, "dense_vit")
    expected = [("lookup", line["grid"], line, lookup) for line in lookup["grids"]] + [("dense vit", "", dense, dense)]
    assert [grid for _, grid, _, _ in expected] == ["1x1x1", "1x2x2", ""]
    assert json.loads((folder / "out" / "table.json").read_text()) == [
        {"config": "small", "row": row, "grid": grid, "gmacs": line["gmacs_per_view"],
         "parameters": result["parameters"], "videos": 9, "top1": {"3": line["top1"]}}
        for row, grid, line, result in expected
    ]  # fmt: skip
    table = (folder / "out" / "table.md").read_text()
    assert table in done.stdout
    for text, (row, grid, line, result) in zip(table.splitlines()[2:], expected, strict=True):
        assert text == (
            f"| small | {row} | {grid} | {1000 * line['gmacs_per_view']:.2f} | {result['parameters'] / 1000:.0f} "
            f"| **{line['top1']:.1f}** | {line['top1']:.1f} |"
        )


def test_a_second_start_does_what_is_left_and_nothing_else(studied):
    folder, _ = studied
    write_study(folder / "good.yaml", folder / "data", GOOD)
    files = sorted((folder / "out" / "small").rglob("*"))
    before = [(path, path.stat().st_mtime_ns) for path in files]
    table = (folder / "out" / "table.md").read_text()
    (folder / "out" / "table.md").unlink()
    done = call_tool(STUDY, "--study", folder / "good.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "0 runs to do" in done.stdout
    assert (folder / "out" / "table.md").read_text() == table
    again = call_tool(STUDY, "--study", folder / "study.yaml", "--out", folder / "out", "--table-only")
    assert again.returncode == 0, again.stderr
    assert (folder / "out" / "table.md").read_text() == table
    assert [(path, path.stat().st_mtime_ns) for path in sorted((folder / "out" / "small").rglob("*"))] == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads Linux' list of child processes")
def test_no_run_goes_on_alone_after_a_kill(tmp_path):
    make_videos(tmp_path / "data")
    write_study(tmp_path / "study.yaml", tmp_path / "data", {"long": {"SOLVER.MAX_EPOCH": 10000}})
    command = [sys.executable, STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(command, 400, **silent) as study:
        until(lambda: (tmp_path / "out" / "small" / "long" / "3" / "log.jsonl").exists(), 300)
        children = Path(f"/proc/{study.pid}/task/{study.pid}/children").read_text().split()
        assert children
        study.kill()
        study.wait(60)
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 60)


def until(holds, seconds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_table_without_any_run(tmp_path):
    write_study(tmp_path / "study.yaml", tmp_path, GOOD)
    done = call_tool(STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--table-only")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "table.md").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == []


def test_seeds_are_put_together_as_mean_and_deviation(tmp_path):
    write_study(tmp_path / "study.yaml", tmp_path, {"a b": None}, seeds=[0, 1, 5])
    for seed, top1 in ((0, 40.0), (5, 46.0)):  # seed 1 is not done yet
        folder = tmp_path / "out" / "small" / "a_b" / str(seed)
        folder.mkdir(parents=True)
        result = {"top1": top1, "gmacs_per_view": 0.00125, "parameters": 12345, "videos": 50}
        (folder / "test_results.json").write_text(json.dumps(result))
    done = call_tool(STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--table-only")
    assert done.returncode == 0, done.stderr
    assert "| small | a b |  | 1.25 | 12 | **43.0** ± 4.2 | 40.0, 46.0 |" in done.stdout
    (entry,) = json.loads((tmp_path / "out" / "table.json").read_text())
    assert entry["top1"] == {"0": 40.0, "5": 46.0}


@pytest.mark.parametrize(("rows", "changes", "parts"), [
    ({**GOOD, "wrong": {"MODEL.COMPRESED_GRID": [1, 1, 1]}}, {}, ["did you mean MODEL.COMPRESSED_GRID"]),
    ({**GOOD, "wrong": {"MODEL.COMPRESSED_GRID": [9, 9, 9]}}, {}, ["MODEL.COMPRESSED_GRID", "is larger than"]),
    (GOOD, {"configs": {"small": "tests/none.yaml"}}, ["none.yaml", "No such file"]),
    (GOOD, {"seeds": ["first"]}, ["study.yaml", "seeds must be a list", "first"]),
    (GOOD, {"seeds": ...}, ["study.yaml", "configs, seeds and rows"]),
    ({False: {}}, {}, ["study.yaml, line", "on, off, yes or no"]),
    (["lookup"], {}, ["study.yaml", "rows", "lines 'name: ...'"]),
    ({"a b": {}, "a_b": {}}, {}, ["study.yaml", "share the folder a_b"]),
    (GOOD, {"MODEL.DEPTH": 1}, ["study.yaml: unknown key MODEL.DEPTH; settings for all rows go below 'settings:'"]),
    (GOOD, {"SOLVER": {"MAX_EPOCH": 1}}, ["study.yaml: unknown key SOLVER; settings for all rows go below"]),
    (GOOD, {"setings": {}}, ["study.yaml: unknown key setings; a study has the keys configs, seeds, rows, settings"]),
    ({**GOOD, "more": {"settings": {"MODEL.DEPTH": 1}}}, {}, ["row 'more': unknown key settings; write keys"]),
    ({**GOOD, "more": "MODEL.DEPTH 1"}, {}, ["study.yaml: row 'more' holds lines 'KEY: value'; got 'MODEL.DEPTH 1'"]),
    ({**GOOD, "more": {"RNG_SEED": 1}}, {}, ["study.yaml: row 'more': RNG_SEED is set by the study itself"]),
    (GOOD, {"settings": ["MODEL.DEPTH"]}, ["study.yaml: settings holds lines 'KEY: value'; got ['MODEL.DEPTH']"]),
    (GOOD, {"settings": {"MODEL.DEPHT": 1}}, ["study.yaml: config 'small', row 'lookup'", "did you mean MODEL.DEPTH"]),
    (GOOD, {"seeds": [0, 0]}, ["study.yaml: seeds: 0 is named twice"]),
    (GOOD, {"seeds": 3}, ["study.yaml: seeds must be a list of integers"]),
    ({}, {}, ["study.yaml: rows holds lines 'name: ...', at least one"]),
    ({"a/b": {}}, {}, ["study.yaml: rows: 'a/b' cannot be the name of a folder"]),
])  # fmt: skip
def test_mistakes_are_told_before_any_work(tmp_path, rows, changes, parts):
    write_study(tmp_path / "study.yaml", tmp_path, rows, **changes)
    done = call_tool(STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert_one_line(done, *parts)
    assert not (tmp_path / "out").exists()


def test_a_study_that_cannot_be_read_gives_one_line(tmp_path):
    assert_one_line(call_tool(STUDY, "--study", tmp_path / "none.yaml"), "none.yaml", "No such file")
    (tmp_path / "torn.yaml").write_text("rows: {a: [1\nseeds: [\n")
    assert_one_line(call_tool(STUDY, "--study", tmp_path / "torn.yaml"), "torn.yaml, line 2")


def test_a_row_that_stands_twice_is_not_lost(tmp_path):
    write_study(tmp_path / "study.yaml", tmp_path, {"same": None})
    with (tmp_path / "study.yaml").open("a") as file:
        file.write("  same: {MODEL.ARCH: vit}\n")
    done = call_tool(STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert_one_line(done, "study.yaml, line ", "key same is there twice")


def test_a_result_of_other_settings_is_not_taken_for_a_rows(tmp_path):
    folder = tmp_path / "out" / "small" / "deep" / "3"
    folder.mkdir(parents=True)
    write_study(tmp_path / "study.yaml", tmp_path, {"deep": {"MODEL.DEPTH": 3}})
    result = {"top1": 40.0, "gmacs_per_view": 0.00125, "parameters": 12345, "videos": 50}
    (folder / "test_results.json").write_text(json.dumps(result))
    changes = {"SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "RNG_SEED": 3}
    for depth, code in ((3, 0), (2, 2)):
        cfg = load_config("tests/small.yaml", settings(tmp_path, folder, **changes, MODEL__DEPTH=depth, LOG_PERIOD=7))
        (folder / "config.yaml").write_text(cfg.dump())
        done = call_tool(STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--table-only")
        assert done.returncode == code, done.stderr
    assert_one_line(done, f"{folder}: this run was done with other settings (MODEL.DEPTH 2, now 3); remove the folder")


def test_ctrl_c_saves_the_runs_and_two_studies_keep_apart(tmp_path):
    make_videos(tmp_path / "data")
    write_study(tmp_path / "study.yaml", tmp_path / "data", {"long": {"SOLVER.MAX_EPOCH": 10000}, "next": None})
    command = [sys.executable, STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out"]
    folder = tmp_path / "out" / "small" / "long" / "3"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, 400, **pipes) as process:
        until(lambda: (folder / "log.jsonl").exists(), 300)
        second = call_tool(*command[1:])
        assert_one_line(
            second, f"--out {tmp_path / 'out'}: process {process.pid} on ", "choose another --out or stop it"
        )
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=100)
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == ("study.py: stopped by SIGINT; rerun the command to resume from what was saved")
    assert "Traceback" not in told
    assert list((folder / "checkpoints").glob("step_*.pt"))
    assert not (tmp_path / "out" / "small" / "next").exists()


def assert_one_line(done, *parts):
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("study.py: error: ")
    for part in parts:
        assert part in done.stderr


def test_settings_may_be_left_out(tmp_path):
    write_study(tmp_path / "study.yaml", tmp_path, {"as it is": None}, settings=None)
    done = call_tool(STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--table-only")
    assert done.returncode == 0, done.stderr


def test_settings_of_the_command_stand_above_the_studys_and_below_a_rows(tmp_path):
    make_videos(tmp_path / "data")
    write_study(tmp_path / "study.yaml", tmp_path, {"common": None, "own": {"MODEL.DROP_PATH": 0.3}})
    command = (STUDY, "--study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    given = ("DATA.PATH_TO_DATA_DIR", tmp_path / "data", "MODEL.DROP_PATH", 0.1)
    done = call_tool(*command, *given)
    assert done.returncode == 0, done.stderr
    for row, rate in {"common": 0.1, "own": 0.3}.items():
        written = load_config(tmp_path / "out" / "small" / row / "3" / "config.yaml")
        assert (str(tmp_path / "data"), rate) == (written.DATA.PATH_TO_DATA_DIR, written.MODEL.DROP_PATH)
    assert_one_line(call_tool(*command, "MODEL.DEPHT", 1), "row 'common'", "did you mean MODEL.DEPTH")
