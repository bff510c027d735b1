"""The Dockerfile's commands, as far as they can be tested without building it."""

import json
import re
from configparser import ConfigParser

from lookupvit_video.__main__ import COMMANDS
from tests.small import ROOT
from tests.test_wheel import SOURCES

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


def words(command):
    """The words of all lines that begin with a command."""
    return [line.split()[1:] for line in LINES if line.split()[0] == command]


def test_it_copies_what_the_wheel_is_built_from():
    """tests/test_wheel.py builds, installs and runs that."""
    copied = {name: target for *names, target in words("COPY") for name in names}
    assert set(copied) == {*SOURCES, "lookupvit_video", "configs"}
    assert all((ROOT / name).exists() for name in copied)
    assert copied["lookupvit_video"] == "/source/lookupvit_video"
    assert copied["configs"] == "/source/configs"
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied)


def test_its_extras_and_its_entry_point_exist():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = re.search(r"^ARG EXTRAS=(\S+)$", TEXT, re.MULTILINE).group(1).split(",")
    assert "serve" in extras
    assert set(extras) <= set(setup["options.extras_require"])
    (entry,) = (json.loads(" ".join(found)) for found in words("ENTRYPOINT"))
    assert f"{entry[0]} = " in setup["options.entry_points"]["console_scripts"]
    minimum = re.search(r">=3\.(\d+)", setup["options"]["python_requires"]).group(1)
    assert int(re.search(r"^FROM python:3\.(\d+)-slim$", TEXT, re.MULTILINE).group(1)) >= int(minimum)


def test_torch_is_chosen_by_an_argument_and_nothing_runs_as_root():
    assert 'torch torchvision --index-url "${TORCH_INDEX}"' in TEXT
    assert words("USER") == [["user"]]
    assert LINES.index("USER user") > max(number for number, line in enumerate(LINES) if line.startswith("RUN"))


def test_the_context_leaves_out_all_but_what_is_copied():
    """A rule of .dockerignore counts where no later one matches; "*" leaves all out, and "!" takes one back."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    later_exclusions = [rule for rule in rules[1:] if not rule.startswith("!")]
    assert later_exclusions == ["**/__pycache__"]
    assert rules[-1] == later_exclusions[0]


def test_any_user_may_write_where_results_and_caches_go_and_compile():
    runs = [" ".join(found) for found in words("RUN")]
    assert any("chmod 777 /home/user /work" in run for run in runs)
    assert "HOME=/home/user" in [setting for found in words("ENV") for setting in found]
    assert words("WORKDIR") == [["/work"]]
    assert "--no-install-recommends g++" in runs[0]  # its layer stays when the package changes


def test_the_page_on_serving_names_commands_that_exist():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    found = re.findall(r"^docker run .* lookupvit(?::cuda)? (\S+) ", page, re.MULTILINE)
    assert set(found) == {"serve", "train"}
    assert set(found) <= set(COMMANDS)
    assert "FROM" in LINES[0]
    assert re.search(r"build-arg (\w+)=", page).group(1) == "TORCH_INDEX"
