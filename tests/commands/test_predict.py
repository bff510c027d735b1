"""tools/predict.py as users run it, and as those run it who wish it ill."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.batch import AnswerFile, find_videos, list_paths
from lookupvit_video.inference.budget import Cascade, cascade_macs, save_cascade
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.commands.test_train import assert_one_clear_line, make_bad_files
from tests.damage import FEW, tree, write_byte_damage, write_no_videos, write_originals
from tests.models.test_models import SMALL
from tests.small import ROOT, call_tool, run_command
from tests.videos import write_video

TOOL = str(ROOT / "tools" / "predict.py")
GRIDS = ["1x1x1", "1x2x2", "2x4x4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos and a checkpoint with three compressed grids."""
    folder = tmp_path_factory.mktemp("predict")
    cfg = load_config(None, [*SMALL, "MODEL.COMPRESSED_GRIDS", "[[1,1,1],[1,2,2],[2,4,4]]", "DATA.SAMPLING_RATE", "2"])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=["a", "b", "c", "d", "e"], model=build_model(cfg))
    (folder / "clips" / "deep").mkdir(parents=True)
    for number, name in enumerate(("0.mp4", "1.mp4", "deep/2.webm")):
        codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
        write_video(folder / "clips" / name, frames=12, first_number=100 * number, codec=codec)
    return folder


def predict(folder, *arguments):
    """Run the command in this process; it reads videos in this process too, unless told."""
    workers = () if "--workers" in arguments else ("--workers", 0)
    return call_tool(TOOL, "--checkpoint", folder / "model.pt", *workers, *arguments)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def names_of(rows):
    return sorted(os.path.basename(row["path"]) for row in rows)


# What it reads -------------------------------------------------------------------------------------------------


def test_files_folders_patterns_and_lists_name_the_same_videos(folder, tmp_path):
    clips = folder / "clips"
    (clips / "notes.txt").write_text("no video")
    everything = sorted(str(clips / name) for name in ("0.mp4", "1.mp4", "deep/2.webm"))
    (tmp_path / "plain.txt").write_text("\n".join(everything) + "\n\n")
    (tmp_path / "table.csv").write_text("label,path\n" + "".join(f"3,{path}\n" for path in everything))
    (clips / "relative.txt").write_text("0.mp4\r\n1.mp4\r\ndeep/2.webm")
    for names, lists in (
        ([clips], []), (everything, []), ([clips / "*.mp4", clips / "**" / "*.webm"], []),
        ([], [tmp_path / "plain.txt"]), ([], [tmp_path / "table.csv"]), ([], [clips / "relative.txt"]),
        ([clips, *everything], [tmp_path / "plain.txt"]),
    ):  # fmt: skip
        found, failures = find_videos(map(str, names), map(str, lists))
        assert (sorted(found), failures) == (everything, [])
    (tmp_path / "[0].mp4").write_text("")
    assert find_videos([str(tmp_path / "[0].mp4")])[0] == [str(tmp_path / "[0].mp4")]
    found, failures = find_videos([str(tmp_path / "*.nope"), str(tmp_path / "empty"), str(tmp_path / "[0].mp4")])
    assert failures[0].error == "no file matches this pattern"
    with pytest.raises(ValueError, match=r"nowhere.txt: this list cannot be read \(No such file"):
        find_videos([], [str(tmp_path / "nowhere.txt")])
    assert list_paths(io.BytesIO(b"\xef\xbb\xbfa b.mp4\n\xff.mp4\n"), "x", "") == ["a b.mp4", "\udcff.mp4"]


