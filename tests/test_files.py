"""A file is written completely or not at all, also where the process is killed midway; paths may be remote."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from iopath.common.file_io import PathHandler, PathManager

from lookupvit_video import files
from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes, load_split, read_class_list, read_manifest
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.models.build import build_model
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.training.train import train
from tests.small import make_videos, settings

KILLED = """
import os, signal, sys
from lookupvit_video.files import atomic_write
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


# Remote paths ---------------------------------------------------------------------------------------------------------

PREFIX = "store://"


class Store(PathHandler):
    """A place whose files lie in a folder here, and are fetched from it."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.fetched = folder, []

    def _get_supported_prefixes(self):
        return [PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        self.fetched.append(path)
        return os.path.join(self.folder, path.removeprefix(PREFIX))


@pytest.fixture
def store(tmp_path, monkeypatch):
    handler = Store(tmp_path / "store")
    monkeypatch.setattr(files, "path_manager", PathManager())
    files.path_manager.register_handler(handler)
    return handler


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("data", "a.csv", "data/a.csv"),
        ("", "a.csv", "a.csv"),
        ("data", "/x/a.csv", "/x/a.csv"),
        ("data", "store://x/a.csv", "store://x/a.csv"),
        ("store://x/", "a.csv", "store://x/a.csv"),
        ("store://x", "/here/a.csv", "/here/a.csv"),
        ("d\udcff", "\udcfe.csv", "d\udcff/\udcfe.csv"),
    ],
)
def test_names_are_joined_to_local_and_remote_folders(folder, name, expected):
    assert files.joined(folder, name) == expected


def test_a_run_reads_config_lists_class_list_and_checkpoint_from_a_handler(store, tmp_path):
    make_videos(store.folder)
    root = Path(__file__).parent
    (store.folder / "base.yaml").write_bytes((root / "small.yaml").read_bytes())
    (store.folder / "run.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_EPOCH: 1}\n")
    overrides = settings(
        "", tmp_path / "run", **{"DATA.PATH_TO_DATA_DIR": "store://", "DATA.PATH_PREFIX": store.folder}
    )
    cfg = load_config("store://run.yaml", overrides)
    train(cfg, load_classes(cfg), World(0, 1, torch.device("cpu")))
    shutil.copy(tmp_path / "run" / "model.pt", store.folder / "model.pt")
    checkpoint = load_checkpoint("store://model.pt")
    assert checkpoint.classes == load_classes(cfg)
    tested = load_config("store://run.yaml", [*overrides, "TEST.CHECKPOINT_FILE_PATH", "store://model.pt"])
    assert len(load_split(tested, "test", checkpoint.classes)) == 9
    assert init_from(build_model(cfg), "store://model.pt")
    names = ["run.yaml", "base.yaml", "classes.txt", "train.csv", "val.csv", "test.csv", "model.pt"]
    assert {PREFIX + name for name in names} <= set(store.fetched)


@pytest.mark.parametrize("read", [load_config, load_checkpoint, read_class_list])
@pytest.mark.parametrize("path", ["store://gone", "other://x"])
def test_a_remote_file_that_is_missing_is_a_users_mistake(store, read, path):
    with pytest.raises(UserError, match=f"{path}: .*is a handler registered"):
        read(path)


def test_relative_paths_of_a_remote_list_need_a_prefix(store):
    store.folder.mkdir()
    (store.folder / "a.csv").write_text("path,label\na.mp4,0\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: videos are local files; set DATA\.PATH_PREFIX"):
        read_manifest("store://a.csv", ["x"])
    assert read_manifest("store://a.csv", ["x"], "/videos")[0].path == "/videos/a.mp4"
