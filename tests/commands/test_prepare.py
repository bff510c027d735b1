"""`lookupvit prepare import-labels` and `export-labels`, by their command lines."""

import pytest

from lookupvit_video.commands import prepare
from lookupvit_video.preparation.labelling.convert import TOOLS
from tests.videos import write_video


def run(monkeypatch, function, *words):
    monkeypatch.setattr("sys.argv", ["lookupvit prepare", *map(str, words)])
    return function()


def test_a_list_goes_out_and_comes_back(tmp_path, monkeypatch, capsys):
    video = write_video(tmp_path / "v.mp4", frames=24)
    (tmp_path / "list.csv").write_text(f"path,label,start,end\n{video},0,0.25,0.5\n{video},2,,\n")
    out = tmp_path / "tasks.json"
    assert run(monkeypatch, prepare.export_labels, "--tool", "fiftyone", tmp_path / "list.csv", "--out", out) == 0
    words = ["--tool", "fiftyone", out, "--videos", tmp_path, "--out", tmp_path]
    assert run(monkeypatch, prepare.import_labels, *words) == 0
    assert (tmp_path / "all.csv").read_text() == f"path,label,start,end\n{video},2,0.0,1.0\n{video},0,0.25,0.5\n"
    assert (tmp_path / "classes.txt").read_text() == "0\n2\n"
    assert capsys.readouterr().out == f"{out}: 2 labels\n{tmp_path / 'all.csv'}: 2 labels\n"


def test_the_tools_of_the_help_are_those_there_are():
    assert prepare.TOOLS == tuple(TOOLS)


@pytest.mark.parametrize("function", [prepare.import_labels, prepare.export_labels])
def test_help_names_the_options(function, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, function, "--help")
    text = capsys.readouterr().out
    assert all(word in text for word in ("--origin", "--frame-base", "--rate"))
