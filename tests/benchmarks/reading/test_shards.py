"""What `lookupvit benchmark shards` measures: the same videos both ways, from the disk and over HTTP."""

import os
import time
import urllib.request
from pathlib import Path

import pytest

from lookupvit_video.benchmarks.reading import shards
from lookupvit_video.benchmarks.reading.server import served
from lookupvit_video.benchmarks.videos import make_videos
from lookupvit_video.data.manifest import read_manifest, read_table
from lookupvit_video.decoding.sources.held_bytes import read_held


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return shards.make_lists(tmp_path_factory.mktemp("cache"), "tiny", 16)


def test_both_lists_hold_the_same_videos(place):
    originals = make_videos(place.parent, ["tiny"], 4)["tiny"]
    files, packed = (read_table(place / f"{name}.csv", ["one"]) for name in shards.LISTS)
    for number, (one, other) in enumerate(zip(files, packed, strict=True)):
        content = originals[number % 4].read_bytes()
        assert Path(one.path).read_bytes() == read_held(other.path) == content


def test_the_server_answers_ranges_after_its_latency(place):
    name = next(place.glob("*.tar")).name
    with served(place, 0.2) as address:
        request = urllib.request.Request(f"{address}/{name}", headers={"Range": "bytes=5-99"})
        clock = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == (place / name).read_bytes()[5:100]
        assert time.perf_counter() - clock >= 0.2


def test_http_reads_every_video_from_an_empty_cache(place, monkeypatch):
    pytest.importorskip("aiohttp")
    seen = []
    monkeypatch.setenv("LOOKUPVIT_CACHE", "mine")

    def read(videos):
        seen.append((os.environ["LOOKUPVIT_CACHE"], shards.read_bytes_of(videos)))
        return seen[-1][1]

    with served(place, 0) as address:
        for name in shards.LISTS:
            assert shards.over_http(read_manifest(place / f"{name}.csv", ["one"], address), read) > 0
    assert [count for _, count in seen] == [16, 16]
    assert len({folder for folder, _ in seen} - {"mine"}) == 2
    assert os.environ["LOOKUPVIT_CACHE"] == "mine"


def test_the_disk_is_read_in_turns(place):
    found = shards.on_disk(place, 64)
    assert [len(found[name]) for name in shards.LISTS] == [1, 1]  # two batches, without the first


def test_the_report_has_ratios_of_the_same_round():
    rates = {"files": [10.0, 20.0, 40.0], "packed": [20.0, 20.0, 20.0]}
    text = shards.report([{"kind": "tiny", "read": "disk", "per_second": rates}])
    assert text.splitlines()[2].endswith("| disk | 20.0 (10.0 to 40.0) | 20.0 (20.0 to 20.0) | 1.00 (0.50 to 2.00) |")