def test_a_table_for_people_and_answers_for_programs(folder, tmp_path):
    files = "--json", tmp_path / "new" / "a.jsonl", "--csv", tmp_path / "a.csv", "--draw", tmp_path / "sheets"
    done = predict(folder, folder / "clips", "--topk", 2, "--views", 2, "--crops", 3, *files)
    assert done.returncode == 0, done.stderr
    rows = lines_of(tmp_path / "new" / "a.jsonl")
    table = list(csv.DictReader((tmp_path / "a.csv").open()))
    model = load_model(folder / "model.pt", "cpu")
    assert names_of(rows) == names_of(table) == ["0.mp4", "1.mp4", "2.webm"]
    for row, line in zip(rows, table, strict=True):
        expected = model.predict(row["path"], 2, num_views=2, num_crops=3)
        assert list(row["classes"]) == expected.labels
        assert list(row["classes"].values()) == pytest.approx(expected.probabilities, abs=1e-5)
        assert row["times"] == [list(span) for span in expected.times]
        assert (row["grid"], row["gmacs"]) == (expected.grid, pytest.approx(expected.gmacs))
        assert [line["label_1"], line["label_2"]] == expected.labels
        seconds = ", ".join(f"{first:.2f}-{last:.2f}" for first, last in expected.times) + " s"
        assert line["seconds"] == seconds
        assert f"{row['path']}  {seconds}" in done.stdout
        assert float(line["probability_1"]) == pytest.approx(expected.probability, abs=1e-5)
        for label, share in row["classes"].items():
            assert f"{100 * share:5.1f} %  {label}" in done.stdout
        assert row["path"] in done.stdout
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["000_0.png", "001_1.png", "002_2.png"]
    assert "3 videos: mean" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("3 answered, 0 failed")
    only = predict(folder, folder / "clips" / "0.mp4", "--json", "-")
    assert json.loads(only.stdout)["path"].endswith("0.mp4")


# Killed and resumed -------------------------------------------------------------------------------------------------


