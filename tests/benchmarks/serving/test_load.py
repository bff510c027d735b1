"""The server under load: what the benchmark finds wrong, and a small run of it."""

import asyncio
import json

import pytest

from lookupvit_video.benchmarks.serving.load import differs, growth, problems
from lookupvit_video.benchmarks.serving.requests import Ask, Reply, hostile, post
from tests.benchmarks.test_end_to_end import ROOT
from tests.inference.serving.test_fetch import Host
from tests.inference.streaming.servers import serving
from tests.small import call_tool

ROW = {"path": "x", "classes": {"a": 0.75, "b": 0.25}, "times": [(0.0, 1.0)], "grid": "", "note": ""}


def reply(status=200, **changes):
    return Reply(status, json.loads(json.dumps({**ROW, **changes})), 0.1, 1.0)


@pytest.mark.parametrize(("changes", "line"), [
    ({"path": "other"}, ""), ({"classes": {"a": 0.750001, "b": 0.25}}, ""),
    ({"classes": {"a": 0.7501, "b": 0.25}}, "a probability differs by 0.0001"),
    ({"classes": {"a": 0.75}}, "classes: "), ({"times": [[0.0, 2.0]]}, "times: "),
    ({"error": "no"}, "'no' instead of None"),
])  # fmt: skip
def test_answers_are_compared_with_predicts(changes, line):
    found = differs(reply(**changes), ROW)
    assert found.startswith(line)
    assert bool(found) == bool(line)


def test_replies_that_are_not_as_they_should_be_are_problems():
    ask, bad = Ask("video", "x", frozenset([200]), None), Ask("huge", "", frozenset([413]), None)
    assert problems([ask], [reply()], {"x": ROW}) == []
    assert problems([ask], [reply(status=500)], {"x": ROW})[0].startswith("video x: status 500")
    assert problems([ask], [reply(grid="1")], {"x": ROW}) == ["video x: grid: 1 instead of "]
    assert problems([bad], [Reply(413, {"error": "too large"}, 0, 0)], {}) == []
    assert problems([bad], [Reply(413, {"error": "too\nlarge"}, 0, 0)], {})[0].startswith("huge: not one line")
    assert problems([bad], [Reply(413, None, 0, 0)], {})[0].startswith("huge: not one line")


def test_what_grows_is_a_leak():
    state = {"rss_mb": 1000, "handles": 40, "threads": 8, "processes": 5, "files": 1}
    assert growth([{**state, "handles": 10}, state, state]) == []
    assert growth([state, state, {**state, "rss_mb": 1049}]) == []
    assert growth([state, state, {**state, "handles": 41, "rss_mb": 1051}]) == [
        "handles: 40 grew to 41", "memory: 1000 MB grew to 1051 MB",
    ]  # fmt: skip


def test_requests_are_sent_and_replies_read():
    with serving(Host) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        found = asyncio.run(post(port, "/none", b"", method="GET"))
    assert (found.status, found.content) == (404, None)


def test_hostile_requests_are_of_all_kinds():
    assert len({ask.kind for ask in hostile({"x": b"video"}, 7, 10, 1.0)}) == 7


def test_a_small_load(tmp_path):
    done = call_tool(
        ROOT / "tools" / "benchmark.py", "serve", "--videos", 3, "--requests", 16, "--hostile", 0.45, "--rounds", 1,
        "--mixed-rounds", 1, "--workers", 1, "--cache", tmp_path, "--json", tmp_path / "a.json", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["problems"] == []
    assert facts["statuses"] == {
        "huge: 413": 1, "not a video: 422": 1, "slow body: 408": 1, "slow head: 0": 1, "truncated: 422": 1,
        "video: 200": 9, "wrong host: 403": 1, "wrong method: 405": 1,
    }  # fmt: skip
    assert facts["ratio"] > 0
    assert "0 problems" in done.stdout
