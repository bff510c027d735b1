"""Settings on the command line in any place and form, and "~" in paths."""

import argparse
import os
from pathlib import Path

import pytest

from lookupvit_video import config
from lookupvit_video.arguments import expand_arguments, expand_user, parse_with_settings, setting_pairs
from lookupvit_video.config import get_key, load_config
from tests.small import call_tool, make_videos, settings

KEYS = {"RNG_SEED", "OUTPUT_DIR", "DATA.MEAN"}

PATHS = [name for name, key in config.KEYS.items() if key.is_path]


def parser():
    made = argparse.ArgumentParser(prog="tool.py")
    made.add_argument("--cfg")
    made.add_argument("--dry-run", action="store_true")
    made.add_argument("--grids", nargs="+", default=[])
    made.add_argument("--frames", nargs="+", type=int, default=[])
    made.add_argument("overrides", nargs="*")
    return made


@pytest.mark.parametrize(
    "line",
    [
        "--cfg c --dry-run MODEL.ARCH 1 RNG_SEED 2",
        "MODEL.ARCH 1 RNG_SEED 2 --cfg c --dry-run",
        "--cfg c MODEL.ARCH 1 --dry-run RNG_SEED 2",
        "MODEL.ARCH 1 --dry-run RNG_SEED 2 --cfg c",
        "--dry-run --cfg c -- MODEL.ARCH 1 RNG_SEED 2",
        "--cfg c -- MODEL.ARCH 1 RNG_SEED 2 --dry-run",
        "--cfg=c --MODEL.ARCH 1 --dry-run --RNG_SEED 2",
    ],
)
def test_settings_stand_anywhere(line):
    found = parse_with_settings(parser(), arguments=line.split())
    assert (found.cfg, found.dry_run, found.overrides) == ("c", True, ["MODEL.ARCH", "1", "RNG_SEED", "2"])


@pytest.mark.parametrize(
    "line",
    [
        "--grids 2x7x7 4x7x7 --frames 8 -16 A.B 1 --cfg C.D E_F=2",
        "--grids 2x7x7 4x7x7 A.B 1 --frames 8 -16 E_F=2 --cfg C.D",
        "A.B 1 --grids 2x7x7 4x7x7 E_F=2 --cfg C.D --frames 8 -16",
        "--cfg=C.D A.B 1 --frames 8 -16 E_F=2 --grids 2x7x7 4x7x7",
        "--frames 8 -16 --dry-run A.B 1 --grids 2x7x7 4x7x7 E_F=2 --cfg C.D",
    ],
)
def test_values_of_an_option_end_where_settings_begin(line):
    found = parse_with_settings(parser(), arguments=line.split())
    assert found.cfg == "C.D"  # its own value, whatever it looks like
    assert found.grids == ["2x7x7", "4x7x7"]
    assert found.frames == [8, -16]
    assert found.overrides == ["A.B", "1", "E_F=2"]


def test_a_dash_alone_is_a_value():
    found = parse_with_settings(parser(), arguments="A.LIST - --cfg - --frames 3 B.LIST -".split())
    assert (found.cfg, found.frames, found.overrides) == ("-", [3], ["A.LIST", "-", "B.LIST", "-"])


def test_the_last_of_two_settings_is_the_last():
    found = parse_with_settings(parser(), arguments="A.B 1 --dry-run A.B 2 --frames 3 A.B 4 --cfg c A.B 5".split())
    assert found.overrides == "A.B 1 A.B 2 A.B 4 A.B 5".split()


