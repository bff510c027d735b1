"""lookupvit predict --ray on a cluster of two nodes on this machine, one of which is killed in the middle.

LOOKUPVIT_RAY_VIDEOS=400 in the environment: as many videos.
"""

import json
import os
import threading
import time

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.commands.inference import ray_data
from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import ROOT, call_tool
from tests.videos import write_video

TOOL = "tools/predict.py"
VIDEOS = int(os.environ.get("LOOKUPVIT_RAY_VIDEOS", "40"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, one that is none, and a checkpoint."""
    folder = tmp_path_factory.mktemp("ray")
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2"])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=list("abcde"), model=build_model(cfg))
    (folder / "clips").mkdir()
    for number in range(VIDEOS - 1):
        write_video(folder / "clips" / f"{number:03d}.mp4", frames=12, size=(64, 48), first_number=10 * number)
    (folder / "clips" / "bad.mp4").write_text("hello")
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(1500)
def test_a_node_that_is_killed_loses_no_video(folder, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    out, alone = tmp_path / "answers.jsonl", tmp_path / "alone.jsonl"
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_data, "_VIDEOS", max(VIDEOS // 20, 2))
    options = ["--checkpoint", folder / "model.pt", folder / "clips", "--device", "cpu"]
    memory = 100 << 20
    cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    killed_at = []

    def kill():
        while not killed_at:
            count = len(rows_of(out)) if out.exists() else 0
            if count >= VIDEOS // 3:
                killed_at.append(count)
                cluster.remove_node(nodes[1], allow_graceful=False)
            time.sleep(0.05)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        done = call_tool(TOOL, *options, "--ray", cluster.address, "--json", out)
    finally:
        killed_at.append(-1)
        killer.join(60)
        ray.shutdown()
        cluster.shutdown()
    assert done.returncode == 1, done.stderr
    assert "3 nodes, 2 actors on a core each" in done.stderr
    assert f"{VIDEOS - 1} answered, 1 failed" in done.stderr
    assert VIDEOS // 3 <= killed_at[0] < VIDEOS
    assert call_tool(TOOL, *options, "--workers", 0, "--json", alone).returncode == 1
    answers, expected = ({row["path"]: row for row in rows_of(path)} for path in (out, alone))
    assert len(rows_of(out)) == len(answers) == VIDEOS
    assert answers.keys() == expected.keys()
    for path, row in expected.items():
        assert answers[path].keys() == row.keys()
        assert answers[path].get("times") == row.get("times")
        assert answers[path].get("error") == row.get("error")
        assert answers[path].get("classes", {}) == pytest.approx(row.get("classes", {}), abs=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ([], "--ray: the answers go to a file"),
    (["--json", "a.jsonl", "--int8"], "--ray: --int8 is for predictions without it"),
    (["--json", "a.jsonl", "--latency-ms", "3"], "--ray: --latency-ms is for"),
    (["--json", "a.jsonl", "--device", "cuda:1"], "--ray: Ray places the actors; --device is auto or cpu"),
])  # fmt: skip
def test_what_actors_cannot_do_is_refused(folder, tmp_path, options, message):
    done = call_tool(ROOT / TOOL, "--checkpoint", folder / "model.pt", folder / "clips", "--ray", "local", *options,
                     folder=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_fix_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    done = call_tool(TOOL, "--checkpoint", folder / "model.pt", folder / "clips", "--ray", "local",
                     "--json", tmp_path / "a.jsonl")  # fmt: skip
    assert done.returncode == 2
    assert 'pip install "lookupvit_video[ray]"' in done.stderr
