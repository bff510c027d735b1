"""Processes that torchrun starts again must not meet what the dead ones left in the store."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from lookupvit_video.distributed.restart_safe_store import restart_safe_store
from lookupvit_video.errors import RunFailure


@pytest.fixture
def server():
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def start(server, size, delays=(0, 0, 0), seconds=20):
    """Start processes, as threads with connections of their own; return the stores that they got."""

    def process(rank):
        time.sleep(delays[rank])
        client = TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=10))
        return restart_safe_store(client, rank, size, seconds)

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(process, rank) for rank in range(size)]]


def test_each_start_has_a_store_of_its_own(server):
    for delays in ((0, 0, 0), (0.5, 0, 0.2), (0, 0.5, 0.1)):  # whoever is first
        stores = start(server, 3, delays)
        assert not any(store.check(["address"]) for store in stores)  # of the start before
        stores[0].set("address", "here")
        assert [store.get("address") for store in stores] == [b"here"] * 3


def test_a_start_with_another_number_of_processes(server):
    start(server, 3)
    (alone,) = start(server, 1)
    two = start(server, 2)
    alone.set("address", "alone")
    assert not two[1].check(["address"])


@pytest.mark.parametrize(("rank", "missing"), [(0, "process 1, 2"), (1, "process 0")])
def test_who_does_not_come_is_named(server, rank, missing):
    start(server, 3)  # what they left does not count as coming
    client = TCPStore("localhost", server.port, is_master=False)
    with pytest.raises(RunFailure, match=f"^timed out after 0.3 s waiting for {missing}$"):
        restart_safe_store(client, rank, 3, 0.3)
