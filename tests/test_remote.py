"""Lists, class lists, configs and checkpoints may be remote, where a handler is registered."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from iopath.common.file_io import PathHandler, PathManager

from lookupvit_video import remote
from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes, load_split, read_class_list, read_manifest
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.models.build import build_model
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.training.train import train
from tests.small import make_videos, settings

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
    monkeypatch.setattr(remote, "path_manager", PathManager())
    remote.path_manager.register_handler(handler)
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
    assert remote.joined(folder, name) == expected


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
