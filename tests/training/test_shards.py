"""A training on tar shards is the training on single files, to the bit: undisturbed, killed, and with any ranks."""

import os
import re
import signal
import sys
import time

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import training_checkpoints
from lookupvit_video.config import load_config
from lookupvit_video.data.loader import build_train_loader
from lookupvit_video.data.manifest import load_classes, load_split, read_table
from lookupvit_video.decoding.sources.shards import SUFFIX, find_member
from lookupvit_video.preparation.shards import make_shards
from tests.small import run_net, settings, started
from tests.training.test_resume import assert_same_end

OPTIONS = {
    "TRAIN__CHECKPOINT_STEPS": 1, "TRAIN__KEEP_CHECKPOINTS": 99, "AUG__NUM_SAMPLE": 2, "AUG__RE_PROB": 0.5,
    "MODEL__DROP_PATH": 0.2, "DATA__SAMPLER": "balanced", "TEST__ENABLE": False, "SOLVER__MAX_EPOCH": 3,
}  # fmt: skip
SHARDS = {"DATA__TRAIN_LIST": "packed.csv", "DATA__VAL_LIST": "packed.csv", "DATA__TEST_LIST": "packed.csv"}


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory):
    """The videos of the small data set, in several shards."""
    folder = tmp_path_factory.mktemp("packed")
    classes = (data / "classes.txt").read_text().splitlines()
    size = sum(video.stat().st_size for video in data.glob("*.mp4")) // 2
    assert len(make_shards(read_table(data / "train.csv", classes), classes, folder, "packed", size)) > 1
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The folder of a run on single files."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run_net(settings(data, folder, **OPTIONS))
    assert done.returncode == 0, done.stderr
    return folder


def test_kill_9_on_shards_ends_with_the_weights_of_files(packed, undisturbed, tmp_path):
    overrides = settings(packed, tmp_path, **OPTIONS, **SHARDS)
    command = [sys.executable, "tools/run_net.py", "--cfg", "tests/small.yaml", *overrides]
    with started(command) as process:
        while not training_checkpoints(tmp_path):
            assert process.poll() is None
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (last,) = training_checkpoints(tmp_path)[:1]
    again = run_net(overrides)
    assert again.returncode == 0, again.stderr
    assert f"{last.name}, step" in again.stderr
    assert_same_end(undisturbed, tmp_path)


def steps_of(folder, ranks, **lists):
    """What each step reads: rows, labels and clips, of all ranks."""
    cfg = load_config("tests/small.yaml", settings(folder, folder / "none", TRAIN__BATCH_SIZE=8, **OPTIONS, **lists))
    videos = load_split(cfg, "train", load_classes(cfg))
    found = []
    loaders = [build_train_loader(cfg, videos, total_steps=6, rank=rank, world_size=ranks) for rank in range(ranks)]
    for parts in zip(*loaders, strict=True):
        assert not any(part.errors for part in parts)
        found.append([torch.cat([getattr(part, name) for part in parts]) for name in ("indices", "labels", "clips")])
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_reads_the_clips_of_files_in_their_order(data, packed, ranks):
    for ours, theirs in zip(steps_of(packed, ranks, **SHARDS), steps_of(data, 1), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_damaged_member_is_named_and_left_out(packed, tmp_path):
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / "packed-000000.tar"
    assert (tmp_path / f"packed-000000.tar{SUFFIX}").exists()
    offset, size, _ = find_member(f"{damaged}/00000003.mp4")
    content = bytearray(damaged.read_bytes())
    content[offset + size // 2] ^= 1
    damaged.write_bytes(content)
    options = {**OPTIONS, **SHARDS, "SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "DATA__MAX_BAD_FRACTION": 0.5}
    done = run_net(settings(tmp_path, tmp_path / "run", **options))
    assert done.returncode == 0, done.stderr
    named = set(re.findall(r"packed-\d+\.tar/\d+\.mp4(?=: its bytes in the shard are not those)", done.stderr))
    assert named == {"packed-000000.tar/00000003.mp4"}