def test_negative_values_are_values():
    found = parse_with_settings(parser(), arguments="--cfg c A -1e-4 --dry-run B -2 C -.5 D -inf".split())
    assert found.overrides == "A -1e-4 B -2 C -.5 D -inf".split()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--dryrun", "unknown option --dryrun; did you mean --dry-run?"),
        ("A 1 --dryrun", "unknown option --dryrun; did you mean --dry-run?"),
        ("--lr 0.1", "unknown option --lr; settings are written KEY VALUE or KEY=VALUE, such as SOLVER.BASE_LR 1e-4"),
        ("-x", "unknown option -x; settings are written KEY VALUE"),
    ],
)
def test_unknown_options_are_named(line, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_with_settings(parser(), arguments=line.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["RNG_SEED", "1", "OUTPUT_DIR", "a=b"], [("RNG_SEED", "1"), ("OUTPUT_DIR", "a=b")]),
        (["RNG_SEED=1", "OUTPUT_DIR=a=b"], [("RNG_SEED", "1"), ("OUTPUT_DIR", "a=b")]),
        (["OUTPUT_DIR=", "--RNG_SEED=1", "--DATA.MEAN", "[1]"],
         [("OUTPUT_DIR", ""), ("RNG_SEED", "1"), ("DATA.MEAN", "[1]")]),
        (["OUTPUT_DIR", "a b = c", "OUTPUT_DIR", ""], [("OUTPUT_DIR", "a b = c"), ("OUTPUT_DIR", "")]),
    ],
)  # fmt: skip
def test_pairs(words, pairs):
    assert setting_pairs(words, KEYS) == pairs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RNG_SEED"], "'RNG_SEED' has no value"),
        (["RNG_SEED", "OUTPUT_DIR", "a"], "RNG_SEED has no value; OUTPUT_DIR after it is a key"),
        (["RNG_SEED", "OUTPUT_DIR=a"], "RNG_SEED has no value; OUTPUT_DIR after it is a key"),
        (["RNG_SEED", "=", "1"], "write RNG_SEED=VALUE without spaces"),
        (["RNG_SEED", "=1"], "write RNG_SEED=VALUE without spaces"),
        (["OUTPUT_DIR=", "a/b"], "'a/b' is not a key; settings are written KEY VALUE or KEY=VALUE"),
        (["RNG_SEED", "1", "--dry-run"], "'--dry-run' is not a key"),
        (["data.mean", "[1]"], "unknown key data.mean; did you mean DATA.MEAN?"),
        (["data.mean=[1]"], "unknown key data.mean; did you mean DATA.MEAN?"),
    ],
)
def test_mistakes_in_pairs(words, message):
    with pytest.raises(ValueError, match="command line") as caught:
        setting_pairs(words, KEYS)
    assert message in str(caught.value)


# Home folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_in_every_path_of_a_config(home, tmp_path):
    names = PATHS
    lines = {name: f"~/{number}" for number, name in enumerate(names)}
    cfg = load_config(None, [word for pair in lines.items() for word in pair])
    assert [get_key(cfg, name) for name in names] == [str(home / str(number)) for number in range(len(names))]
    (home / "base.yaml").write_text("OUTPUT_DIR: ~/runs/x\nDATA: {PATH_TO_DATA_DIR: ~root/data}\n")
    (tmp_path / "run.yaml").write_text("_BASE_: ~/base.yaml\nMODEL: {INIT_FROM: '~'}\n")
    cfg = load_config("~/run.yaml")
    assert cfg.OUTPUT_DIR == str(home / "runs" / "x")
    assert cfg.DATA.PATH_TO_DATA_DIR == os.path.expanduser("~root/data") != "~root/data"
    assert cfg.MODEL.INIT_FROM == str(home)


def test_every_key_with_free_text_is_declared_as_a_path():
    free = [name for name, key in config.KEYS.items() if isinstance(key.default, str) and not key.choices]
    assert set(free) - {"MODEL.VARIANT", "TRAIN.BEST_METRIC", "AUTO.GROUP_BY"} == set(PATHS)


def test_an_unknown_user_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^OUTPUT_DIR: '~nobody0/x': there is no user 'nobody0'; .* write \./~nobody0/x"
    ):
        load_config(None, ["OUTPUT_DIR", "~nobody0/x"])
    Path("~nobody0").mkdir()
    assert expand_user("~nobody0/x") == "~nobody0/x"  # a folder of that very name
    assert expand_user("./~/x") == "./~/x"
    assert expand_user("a~b") == "a~b"


def test_home_where_the_shell_does_not_expand_it(home):
    words = ["--out=~/x", "KEY=~/x", "--DATA.PATH=~", "~/a/*.mp4", "a=~b", "x~", "--out", "-"]
    assert expand_arguments(words) == [
        f"--out={home}/x", f"KEY={home}/x", f"--DATA.PATH={home}", f"{home}/a/*.mp4", "a=~b", "x~", "--out", "-",
    ]  # fmt: skip


def test_commands_take_settings_anywhere_and_write_to_the_home_folder(home, monkeypatch):
    make_videos(home / "data", count=4)
    small = settings("~/data", "~/out")
    result = call_tool("tools/run_net.py", *small, "--dry-run", "RNG_SEED=3", "--cfg", "tests/small.yaml")
    assert result.returncode == 0, result.stderr
    assert "nothing was written" in result.stdout
    result = call_tool(
        "tools/flops.py", *small, "--cfg", "tests/small.yaml", "--no-measure", "--json=~/f.json", "RNG_SEED=3"
    )
    assert result.returncode == 0, result.stderr
    assert (home / "f.json").is_file()
    check = ["--processes", 1, "--sheet", 0, "--out=~/check"]
    result = call_tool("tools/check_dataset.py", "--cfg", "tests/small.yaml", *small, "--split", "train", *check)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (home / "check" / "report.json").is_file()
    result = call_tool("tools/benchmark.py", "loader", "--bogus", "RNG_SEED", 3)
    assert result.returncode == 2
    assert "unknown option --bogus" in result.stderr
    result = call_tool("tools/benchmark.py", "model", "RNG_SEED", 3)
    assert "unrecognized arguments: RNG_SEED 3" in result.stderr