def test_a_killed_run_keeps_its_answers_and_goes_on(folder, tmp_path):
    names = [str(tmp_path / f"{number}.mp4") for number in range(200)]
    for name in names:
        os.link(folder / "clips" / "0.mp4", name)
    command = [sys.executable, TOOL, "--checkpoint", str(folder / "model.pt"), "--workers", "0", "--batch-size", "1"]
    command += ["--json", "a.jsonl"]
    slowly = [*command, "--draw", "sheets", *names]
    running = subprocess.Popen(slowly, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, answers = time.monotonic() + 500, tmp_path / "a.jsonl"
    while (
        running.poll() is None
        and not (answers.exists() and answers.read_bytes().count(b"\n") >= 3)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait(timeout=60) == -signal.SIGKILL
    kept = [json.loads(line)["path"] for line in answers.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    assert kept == names[: len(kept)]
    assert 3 <= len(kept) < 200
    with answers.open("a") as file:
        file.write('{"path": "half a li')
    for name in kept:
        os.unlink(name)  # what has an answer is not read again
    done = predict(folder, "--json", answers, "--resume", *kept, names[-1])
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} of {len(kept) + 1} videos have an answer already" in done.stderr
    assert [row["path"] for row in lines_of(answers)] == [*kept, names[-1]]


@pytest.mark.parametrize("columns", [None, ["path", "label_1", "error"]])
def test_a_file_of_answers_resumes_with_what_is_whole(tmp_path, columns):
    path = str(tmp_path / "answers")
    rows = [{"path": name, "label_1": "ü", "error": ""} for name in ("a", 'b"\n,', "\udcff")]
    with AnswerFile(path, columns) as file:
        for row in [*rows, {"path": "bad", "error": "broken"}]:
            file.write(row)
    with open(path, "a") as raw:
        raw.write("d,x" if columns else '{"path": "d", "la')
    with AnswerFile(path, columns, resume=True) as file:
        assert file.done == {row["path"] for row in rows}
        file.write({"path": "d", "label_1": "x", "error": ""})
    with AnswerFile(path, columns, resume=True) as file:
        assert file.done == {"d", *(row["path"] for row in rows)}
    if columns:
        with pytest.raises(ValueError, match="the file has other columns"):
            AnswerFile(path, ["path"], resume=True)
    with AnswerFile(path, columns) as file:
        assert not file.done


# Budgets -------------------------------------------------------------------------------------------------


def test_budgets_pick_the_grid(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    model = load_model(folder / "model.pt", "cpu")
    clips = folder / "clips"

    def grids(*arguments):
        done = predict(folder, clips, "--json", tmp_path / "a.jsonl", *arguments)
        assert done.returncode == 0, done.stderr
        rows = lines_of(tmp_path / "a.jsonl")
        mean = sum(row["gmacs"] for row in rows) / 3
        assert f"3 videos: mean {mean:.4g} GMACs a view, all passes, {100 * mean / model.grids['2x4x4']:.0f} %" \
            in done.stderr  # fmt: skip
        return {row["grid"] for row in rows}, mean

    assert grids("--grid", "2x4x4") == ({"2x4x4"}, pytest.approx(model.grids["2x4x4"]))
    assert grids("--gmacs", model.grids["1x2x2"] * 1.01)[0] == {"1x2x2"}
    assert grids("--latency-ms", 1e6)[0] <= set(GRIDS)
    assert len(list((tmp_path / "cache" / "latency").iterdir())) == 1
    cascade = Cascade(((1, 1, 1), (2, 4, 4)), (1.5,))
    save_cascade(tmp_path / "x.json", cascade, model.model, {})
    found = grids("--adaptive", "--calibration", tmp_path / "x.json")
    assert found == ({"2x4x4"}, pytest.approx(cascade_macs(cascade, model.costs)[1] / 1e9))
    save_cascade(folder / "model.adaptive.json", Cascade(((1, 1, 1), (2, 4, 4)), (0.0,)), model.model, {})
    assert grids("--adaptive") == ({"1x1x1"}, pytest.approx(model.grids["1x1x1"]))
    assert grids("--adaptive", "--int8") == ({"1x1x1"}, pytest.approx(model.grids["1x1x1"]))  # of the float weights
    assert grids("--int8", "--latency-ms", 1e6)[0] <= set(GRIDS)
    assert len(list((tmp_path / "cache" / "latency").iterdir())) == 2  # its own


# Hostile and broken input --------------------------------------------------------------------------------------------


def odd_arguments(folder, tmp):
    """Arguments that nobody should give, each with parts of the line that answers them."""
    clip = folder / "clips" / "0.mp4"
    junk = tmp / "junk.json"
    junk.write_bytes(bytes(range(256)))
    os.mkfifo(tmp / "pipe")
    return [
        ([], "no videos"), (["--topk", 0, clip], "--topk"), (["--topk", "many", clip], "--topk"),
        (["--topk", -3, clip], "--topk"), (["--views", 0, clip], "--views"), (["--views", 10**14, clip], "views"),
        (["--views", "1e3", clip], "--views"), (["--crops", 2, clip], "--crops"), (["--backend", "vlc", clip], "vlc"),
        (["--batch-size", 0, clip], "--batch-size"), (["--batch-size", 10**9, clip], "--batch-size"),
        (["--workers", -1, clip], "--workers"), (["--workers", 10**6, clip], "--workers"),
        (["--timeout", "nan", clip], "--timeout"), (["--timeout", "inf", clip], "--timeout"),
        (["--timeout", 0, clip], "--timeout"), (["--timeout", 1e-9, clip], "took longer than"),
        (["--device", "cuda:99", clip], "--device cuda:99"), (["--device", "meta", clip], "--device meta"),
        (["--device", "", clip], "--device"), (["--device", "abacus:1", clip], "--device abacus"),
        (["--device", "hpu", clip], "--device hpu"), (["--device", "cpu:-1", clip], "--device"),
        (["--grid", "9x9x9", clip], "this checkpoint has 1x1x1"), (["--grid", "a", clip], "write t x h x w"),
        (["--grid", "1" * 5000, clip], "write t x h x w"),
        (["--grid", "1x1x1", "--gmacs", 1, clip], "not allowed with"),
        (["--gmacs", "nan", clip], "must be above 0"), (["--gmacs", 1e-30, clip], "the cheapest grid"),
        (["--gmacs", -1, clip], "must be above 0"), (["--latency-ms", "nan", clip], "must be above 0"),
        (["--adaptive", "--calibration", junk, clip], "not a file of thresholds"),
        (["--adaptive", "--calibration", tmp / "pipe", clip], "no such file"),
        (["--adaptive", "--calibration", tmp / "none.json", clip], "lookupvit calibrate"),
        (["--calibration", junk, clip], "--calibration is for --adaptive"),
        (["--adaptive", "--compile", clip], "give one of them"),
        (["--int8", "--compile", clip], "compiled 8-bit layers are slower"),
        (["--resume", clip], "--resume"), (["--resume", "--json", "a", "--csv", "b", clip], "--resume"),
        (["--json", clip, clip], "written to an input file"),
        (["--csv", folder / "model.pt", clip], "written to an input file"),
        (["--json", folder / "clips", clip], "regular file"), (["--json", tmp / "pipe", clip], "regular file"),
        (["--json", "/dev/full", clip], "regular file"), (["--json", clip / "x.jsonl", clip], "error"),
        (["--json", "-", "--csv", "-", clip], "both would go to standard output"),
        (["--json", junk / ".." / "x", "--csv", tmp / "x", clip], "error"),
        (["--draw", clip, clip], "--draw must be a folder"), (["--draw", clip / "x", clip], "error"),
        (["--list", tmp / "none.txt"], "No such file"), (["--list", folder], "not a regular file"),
        (["--list", tmp / "pipe"], "not a regular file"), (["--list", "/dev/zero"], "not a regular file"),
        (["--list", junk], "error"), ([""], "no such file"), (["x" * 5000], "too long"),
        (["~nobody0"], "there is no user"),
        ([tmp / "*.nope"], "no file matches"), (["["], "no file matches"), (["/dev/zero"], "not a regular file"),
        (["/dev/null"], "not a regular file"), (["http://localhost:9/a.mp4"], "is a URL"),
        (["rtsp://localhost:9/a"], "is a URL"), (["concat:a.mp4|b.mp4"], "no such file"),
        (["--no-such-option", clip], "--no-such-option"), (["--", "--topk"], "no such file"),
        ([f"$(touch {tmp}/shell).mp4"], "no such file"), ([f"`touch {tmp}/shell`"], "no such file"),
        (["a\nb\x1b[31m.mp4"], "a?b?[31m.mp4: no file matches"),
    ]  # fmt: skip


def test_odd_arguments_give_one_line_and_write_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    cases = odd_arguments(folder, tmp_path)
    before = tree(folder) | tree(tmp_path)
    for arguments, message in cases:
        done = predict(folder, *arguments)
        assert done.returncode in (1, 2), (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, arguments
        errors = [line for line in done.stderr.splitlines() if "error:" in line]
        assert errors, arguments
        assert message in errors[-1], (arguments, errors)
    assert tree(folder) | tree(tmp_path) == before
    assert len(cases) > 60


def test_hostile_files_neither_crash_nor_hang_nor_write(folder, tmp_path):
    made = write_byte_damage(tmp_path / "damaged", write_originals(tmp_path / "originals", FEW), times=2)
    made += write_no_videos(tmp_path / "none")
    paths = [str(damaged.path) for damaged in made if damaged.damage != "link to a directory"]  # that holds the others
    assert len(paths) > 100
    make_bad_files(tmp_path)
    bad = {"empty.mp4": "empty", "text.mp4": "is text", "audio.mp4": "no video stream", "cut.mp4": "truncated",
           "missing.mp4": "no such file"}  # fmt: skip
    paths += [str(tmp_path / name) for name in bad]
    for empty in ("home", "cwd", "tmp", "out"):
        (tmp_path / empty).mkdir()
    before = {path: facts for path, facts in tree(tmp_path).items() if path != str(tmp_path / "out")}
    places = {"HOME": "home", "XDG_CACHE_HOME": "home", "MPLCONFIGDIR": "out"}  # matplotlib keeps a list of fonts
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(tmp_path / it) for name, it in places.items()}}
    command = [sys.executable, TOOL, "--checkpoint", folder / "model.pt", "--workers", 2, "--timeout", 30,
               "--json", tmp_path / "out" / "a.jsonl", "-"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=tmp_path / "cwd", env=environment, text=True,
                          input="\n".join(paths), capture_output=True, timeout=500)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = lines_of(tmp_path / "out" / "a.jsonl")
    assert sorted(row["path"] for row in rows) == sorted(paths)
    failed = [row for row in rows if "error" in row]
    assert len(failed) > 40
    assert all(row["error"] and "\n" not in row["error"] for row in failed)
    errors = done.stderr.splitlines()[-len(failed) - 1 : -1]  # at the end, a line each, and their number
    for row in failed:
        assert any(f"error: {row['path']}: " in line for line in errors), row
    reasons = {os.path.basename(row["path"]): row["error"] for row in failed}
    assert all(reason in reasons[name] for name, reason in bad.items())
    after = {path: facts for path, facts in tree(tmp_path).items() if not path.startswith(str(tmp_path / "out"))}
    assert after == before


def test_odd_names_are_names(folder, tmp_path):
    (tmp_path / "in").mkdir()
    names = "a\nb.mp4", "-x.mp4", "\udcff.mp4", "💣" * 60 + ".mp4", "$(touch x);`'.mp4", "$a_$ \\frac{ \x1b[2J%s{}.mp4"
    for name in names:
        os.link(folder / "clips" / "0.mp4", tmp_path / "in" / name)
    before = tree(tmp_path / "in") | tree(ROOT / "tools")
    done = predict(folder, tmp_path / "in", "--json", tmp_path / "a.jsonl", "--draw", tmp_path / "sheets")
    assert done.returncode == 0, done.stderr
    assert sorted(os.path.basename(row["path"]) for row in lines_of(tmp_path / "a.jsonl")) == sorted(names)
    assert len(list((tmp_path / "sheets").iterdir())) == len(names)
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert tree(tmp_path / "in") | tree(ROOT / "tools") == before


def test_a_hostile_checkpoint_is_one_line(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save(Payload(), tmp_path / "payload.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "text.pt").write_text("nothing")
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "cut.pt").write_bytes((folder / "model.pt").read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    for name in ("payload.pt", "pipe.pt", "text.pt", "noise.pt", "cut.pt", "empty", "missing.pt"):
        done = call_tool(TOOL, "--checkpoint", tmp_path / name, folder / "clips" / "0.mp4")
        assert_one_clear_line(done, 2, name)
    assert not (tmp_path / "run").exists()


def test_a_reader_that_goes_away_is_no_failure(folder):
    command = f"{sys.executable} {TOOL} --checkpoint {folder}/model.pt --workers 0 {folder}/clips | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


# What it costs to start ----------------------------------------------------------------------------------------


def test_an_answer_needs_no_import_of_what_it_does_not_use(folder):
    """Each of these takes longer than the answer itself; the processes that read videos import no more."""
    code = """
import sys
from lookupvit_video.commands.predict import predict
assert predict(sys.argv[1:]) == 0
heavy = {"torchvision", "torch._dynamo", "torch.distributed.fsdp", "sympy", "matplotlib", "scipy", "triton", "sklearn"}
print(sorted(heavy & sys.modules.keys()))
"""
    arguments = ["--checkpoint", folder / "model.pt", "--workers", "0", folder / "clips" / "0.mp4"]
    done = run_command([sys.executable, "-c", code, *arguments])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
