"""The command `lookupvit`: help without heavy imports, every command with an example, one line for mistakes."""

import json
import re
import sys

import pytest

from lookupvit_video.__main__ import COMMANDS
from tests.small import ROOT, run_command

NESTED = [("benchmark", "loader"), ("benchmark", "model"), ("benchmark", "block"),
          ("benchmark", "end-to-end"), ("benchmark", "compare"), ("benchmark", "shards"), ("prepare", "kinetics"),
          ("prepare", "ssv2"), ("prepare", "moving-digits"), ("prepare", "subset")]  # fmt: skip
HELP = """
import contextlib, io, json, sys
from lookupvit_video.__main__ import main
found = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["/usr/bin/lookupvit", *words, "--help"]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main()
    except SystemExit as end:
        heavy = {"torch", "torchvision", "numpy", "av", "matplotlib", "fvcore", "tqdm", "yaml",
                 "iopath", "importlib.metadata"}
        found[" ".join(words)] = [end.code, printed.getvalue(), sorted(heavy & sys.modules.keys())]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps():
    """The exit code, the text and the heavy modules of each --help, in one process."""
    words = [[], *([name] for name in COMMANDS), *NESTED]
    done = run_command([sys.executable, "-c", HELP, json.dumps(words)])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(helps):
    assert len(helps) == 1 + len(COMMANDS) + len(NESTED)
    assert {name: (code, heavy) for name, (code, _, heavy) in helps.items() if code or heavy} == {}


def test_every_help_has_an_example_of_its_command(helps):
    for name, (_, text, _) in helps.items():
        assert text.startswith(f"usage: {f'lookupvit {name}'.strip()} ")
        assert f"lookupvit {name}".strip() in text.split("examples:")[1]


def test_the_list_of_commands_has_one_line_for_each(helps):
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.title)}$", helps[""][1], re.MULTILINE)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lookupvit_video; print(sorted({'torch', 'numpy', 'av', 'fvcore'} & sys.modules.keys()))"
    assert run_command([sys.executable, "-c", code]).stdout == "[]\n"


@pytest.mark.parametrize(("words", "message"), [
    ([], "lookupvit: error: the following arguments are required: COMMAND"),
    (["trian"], "lookupvit: error: argument COMMAND: invalid choice: 'trian'"),
    (["predict"], "lookupvit predict: error: the following arguments are required: --checkpoint"),
    (["prepare", "k400"], "lookupvit prepare: error: argument COMMAND: invalid choice: 'k400'"),
    (["benchmark", "model", "--rounds", "0"], "lookupvit benchmark model: error: argument --rounds: must be at least"),
])  # fmt: skip
def test_mistakes(words, message):
    done = run_command([sys.executable, "-m", "lookupvit_video", *words])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_runs_under_its_own_name(tmp_path):
    command = [sys.executable, "-m", "lookupvit_video", "check-configs", tmp_path / "none.yaml"]
    done = run_command(command)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lookupvit check-configs: error: {tmp_path / 'none.yaml'}: ")
    assert len(done.stderr.splitlines()) == 1


def test_scripts_are_an_import_and_a_call():
    """What they do is tested through them: tests/commands."""
    for path in [*ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*/*.py")]:
        if path.name != "docs_figures.py":  # measures the pages of the repository itself
            assert len(path.read_text().splitlines()) <= 9, path
