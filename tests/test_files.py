"""A file is written completely or not at all, also where the process is killed midway."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lookupvit_video import files
from lookupvit_video.files import atomic_write, model_file, named_failures, write_json

KILLED = """
import os, signal, sys
from lookupvit_video.files import atomic_write, model_file, named_failures, write_json
with atomic_write(sys.argv[1]) as path:
    with open(path, "wb") as file:
        file.write(b"new" * 1000)
        file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_success_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with atomic_write(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_temporary_stands_beside_with_the_same_suffix(tmp_path):
    with atomic_write(tmp_path / "picture.v2.png") as path:
        assert path.parent == tmp_path
        assert path.suffix == ".png"
        assert path.name != "picture.v2.png"
        path.touch()


def test_folders_are_made_and_text_paths_taken(tmp_path):
    with atomic_write(str(tmp_path / "new" / "deep" / "a.txt")) as path:
        path.write_text("x")
    assert (tmp_path / "new" / "deep" / "a.txt").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_temporary(tmp_path, error):
    target = tmp_path / "a.json"
    target.write_text("old")

    def fail():
        with atomic_write(target) as path:
            path.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_first_write_that_fails_leaves_an_empty_folder(tmp_path):
    def fail():
        with atomic_write(tmp_path / "a.json") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_killed_midway_leaves_the_old_file(tmp_path):
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2  # it was in the middle of writing
    with atomic_write(target) as path:  # and what it left stands in nobody's way
        path.write_bytes(b"newer")
    assert target.read_bytes() == b"newer"


def test_content_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    """Else a power cut could leave the new name on an empty file, or lose the name."""
    events = []
    plain_sync, plain_replace = os.fsync, Path.replace

    def fsync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        plain_sync(descriptor)

    def replace(path, target):
        events.append(("rename", path.stat().st_ino))
        return plain_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    with atomic_write(tmp_path / "a.json") as path:
        path.write_text("new")
        number = path.stat().st_ino
        assert events == []
    assert events == [("sync", number), ("rename", number), ("sync", tmp_path.stat().st_ino)]


def test_what_failed_is_not_synced_or_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    with contextlib.suppress(KeyError), atomic_write(tmp_path / "a.json") as path:
        path.write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_files_are_opened_to_write_where_they_are_synced_and_folders_are_not(tmp_path, monkeypatch):
    """Windows syncs no file that is opened to read, and cannot open a folder at all."""
    opened, plain = {}, os.open

    def watched(path, flags, *args, **options):
        opened[os.path.basename(path)] = flags & os.O_ACCMODE
        return plain(path, flags, *args, **options)

    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "open", watched)
    for name in ("file", "folder"):
        files._sync(tmp_path / name)
    assert opened == {"file": os.O_RDWR, "folder": os.O_RDONLY}
    opened.clear()
    monkeypatch.setattr(os, "name", "nt")
    try:
        for name in ("file", "folder"):
            files._sync(tmp_path / name)
    finally:
        monkeypatch.undo()
    assert opened == {"file": os.O_RDWR}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing counts open files here")
def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        with atomic_write(tmp_path / f"{number}.txt") as path:
            path.touch()
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_processes_do_not_write_to_one_temporary(tmp_path, monkeypatch):
    names = set()
    for pid in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        with atomic_write(tmp_path / "a.pt") as path:
            path.touch()
            names.add(path.name)
    assert names == {".a.11.tmp.pt", ".a.12.tmp.pt"}  # hidden, and found by what removes unfinished files


def test_a_folder_that_is_there_is_no_matter_and_a_file_in_its_place_is(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError), atomic_write(tmp_path / "file" / "a.txt"):  # noqa: PT011 - which one differs
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_json_is_indented_by_one_in_one_line_or_as_asked_in_ascii_and_ends_its_line(tmp_path):
    for options, text in (({}, '{\n "\\u00e9": [\n  1\n ]\n}\n'), ({"indent": None}, '{"\\u00e9": [1]}\n'),
                          ({"indent": 2}, '{\n  "\\u00e9": [\n    1\n  ]\n}\n')):  # fmt: skip
        write_json(tmp_path / "a.json", {"é": [1]}, **options)
        assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("error", "name"),
    [(OSError(28, "full"), "x.pt"), (OSError(28, "full", "other"), "other"), (OSError("a loader's own"), None)],
)
def test_errors_of_the_system_get_the_files_name_where_they_have_none(error, name):
    with pytest.raises(OSError) as found, named_failures(Path("x.pt")):  # noqa: PT011 - the very one
        raise error
    assert found.value is error
    assert error.filename == name


def test_the_model_of_a_runs_folder(tmp_path):
    assert model_file(tmp_path) == str(tmp_path)  # no run has finished here
    (tmp_path / "model.pt").touch()
    assert model_file(tmp_path) == model_file(str(tmp_path)) == model_file(tmp_path / "model.pt")
    assert model_file(tmp_path) == str(tmp_path / "model.pt")
