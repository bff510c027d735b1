"""Complete processes that take turns: `lookupvit benchmark end-to-end` and `compare`."""

import json
import subprocess
import sys

import pytest

from lookupvit_video.benchmarks import end_to_end
from lookupvit_video.benchmarks.end_to_end import Entrant, comparison, race, read_result, report, run_once
from lookupvit_video.errors import RunFailure, UserError
from tests.small import ROOT, call_tool


def python(name, code, root=ROOT):
    return Entrant(name, (sys.executable, "-S", "-c", code), root)


def row(name, first, complete, videos=5):
    return {"name": name, "videos": videos, "first": first, "all": complete, "peak_bytes": [1 << 20, 3 << 20]}


def test_a_process_is_timed_from_start_to_exit_with_its_memory(tmp_path):
    code = "import os, sys, time; x = bytearray(50 << 20); time.sleep(0.3); print(os.getcwd(), *sys.argv[1:])"
    run = run_once(python("x", code, tmp_path), ["a", "b"])
    assert run.printed == f"{tmp_path} a b\n"
    assert 0.3 <= run.seconds < 60
    assert 50 << 20 <= run.peak_bytes < 100 << 20  # not this process's own memory


def test_a_process_that_fails_ends_the_measurement():
    with pytest.raises(RunFailure, match=r"x: exit code 3 \(because\)"):
        run_once(python("x", "import sys; print('because', file=sys.stderr); sys.exit(3)"), [])


def test_all_take_their_turn_and_another_one_begins(monkeypatch):
    turns = []

    def run(entrant, videos):
        turns.append(f"{entrant.name}{len(videos)}")
        return end_to_end.Run(float(len(turns)), 7, "")

    monkeypatch.setattr(end_to_end, "run_once", run)
    rows = race([Entrant("a", ()), Entrant("b", ())], ["x", "y", "z"], 2)
    assert turns == ["a1", "b1", "a1", "a3", "b1", "b3", "b1", "b3", "a1", "a3"]
    assert rows == [
        {"name": "a", "videos": 3, "first": [3.0, 9.0], "all": [4.0, 10.0], "peak_bytes": [7, 7]},
        {"name": "b", "videos": 3, "first": [5.0, 7.0], "all": [6.0, 8.0], "peak_bytes": [7, 7]},
    ]


def test_a_report_has_medians_and_ratios_of_the_same_round():
    rows = [row("ours", [1.0, 2.0, 1.0], [5.0, 4.0, 9.0]), row("theirs", [4.0, 4.0, 4.0], [10.0, 12.0, 27.0])]
    lines = report(rows, [3.0, 4.0, 5.0]).splitlines()
    assert lines[0] == "| pipeline | first answer, s | times | 5 videos, s | times | then videos/s | MiB |"
    assert lines[2] == "| ours | 1.00 | 1.00 | 5.00 (4.00 to 9.00) | 1.00 | 1.00 | 3 |"
    assert lines[3] == "| theirs | 4.00 | 4.00 | 12.00 (10.00 to 27.00) | 3.00 | 0.50 | 3 |"
    assert lines[-1] == "The model alone: 4.00 (3.00 to 5.00) s, 80 % of ours's time."
    assert "alone" not in report(rows, [])


def test_two_results_are_compared_where_they_share_a_pipeline():
    old = {"rows": [row("a", [2.0], [8.0]), row("b", [1.0], [1.0]), row("c", [1.0], [1.0], videos=9)]}
    new = {"rows": [row("a", [1.0], [12.0]), row("c", [1.0], [1.0])]}
    lines = comparison(old, new).splitlines()
    assert lines[2:] == [
        "| a | first answer, s | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) | 0.50 |",
        "| a | 5 videos, s | 8.00 (8.00 to 8.00) | 12.00 (12.00 to 12.00) | 1.50 |",
    ]
    with pytest.raises(UserError, match="share no pipeline"):
        comparison(old, {"rows": [row("d", [1.0], [1.0])]})


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"commit": 1, "processor": 1, "cores": 1, "rows": [{}]}'])
def test_other_files_are_no_results(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    for name in ("x.json", "none.json"):
        with pytest.raises(UserError, match=rf"{name}: not a result of lookupvit benchmark end-to-end"):
            read_result(tmp_path / name)


def test_commits_run_from_folders_of_their_own(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True)

    git("init", "-q")
    for text in ("one", "two"):
        (tmp_path / "x").write_text(text)
        git("add", "x")
        git("commit", "-q", "-m", text)
    monkeypatch.setattr(end_to_end, "ROOT", tmp_path)
    with end_to_end.at_commits(["HEAD~1", "HEAD"], "model.pt") as entrants:
        assert [(entrant.name, (entrant.root / "x").read_text()) for entrant in entrants] == [
            ("HEAD~1", "one"), ("HEAD", "two"),
        ]  # fmt: skip
    assert not any(entrant.root.exists() for entrant in entrants)
    message = r"--commits: git worktree add failed \(fatal: invalid reference: nothing\)"
    with pytest.raises(UserError, match=message), end_to_end.at_commits(["HEAD", "nothing"], "model.pt"):
        pass
    listed = subprocess.run(["git", "-C", tmp_path, "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1


def test_the_command_measures_writes_and_compares(tmp_path, monkeypatch):
    """With made-up times: what it runs is tested above and in test_predict.py."""
    monkeypatch.setattr(end_to_end, "run_once", lambda entrant, videos: end_to_end.Run(2.0 + len(videos), 1, "1.5\n"))
    monkeypatch.setattr(end_to_end, "make_checkpoint", lambda path: path)
    monkeypatch.setattr("lookupvit_video.benchmarks.videos.make_video", lambda path, *_: path.touch())
    words = ["end-to-end", "--videos", 3, "--rounds", 1, "--cache", tmp_path, "--json", tmp_path / "a.json"]
    done = call_tool("tools/benchmark.py", *words)
    assert done.returncode == 0, done.stderr
    assert "| VideoMAE-B, Hugging Face's pipeline | 3.00 | 1.00 | 5.00 (5.00 to 5.00) | 1.00 | 1.00 |" in done.stdout
    assert "| import of torch alone | 3.00 | 1.00 | 5.00 (5.00 to 5.00) | 1.00 | - | 0 |" in done.stdout
    assert "The model alone: 1.50 (1.50 to 1.50) s, 30 % of LookupViT's time." in done.stdout
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts.keys() >= {"command", "commit", "processor", "packages", "rows", "model_seconds"}
    done = call_tool("tools/benchmark.py", "compare", tmp_path / "a.json", tmp_path / "a.json")
    assert "| LookupViT | 3 videos, s | 5.00 (5.00 to 5.00) | 5.00 (5.00 to 5.00) | 1.00 |" in done.stdout
    for bound, code in ((0.99, 1), (1.01, 0)):
        monkeypatch.setattr(end_to_end, "_git", lambda *_: None)
        assert call_tool("tools/benchmark.py", *words, "--commits", "a", "b", "--at-most", bound).returncode == code
    done = call_tool("tools/benchmark.py", *words, "--commits", "a", "--at-most", 1)
    assert done.returncode == 2
    assert "--at-most compares two commits" in done.stderr
