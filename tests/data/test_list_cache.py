"""Tables of long lists in files: made once, made again when the list changes, and never believed when damaged."""

import os
from pathlib import Path

import numpy as np
import pytest

from lookupvit_video.data import file_check, list_cache, manifest
from lookupvit_video.data.file_check import missing_files
from lookupvit_video.data.manifest import read_table
from lookupvit_video.errors import UserError

CLASSES = ["run", "jump"]
TEXT = "path,label\na.mp4,0\nb.mp4,1\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(list_cache, "CACHED_BYTES", 1)
    monkeypatch.setattr(list_cache, "CACHED_ROWS", 1)
    monkeypatch.setattr(list_cache, "_SETTLED", -1e9)
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def parsed(monkeypatch):
    """How often a list was parsed or a folder looked through."""
    calls = []
    for owner, name in ((manifest._Reader, "table"), (manifest, "_read_class_folders")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real: calls.append(1) or real(*a))
    return calls


def write(path, text=TEXT, seconds=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (seconds, seconds))
    return path


def labels(path, classes=CLASSES, **options):
    return read_table(path, classes, **options).columns["label"].tolist()


def test_a_list_is_parsed_once(folder, parsed):
    path = write(folder / "train.csv")
    tables = [read_table(path, CLASSES) for _ in range(3)]
    assert len(parsed) == 1
    assert {table.file.parent for table in tables} == {folder}
    assert tables[0] == tables[2]
    write(path, seconds=2000)  # the same bytes at another time
    assert labels(path) == [0, 1]
    assert len(parsed) == 1


def test_what_the_rows_depend_on_makes_another_table(folder, parsed):
    path = write(folder / "train.csv", "path,label\na.mp4,run\n")
    assert labels(path) == [0]
    assert labels(path, ["jump", "run"]) == [1]
    assert read_table(path, CLASSES, "/videos")[0].path == "/videos/a.mp4"
    assert read_table(path, CLASSES, multi_label=True)[0].labels == (0,)
    assert len(parsed) == 4


def test_a_list_that_changes_is_parsed_again(folder, parsed):
    path = write(folder / "train.csv")
    assert labels(path) == [0, 1]
    write(path, TEXT.replace("a.mp4,0", "a.mp4,1"), seconds=2000)  # of the same size
    assert labels(path) == [1, 1]


def test_a_list_written_just_now_is_known_by_its_checksum(folder, monkeypatch):
    monkeypatch.setattr(list_cache, "_SETTLED", 2.0)
    path = folder / "train.csv"
    folder.mkdir()
    path.write_text(TEXT)
    state = os.stat(path)
    assert labels(path) == [0, 1]
    path.write_text(TEXT.replace("a.mp4,0", "a.mp4,1"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # within one tick of the file system's clock
    assert labels(path) == [1, 1]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, None])
def test_a_damaged_table_is_made_again(folder, parsed, damage):
    path = write(folder / "train.csv")
    file = read_table(path, CLASSES).file
    file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    assert labels(path) == [0, 1]
    assert len(parsed) == 2


def test_a_folder_that_cannot_be_written_to(folder, tmp_path, monkeypatch):
    path = write(folder / "train.csv")
    real = list_cache.VideoTable.save

    def save(self, place, facts):
        if place.parent == folder:
            raise PermissionError(13, "read-only", str(place))
        real(self, place, facts)

    monkeypatch.setattr(list_cache.VideoTable, "save", save)
    assert read_table(path, CLASSES).file.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(list_cache.VideoTable, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    for file in (tmp_path / "cache").rglob("*.rows"):
        file.unlink()
    assert read_table(path, CLASSES).file is None


def test_class_folders_are_walked_once(folder, parsed):
    for name in ("run/a.mp4", "run/deep/b.mp4", "jump/c.mp4"):
        write(folder / name, "x")
    names = [Path(video.path).name for video in read_table(folder, CLASSES)]
    assert names == ["c.mp4", "a.mp4", "b.mp4"]
    assert [Path(video.path).name for video in read_table(folder, CLASSES)] == names
    assert len(parsed) == 1
    write(folder / "run/deep/z.mp4", "x")
    assert len(read_table(folder, CLASSES)) == 4
    assert len(parsed) == 2


def test_files_are_looked_up_once(folder, monkeypatch):
    rows = 5000
    write(folder / "train.csv", "path,label\n" + "a.mp4,0\n" * (rows - 1) + "b.mp4,0\n")
    write(folder / "a.mp4", "x")
    looks = []
    real = file_check._is_file
    monkeypatch.setattr(file_check, "_is_file", lambda path: looks.append(1) or real(path))

    def missing(how="all"):
        looks.clear()
        return [video.path for video in missing_files(read_table(folder / "train.csv", CLASSES), 0.1, how)]

    assert missing() == [str(folder / "b.mp4")]
    assert len(looks) == rows
    assert missing() == [str(folder / "b.mp4")]
    assert len(looks) == file_check.SAMPLE
    write(folder / "b.mp4", "x")
    assert missing() == []
    assert len(looks) == file_check.SAMPLE + rows
    (folder / "a.mp4").unlink()  # what a sample notices is looked up completely
    with pytest.raises(UserError, match=rf"line 2: video .*a\.mp4 does not exist \(and {rows - 2} more of {rows}\)"):
        missing()
    with pytest.raises(UserError, match="998 more of 1000"):
        missing("sample")
    assert missing("none") == []
    assert looks == []


def test_a_short_list_leaves_no_files(tmp_path):
    read_table(write(tmp_path / "train.csv"), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]
    assert np.array_equal(file_check.missing_rows(read_table(tmp_path / "train.csv", CLASSES), np.arange(2)), [0, 1])
