"""Files of features: the same bytes whatever the order and the number of runs, and complaints about other ones."""

import json
import threading

import numpy as np
import pytest
import torch

from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.inference.features import store
from lookupvit_video.inference.features.extract import VideoFeatures
from lookupvit_video.inference.features.store import FeatureFile, check_name, load_features, shared_feature_file
from tests.gathering import Gathering

ABOUT = {"tokens": "pooled", "grid": "1x2x2", "model": "abc"}
SUFFIXES = [".npy", ".safetensors",
            pytest.param(".parquet", marks=pytest.mark.skipif("not __import__('importlib').util.find_spec('pyarrow')",
                                                              reason="needs pyarrow"))]  # fmt: skip


def video(number, rows=2, shape=(3,)):
    values = np.random.default_rng(number).normal(size=(rows, *shape)).astype(np.float32)
    return VideoFeatures(f"{number}é.mp4", np.arange(2 * rows, dtype=float).reshape(-1, 2) + number / 3, values)


NAMES = [video(number).path for number in range(5)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("half", "shape"), [(False, (3,)), (True, (2, 3))])
def test_what_is_saved_is_read(tmp_path, suffix, half, shape):
    path = tmp_path / f"f{suffix}"
    videos = [video(0, 2, shape), video(1, 1, shape), video(2, 3, shape)]
    with FeatureFile(path, ABOUT, half=half) as file:
        file.add([videos[2]])
        file.add(videos[:2])
        assert file.finish([item.path for item in videos]) == 6
    saved = load_features(path)
    kind = np.float16 if half else np.float32
    assert saved.about == {**ABOUT, "dtype": np.dtype(kind).name}
    for found, expected in zip(saved.videos(), videos, strict=True):
        assert found.path == expected.path
        assert np.array_equal(found.times, expected.times)
        assert np.array_equal(found.rows, expected.rows.astype(kind))
    assert sorted(item.name for item in tmp_path.iterdir() if item.suffix != ".json") == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_bytes_after_a_kill_and_resume(tmp_path, suffix):
    once, often = tmp_path / f"once{suffix}", tmp_path / f"often{suffix}"
    with FeatureFile(once, ABOUT) as file:
        file.add([video(number) for number in range(5)])
        file.finish(NAMES)

    def interrupted():
        with FeatureFile(often, ABOUT) as file:
            file.add([video(3), video(1)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    folder = tmp_path / f"often{suffix}.partial"
    with (folder / "rows.bin").open("ab") as rows, (folder / "videos.jsonl").open("a") as index:
        rows.write(b"cut off")
        index.write('{"videos": [["4')
    with FeatureFile(often, ABOUT, resume=True) as file:
        assert file.done == {NAMES[3], NAMES[1]}
        file.add([video(0), video(4)])
        file.finish(NAMES)
    assert not folder.exists()
    with FeatureFile(often, ABOUT, resume=True) as file:  # a finished file is resumed too
        assert file.done == {NAMES[number] for number in (0, 1, 3, 4)}
        file.add([video(2)])
        file.finish(NAMES)
    assert often.read_bytes() == once.read_bytes()
    if suffix == ".npy":
        assert (tmp_path / "often.npy.json").read_bytes() == (tmp_path / "once.npy.json").read_bytes()
    with FeatureFile(often, ABOUT) as file:  # without resume from the start
        assert file.done == set()
        assert file.finish(NAMES) == 0
    assert often.read_bytes() == once.read_bytes()  # nothing new: the old file stays


def test_other_settings_are_not_mixed(tmp_path):
    path = tmp_path / "f.npy"
    with FeatureFile(path, ABOUT) as file:
        file.add([video(0)])
        file.finish(NAMES)
    with pytest.raises(UserError, match=r"--resume: made with model abc, now xyz; write to another file"):
        FeatureFile(path, {**ABOUT, "model": "xyz"}, resume=True)
    with pytest.raises(UserError, match="made with dtype float32, now float16"):
        FeatureFile(path, ABOUT, resume=True, half=True)
    with FeatureFile(path, ABOUT), pytest.raises(UserError, match="already writing there"):
        FeatureFile(path, ABOUT)


def test_files_that_are_not_of_this_project(tmp_path):
    with pytest.raises(UserError, match=r"x.txt: a file of features ends in .npy, .safetensors, .parquet"):
        check_name("x.txt")
    with pytest.raises(UserError, match=r"none.npy: cannot be read \(No such file"):
        load_features(tmp_path / "none.npy")
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    for text in ("{}", "[]", "nonsense", json.dumps({"about": {}, "paths": ["a"], "times": [[0, 1]]})):
        (tmp_path / "x.npy.json").write_text(text)
        with pytest.raises(UserError, match=r"x.npy: .*damaged"):
            load_features(tmp_path / "x.npy")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"x.safetensors: no features of this project, or damaged"):
        load_features(tmp_path / "x.safetensors")


def test_parquet_needs_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "lookupvit_video\[parquet\]", or write .npy'):
        store.check_name("x.parquet")


# Several processes ----------------------------------------------------------------------------------------------------


def shared(monkeypatch, path, size, resume=False, dies=()):
    """Let processes, which are threads here, add five videos to a file; those in ``dies`` stop after one video."""
    gather, added, errors = Gathering(size), [], []

    def work(rank):
        world = World(rank, size, torch.device("cpu"))
        try:
            with shared_feature_file(path, ABOUT, NAMES, resume=resume, half=False, world=world) as (file, done):
                left = [number for number in range(5) if NAMES[number] not in done][rank::size]
                for count, number in enumerate(left):
                    if count and rank in dies:
                        gather.abort()  # as torchrun, which ends all
                        raise RuntimeError("killed")
                    file.add([video(number)])
                    added.append(number)
        except (RuntimeError, UserError) as error:
            errors.append(str(error))

    monkeypatch.setattr(store, "gather_objects", gather)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return added, errors


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("then", [1, 2, 3])
def test_a_killed_run_is_resumed_by_any_number_of_processes(tmp_path, monkeypatch, suffix, then):
    once, often = tmp_path / f"once{suffix}", tmp_path / "often" / f"f{suffix}"
    often.parent.mkdir()
    assert shared(monkeypatch, once, 1)[1] == []
    first, errors = shared(monkeypatch, often, 2, dies=(0,))
    assert "killed" in errors
    assert not often.exists()
    assert len(list(often.parent.glob(".f.part-*.partial"))) == 2
    second, errors = shared(monkeypatch, often, then, resume=True)
    assert errors == []
    assert sorted(first + second) == list(range(5))
    assert often.read_bytes() == once.read_bytes()
    assert {file.suffix for file in often.parent.iterdir()} <= {suffix, ".json"}


def test_parts_of_another_run_are_not_taken(tmp_path, monkeypatch):
    shared(monkeypatch, tmp_path / "f.npy", 2, dies=(0,))
    with FeatureFile(tmp_path / "f.npy", ABOUT) as file:
        assert file.done == set()
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_raised_in_all_processes(tmp_path, monkeypatch):
    with FeatureFile(tmp_path / "f.npy", {**ABOUT, "grid": "other"}) as file:
        file.add([video(0)])
        file.finish(NAMES)
    _, errors = shared(monkeypatch, tmp_path / "f.npy", 2, resume=True)
    assert len(errors) == 2
    assert all("made with grid other" in error for error in errors)
