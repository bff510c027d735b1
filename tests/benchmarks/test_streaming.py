"""A decision of a streaming model next to a window's: two configs that differ in nothing else, and their costs."""

import json

import pytest

from lookupvit_video.benchmarks.streaming import both_configs, measure, table_of
from lookupvit_video.models.build import model_spec
from tests.models.test_models import SMALL
from tests.small import call_tool

SIZES = [*SMALL, "DATA.SAMPLING_RATE", "2"]


def test_the_configs_differ_in_the_clip_and_its_compressed_tokens_only():
    window, stream = both_configs(None, SIZES, 8, (2, 2, 3))
    assert (window.MODEL.STREAMING, stream.MODEL.STREAMING) == (False, True)
    assert (window.MODEL.COMPRESSED_GRID, stream.MODEL.COMPRESSED_GRID) == ([2, 2, 3], [1, 2, 3])
    assert window.DATA == stream.DATA
    assert window.DATA.NUM_FRAMES == 8
    assert window.MODEL.HEADS == stream.MODEL.HEADS == ["compressed"]
    window.defrost()
    window.MODEL.STREAMING, window.MODEL.COMPRESSED_GRID = True, [1, 2, 3]
    assert window == stream


def test_costs_are_of_one_decision_each(monkeypatch):
    configs = both_configs(None, SIZES, 8, (2, 2, 2))
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr("lookupvit_video.benchmarks.streaming.time.process_time", lambda: next(clock))
    found = measure(*configs, rounds=3)
    window, step = sum(model_spec(configs[0]).macs().values()), sum(model_spec(configs[1]).step_macs().values())
    assert found["window"] == {"macs": window, "ms": 2000.0, "lowest_ms": 2000.0, "highest_ms": 2000.0}
    assert found["step"]["macs"] == step
    assert found["macs_ratio"] == pytest.approx(window / step)
    assert found["macs_ratio"] > 3
    assert found["time_ratio"] == 1.0
    assert "window of 8 frames, 2x2x2" in table_of(found)
    assert "step, 1x2x2" in table_of(found)


def test_the_command(tmp_path):
    ran = call_tool("tools/benchmark.py", "streaming", "--frames", 4, "--grid", "2x2x2", "--rounds", 1, "--json",
                    tmp_path / "x.json", *SIZES)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "window / step" in ran.stdout
    assert json.loads((tmp_path / "x.json").read_text())["grid"] == [2, 2, 2]
