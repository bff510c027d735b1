"""Lists of videos, and files of answers; without a model. The command itself: tests/commands/test_predict.py."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.inference import batch
from lookupvit_video.inference.batch import (
    AnswerFile,
    csv_columns,
    csv_row,
    find_videos,
    list_paths,
    read_or_fail,
    read_videos,
    shared_answer_file,
)
from lookupvit_video.inference.views import Failure, Views, make_plan
from lookupvit_video.text import open_text
from tests.gathering import Gathering
from tests.models.test_models import SMALL
from tests.videos import write_video


@pytest.fixture
def folder(tmp_path):
    """A folder of empty files: a.mp4, B.MKV, notes.txt, deep/c.webm."""
    (tmp_path / "deep").mkdir()
    for name in ("a.mp4", "B.MKV", "notes.txt", "deep/c.webm"):
        (tmp_path / name).touch()
    return tmp_path


# What to read -------------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_the_videos_below_it_in_order(folder):
    names = [str(folder / name) for name in ("B.MKV", "a.mp4", "deep/c.webm")]
    assert find_videos([str(folder)]) == (names, [])
    assert find_videos([names[1], str(folder), names[1]]) == ([names[1], names[0], names[2]], [])  # each once


def test_a_folder_without_videos_is_a_failure(folder):
    (folder / "empty").mkdir()
    found, (failure,) = find_videos([str(folder / "empty"), str(folder / "a.mp4")])
    assert found == [str(folder / "a.mp4")]
    assert failure.path == str(folder / "empty")
    assert failure.error


def test_a_folder_of_photos_is_for_the_reader_to_judge(tmp_path):
    for name in ("beach1.jpg", "town1.jpg"):  # two series
        (tmp_path / name).touch()
    assert find_videos([str(tmp_path)], []) == ([str(tmp_path)], [])
    with pytest.raises(DecodeError, match="several series of pictures"):
        open_video(tmp_path)


def test_a_pattern_stands_for_files_in_order(folder):
    (folder / "dir.mp4").mkdir()
    found = [str(folder / "a.mp4"), str(folder / "deep" / "c.webm"), str(folder / "notes.txt")]
    assert find_videos([str(folder / "*.mp4")]) == (found[:1], [])  # no folders
    assert find_videos([str(folder / "**" / "*.[wt]*")]) == (found[1:], [])
    assert find_videos([str(folder / "x*")]) == ([], [Failure(str(folder / "x*"), "no file matches this pattern")])
    for number in range(9, 0, -1):
        (folder / f"{number}.avi").touch()
    assert find_videos([str(folder / "?.avi")])[0] == [str(folder / f"{number}.avi") for number in range(1, 10)]


def test_a_name_that_looks_like_a_pattern_may_be_a_file(folder):
    (folder / "[a].mp4").touch()
    (folder / "gone[1].mp4").symlink_to(folder / "nowhere")  # it exists, its target does not
    for name in ("[a].mp4", "gone[1].mp4"):
        assert find_videos([str(folder / name)]) == ([str(folder / name)], [])


def test_standard_input_names_videos(monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a.mp4\n\nb c.mp4\r\n")))
    assert find_videos(["x.mp4", "-", "a.mp4"]) == (["x.mp4", "a.mp4", "b c.mp4"], [])


def test_paths_in_a_list_start_at_its_folder(folder):
    (folder / "list.txt").write_text(f"a.mp4\n/abs/b.mp4\n   \n{folder / 'a.mp4'}\n")
    (folder / "table.csv").write_text('label, path ,start\n1,deep/c.webm,0\n2,"x,y.mp4",\n')
    found, failures = find_videos(["z.mp4"], [str(folder / "list.txt"), str(folder / "table.csv")])
    assert found == ["z.mp4", str(folder / "a.mp4"), "/abs/b.mp4", str(folder / "deep/c.webm"), str(folder / "x,y.mp4")]
    assert failures == []
    (folder / "loose.txt").write_text('  a.mp4 \n"deep/c.webm"\n')
    assert find_videos([], [str(folder / "loose.txt")]) == ([str(folder / "a.mp4"), str(folder / "deep/c.webm")], [])


def test_a_list_may_be_as_long_as_the_limit(monkeypatch):
    assert batch.MAX_LIST_BYTES == 256 * 2**20
    monkeypatch.setattr(batch, "MAX_LIST_BYTES", 6)
    assert list_paths(io.BytesIO(b"a.mp4\n"), "x", "") == ["a.mp4"]
    monkeypatch.setattr(batch, "MAX_LIST_BYTES", 5)
    with pytest.raises(ValueError, match="x: longer than 0 MiB"):
        list_paths(io.BytesIO(b"a.mp4\n"), "x", "")


def test_a_list_that_cannot_be_read_is_named(folder):
    with pytest.raises(ValueError, match=r"this list is not a regular file; for a pipe, use - \(standard input\)"):
        find_videos([], [str(folder)])
    with pytest.raises(ValueError, match=r"none.txt: this list cannot be read \(No such file or directory\)"):
        find_videos([], [str(folder / "none.txt")])


# Reading ------------------------------------------------------------------------------------------------------------


def fake_read(path, plan):
    if path == "bad":
        raise DecodeError(path, "is text")
    if path == "mistake":
        raise UserError("install the decoder")
    if path == "bug":
        raise KeyError(path)
    return Views(path, np.zeros(1), [], plan.note)


def test_a_file_that_cannot_be_read_is_a_failure_and_a_mistake_in_the_code_is_not(monkeypatch):
    monkeypatch.setattr(batch, "read_file", fake_read)
    plan = types.SimpleNamespace(note="x")
    assert read_or_fail(plan, "bad") == Failure("bad", "is text")
    assert read_or_fail(plan, "mistake") == Failure("mistake", "install the decoder")
    assert read_or_fail(plan, "a")[::3] == ("a", "x")
    with pytest.raises(KeyError):
        read_or_fail(plan, "bug")
    assert [found[0] for found in read_videos(["a", "bad", "b"], plan, 0)] == ["a", "bad", "b"]


def test_reading_in_processes_has_a_limit_and_lost_files_are_failures(monkeypatch):
    given = []

    def run(work, paths, *, processes, timeout):
        given.append((work(paths[0]), processes, timeout))
        yield types.SimpleNamespace(number=1, lost=types.SimpleNamespace(detail="crashed"), answer=None)
        yield types.SimpleNamespace(number=0, lost=None, answer="views")
        yield types.SimpleNamespace(number=2, lost=None, answer=None)

    monkeypatch.setattr(batch, "read_file", fake_read)
    monkeypatch.setattr(batch, "run_isolated", run)
    for timeout, limit in ((7.0, 24.0), (0.0, float("inf"))):  # opening and decoding, 5 s of slack each
        found = list(read_videos(["bad", "b", "c"], types.SimpleNamespace(timeout=timeout), 3))
        assert found == [Failure("b", "crashed"), "views"]
        assert given.pop() == (Failure("bad", "is text"), 3, limit)


# Bugs -----------------------------------------------------------------------------------------------------------------


class Mistaken(TimeSampler):
    """A sampler with a bug."""

    def __call__(self, duration):
        return list(zip([duration], [], strict=True))


def mistaken_plan():
    return dataclasses.replace(make_plan(load_config(None, SMALL)), times=Mistaken(4, 0.1))


def read_with_a_bug(path):
    print(list(read_videos([path, path], mistaken_plan(), 1)))


def test_a_bug_in_a_reader_keeps_its_traceback(tmp_path):
    video = write_video(tmp_path / "x.mp4", frames=6)
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter") as raised:
        list(read_videos([video], mistaken_plan(), 0))
    assert not isinstance(raised.value, UserError)
    code = f"from tests.inference.test_batch import read_with_a_bug as read; read({video!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # workers keep the first stderr
    assert done.returncode == 0
    assert done.stdout.count("internal error, ValueError: zip() argument 2 is shorter") == 2
    assert done.stderr.count("Traceback") == 1  # once for each place
    assert "return list(zip([duration], [], strict=True))" in done.stderr


# Answers ------------------------------------------------------------------------------------------------------------

ANSWER = {"path": "a,b.mp4", "classes": {"x": 0.75, "y": 0.25}, "times": [[0, 1]], "grid": "1x2x2", "gmacs": 0.5,
          "note": "short"}  # fmt: skip


def test_a_row_of_a_table():
    assert csv_columns(2) == ["path", "label_1", "probability_1", "label_2", "probability_2", "seconds", "grid",
                              "gmacs", "note", "error"]  # fmt: skip
    assert csv_row(ANSWER) == {
        "path": "a,b.mp4", "label_1": "x", "probability_1": "0.750000", "label_2": "y", "probability_2": "0.250000",
        "seconds": "0.00-1.00 s", "grid": "1x2x2", "gmacs": 0.5, "note": "short",
    }  # fmt: skip
    assert csv_row({"path": "a", "error": "gone"}) == {"path": "a", "error": "gone"}


@pytest.mark.parametrize("columns", [None, csv_columns(2)])
def test_an_answer_is_on_the_disk_as_soon_as_it_is_written(tmp_path, columns):
    path = tmp_path / "new" / "answers"
    with AnswerFile(str(path), columns) as file:
        for count in (1, 2):
            file.write(csv_row(ANSWER) if columns else ANSWER)
            text = path.read_text()
            assert text.endswith("\n")
            rows = list(csv.DictReader(io.StringIO(text))) if columns else [json.loads(x) for x in text.splitlines()]
            assert len(rows) == count
    assert file.file.closed
    assert rows[0]["path"] == "a,b.mp4"
    assert path.read_bytes().count(b"\r\n") == (3 if columns else 0)  # as tables have it


def test_a_new_file_forgets_an_old_one_and_resuming_keeps_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"path": "a"}\n{"path": "b", "error": "gone"}\n{"path": 3}\n[1]\n{"path": "c", "error": ""}\nnull\n{"pa'
    )
    with AnswerFile(str(path), resume=True) as file:
        assert file.done == {"a", "c"}
        assert path.read_text() == '{"path": "a"}\n{"path": "c", "error": ""}\n'
        file.write({"path": "b"})
    assert path.read_text().splitlines()[2:] == ['{"path": "b"}']
    with AnswerFile(str(path)) as file:
        assert file.done == set()
    assert path.read_text() == ""


def test_resuming_where_there_is_nothing_yet(tmp_path):
    for name, text in (("none", None), ("empty", ""), ("failures", '{"path": "a", "error": "gone"}\n')):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with AnswerFile(str(path), resume=True) as file:
            assert file.done == set()
            file.write({"path": "x"})
        assert path.read_text() == '{"path": "x"}\n'


def test_a_table_resumes_with_whole_rows_and_the_same_columns(tmp_path):
    columns, path = ["path", "label_1", "error"], tmp_path / "a.csv"
    path.write_text("path,label_1,error\na,x,\nb,,gone\nc,x,,too many\nd,x\n")
    with AnswerFile(str(path), columns, resume=True) as file:
        assert file.done == {"a"}
    assert path.read_bytes() == b"path,label_1,error\r\na,x,\r\n"
    with pytest.raises(
        ValueError, match=r"a.csv: --resume: the file has other columns; use the same --topk"
    ) as refused:
        AnswerFile(str(path), ["path", "error"], resume=True)
    path.write_text("")
    with AnswerFile(str(path), columns, resume=True) as file:  # nobody holds its lock any more
        assert file.done == set()
    assert refused.tb  # which would have kept it
    assert path.read_bytes() == b"path,label_1,error\r\n"


def test_standard_output_stays_open(capsys):
    with AnswerFile("-", ["path"], resume=True) as file:
        file.write({"path": "a"})
    print("b")
    assert capsys.readouterr().out.split() == ["path", "a", "b"]


def test_answers_go_into_regular_files_only(tmp_path):
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "broken", "/dev/null"):
        with pytest.raises(ValueError, match="not a regular file; write answers to a file, or to standard output"):
            AnswerFile(str(path))


# Several processes ----------------------------------------------------------------------------------------------------


def answered_by(monkeypatch, size, path, videos, resume=False, columns=None, dies=()):
    """Let processes, which are threads here, answer videos in one file; those in ``dies`` stop after one answer."""
    gather, answered = Gathering(size), []

    def work(rank):
        try:
            with shared_answer_file(str(path), columns, resume, World(rank, size, torch.device("cpu"))) as file:
                left = [video for video in videos if video not in file.done]
                for number, video in enumerate(left[rank::size]):
                    if number and rank in dies:
                        gather.abort()  # as torchrun, which ends all
                        raise RuntimeError("killed")
                    file.write({"path": video} if columns else {"path": video, "by": rank})
                    answered.append(video)
        except (RuntimeError, UserError) as error:
            errors.append(str(error))

    errors = []
    monkeypatch.setattr(batch, "gather_objects", gather)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answered, errors


def paths_in(path, columns=None):
    with open_text(path) as file:
        return [row["path"] for row in (csv.DictReader(file) if columns else map(json.loads, file))]


@pytest.mark.parametrize("columns", [None, ["path"]])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_one_file(tmp_path, monkeypatch, size, columns):
    videos = [f"{number}.mp4" for number in range(7)]
    path = tmp_path / "a.jsonl"
    assert answered_by(monkeypatch, size, path, videos, columns=columns)[1] == []
    assert sorted(paths_in(path, columns)) == videos
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    answered, _ = answered_by(monkeypatch, size, path, [*videos, "more.mp4"], resume=True, columns=columns)
    assert answered == ["more.mp4"]
    assert sorted(paths_in(path, columns)) == [*videos, "more.mp4"]


@pytest.mark.parametrize("then", [1, 2, 3])
def test_a_killed_run_is_resumed_by_any_number_of_processes(tmp_path, monkeypatch, then):
    videos = [f"{number}.mp4" for number in range(9)]
    path = tmp_path / "a.jsonl"
    first, errors = answered_by(monkeypatch, 3, path, videos, dies=(1,))
    assert "killed" in errors
    assert paths_in(path) == []
    assert len(list(tmp_path.glob(".a.jsonl.part-*"))) == 3
    second, errors = answered_by(monkeypatch, then, path, videos, resume=True)
    assert errors == []
    assert sorted(first + second) == sorted(paths_in(path)) == videos
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_parts_of_another_run_are_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    answered_by(monkeypatch, 2, path, ["old.mp4", "old2.mp4", "old3.mp4"], dies=(0,))
    assert answered_by(monkeypatch, 2, path, ["new.mp4"])[1] == []
    assert paths_in(path) == ["new.mp4"]


def test_a_mistake_is_raised_in_all_processes(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("other\n")
    _, errors = answered_by(monkeypatch, 2, tmp_path / "a.csv", ["x.mp4"], resume=True, columns=["path"])
    assert len(errors) == 2
    assert all("has other columns" in error for error in errors)


def test_standard_output_stays_open_whichever_it_is_at_the_end(monkeypatch):
    before = io.StringIO()
    monkeypatch.setattr(sys, "stdout", before)
    with AnswerFile("-"):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not before.closed
