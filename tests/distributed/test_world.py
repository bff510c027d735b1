"""How processes meet, vote and name the one that is missing: here with stand-ins, in several processes in
test_parallel.py."""

import socket
import threading
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed

from lookupvit_video.distributed import world as world_module
from lookupvit_video.distributed.world import (
    World,
    close_world,
    gather_objects,
    in_any_process,
    init_world,
    main_first,
    report_lost_processes,
)
from lookupvit_video.errors import RunFailure, UserError
from tests.gathering import Gathering

CPU = torch.device("cpu")
HERE = socket.gethostname()
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def started_by_torchrun(monkeypatch, rank, size):
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "node1", "MASTER_PORT": 1234}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def with_gpus(monkeypatch, count):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


# Names ------------------------------------------------------------------------------------------------------------


def test_the_first_process_is_the_main_one_and_each_has_a_name():
    assert [World(rank, 3, CPU).is_main for rank in range(3)] == [True, False, False]
    hosts = World(0, 3, CPU, ("a", "b", "b"))
    assert [hosts.name(rank) for rank in range(3)] == [
        "process 0 of 3 on a", "process 1 of 3 on b", "process 2 of 3 on b"
    ]  # fmt: skip
    assert World(0, 3, CPU).name(2) == "process 2 of 3"


def test_connections_are_no_part_of_what_a_world_is():
    connected = World(0, 3, CPU, ("a",), control="gloo's", store="the store")
    assert connected == World(0, 3, CPU, ("a",))
    assert repr(connected) == "World(rank=0, size=3, device=device(type='cpu'), hosts=('a',))"


# Starting ---------------------------------------------------------------------------------------------------------


def test_alone_without_torchrun(monkeypatch):
    with_gpus(monkeypatch, 0)
    assert init_world() == World(0, 1, CPU, (HERE,))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert init_world() == World(0, 1, CPU, (HERE,))
    assert not distributed.is_initialized()


def test_each_process_takes_the_gpu_of_its_place_on_the_machine(monkeypatch):
    chosen = with_gpus(monkeypatch, 3)
    assert init_world().device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert init_world().device == torch.device("cuda", 2)
    assert chosen == [torch.device("cuda", 0), torch.device("cuda", 2)]
    for place in (3, 4):
        monkeypatch.setenv("LOCAL_RANK", str(place))
        with pytest.raises(ValueError, match=f"process {place} has no GPU of its own; this machine has 3"):
            init_world()


def test_processes_that_have_met_already_do_not_meet_again(monkeypatch):
    with_gpus(monkeypatch, 0)
    started_by_torchrun(monkeypatch, 1, 2)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(world_module, "_join", lambda *_: pytest.fail("met again"))
    assert init_world() == World(1, 2, CPU)


class Meeting:
    """Stands in for torch's rendezvous and process groups."""

    def __init__(self, monkeypatch, size):
        self.store, self.groups, self.waited = distributed.HashStore(), [], []
        self.store.set_timeout(timedelta(seconds=2))
        for other in range(size):
            self.store.set(f"join/{other}", f"host{other}")
        control = distributed.ProcessGroup(0, size)
        self.control = control
        monkeypatch.setattr(world_module, "rendezvous", self.rendezvous)
        monkeypatch.setattr(world_module, "restart_safe_store", lambda store, rank, size, seconds: store)
        monkeypatch.setattr(distributed, "init_process_group", lambda *args, **given: self.groups.append((args, given)))
        monkeypatch.setattr(distributed, "new_group", lambda **given: self.groups.append(((), given)) or control)

    def rendezvous(self, url, timeout):
        self.waited.append(timeout)
        yield self.store, 0, 1


@pytest.mark.parametrize(("gpus", "backend", "patience"), [(0, "gloo", 50), (3, "cpu:gloo,cuda:nccl", 170)])
def test_the_others_are_waited_for_as_long_as_asked(monkeypatch, gpus, backend, patience):
    """The group of GPUs gives up later than the one of CPUs, which names who is missing."""
    with_gpus(monkeypatch, gpus)
    started_by_torchrun(monkeypatch, 0, 3)
    meeting = Meeting(monkeypatch, 3)
    world = init_world(timeout=50, join_timeout=7)
    assert (world.rank, world.size, world.hosts) == (0, 3, (HERE, "host1", "host2"))
    assert world.control is meeting.control
    assert world.store is meeting.store
    assert meeting.waited == [timedelta(seconds=7)]
    (args, given), (_, control) = meeting.groups
    assert args == (backend,)
    assert given == {"store": meeting.store, "rank": 0, "world_size": 3, "timeout": timedelta(seconds=patience)}
    assert control == {"backend": "gloo", "timeout": timedelta(seconds=50)}


def test_by_default_an_operation_may_take_half_an_hour_and_joining_five_minutes(monkeypatch):
    with_gpus(monkeypatch, 0)
    started_by_torchrun(monkeypatch, 0, 2)
    meeting = Meeting(monkeypatch, 2)
    init_world()
    assert meeting.waited == [timedelta(minutes=5)]
    assert [given["timeout"] for _, given in meeting.groups] == [timedelta(minutes=30)] * 2


@pytest.mark.parametrize("missing", NAMES[:1] + NAMES[3:])
def test_half_of_what_torchrun_sets_is_no_start(monkeypatch, missing):
    with_gpus(monkeypatch, 0)
    started_by_torchrun(monkeypatch, 0, 2)
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=f"process 0 of 2 on {HERE}: WORLD_SIZE is set but not {missing}; start with"):
        init_world()


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        ("rendezvous", RuntimeError("timed out.\nmore"), r"cannot reach the others at node1:1234 \(timed out\); check"),
        ("rendezvous", OSError(), r"cannot reach the others at node1:1234 \(OSError\); check that torchrun"),
        (
            "restart_safe_store",
            RunFailure("waited for process 1"),
            r"waited for process 1; check that torchrun runs on every",
        ),
        ("restart_safe_store", distributed.DistNetworkError("x"), r"lost process 0; check that torchrun runs on every"),
        (
            "init_process_group",
            RuntimeError("no route\n"),
            r"found the others at node1:1234 but .* \(no route\); set G",
        ),
    ],
)
def test_a_failure_names_the_stage_and_what_to_check(monkeypatch, stage, error, message):
    with_gpus(monkeypatch, 0)
    started_by_torchrun(monkeypatch, 1, 2)
    Meeting(monkeypatch, 2)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(distributed if stage == "init_process_group" else world_module, stage, fail)
    with pytest.raises(RunFailure, match=f"^process 1 of 2 on {HERE} {message}"):
        init_world()


def test_leaving(monkeypatch):
    left = []
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: left.append(1))
    close_world()
    assert left == []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    close_world()
    assert left == [1]


# Talking ----------------------------------------------------------------------------------------------------------


def test_alone_there_is_nobody_to_ask():
    alone = World(0, 1, CPU)
    assert gather_objects({"a": 1}, alone) == [{"a": 1}]
    assert in_any_process(alone, True, False) == [True, False]
    assert in_any_process(alone) == []


def test_values_of_all_processes_by_rank(monkeypatch):
    def all_gather_object(values, own):
        values[:] = ["zero", own, "two"]

    monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)
    assert gather_objects("one", World(1, 3, CPU)) == ["zero", "one", "two"]


REDUCTIONS = {
    distributed.ReduceOp.MAX: torch.maximum, distributed.ReduceOp.MIN: torch.minimum,
    distributed.ReduceOp.PRODUCT: torch.mul, distributed.ReduceOp.SUM: torch.add,
}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "others", "wanted"),
    [
        ((False, False), [(True, False)], [True, False]),
        ((True, False), [(False, False), (False, False)], [True, False]),
        ((True, True), [(False, True)], [True, True]),
        ((False, False), [(False, False)], [False, False]),
    ],
)
def test_one_process_is_enough_to_stop_all(monkeypatch, own, others, wanted):
    groups = []

    def all_reduce(votes, op=distributed.ReduceOp.SUM, group=None):
        groups.append(group)
        for other in others:
            votes.copy_(REDUCTIONS[op](votes, torch.tensor(other, dtype=votes.dtype)))

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    world = World(0, 1 + len(others), CPU, control="gloo's")
    assert in_any_process(world, *own) == wanted
    assert groups == ["gloo's"]  # over the group that waits for no GPU


# Missing ones -----------------------------------------------------------------------------------------------------


def test_who_does_not_come_is_absent():
    store = distributed.HashStore()
    began = time.monotonic()
    assert world_module._absent(store, "join", World(1, 4, CPU), 0.3) == [0, 2, 3]
    assert 0.3 <= time.monotonic() - began < 10
    assert store.get("join/1").decode() == HERE
    assert world_module._absent(store, "join", World(3, 4, CPU), 0.1) == [0, 2]
    assert world_module._absent(store, "lost contact", World(3, 4, CPU), 0.1) == [0, 1, 2]  # another occasion
    threading.Timer(0.2, lambda: [store.set(f"join/{rank}", "x") for rank in (0, 2)]).start()
    assert world_module._absent(store, "join", World(3, 4, CPU), 20) == []
    assert world_module._absent(store, "join", World(3, 4, CPU), 0) == []


def test_waiting_leaves_the_store_to_others():
    class Counting:
        def __init__(self):
            self.looks = 0

        def set(self, *_):
            pass

        def check(self, names):
            self.looks += 1
            return False

    store = Counting()
    assert world_module._absent(store, "join", World(0, 2, CPU), 0.3) == [0, 1]
    assert store.looks < 12


def test_where_the_store_is_gone_the_first_process_is():
    class Gone:
        def set(self, *_):
            raise distributed.DistNetworkError("connection reset")

    assert world_module._absent(Gone(), "join", World(1, 2, CPU), 5) == [0]


def test_a_process_that_is_lost_is_named():
    store = distributed.HashStore()
    store.set("lost contact/0", "here")
    world = World(0, 3, CPU, ("here", "there", "yonder"), store=store)
    for error in (distributed.DistNetworkError("reset by peer\nmore"), RuntimeError("[..] Gloo: reset by peer\nx")):
        with pytest.raises(RunFailure) as told, report_lost_processes(world, seconds=0.1):
            raise error
        assert str(told.value).startswith(f"lost contact ({str(error).splitlines()[0]}); no answer within 0.1 s from ")
        assert "process 1 of 3 on there, process 2 of 3 on yonder: " in str(told.value)
        assert "process 0" not in str(told.value)


@pytest.mark.parametrize("store", [False, True])
def test_where_all_answer_it_is_the_network(store):
    met = distributed.HashStore()
    met.set("lost contact/1", "there")
    with pytest.raises(RunFailure, match=r"^lost contact \(reset\); all processes respond"), \
            report_lost_processes(World(0, 2, CPU, store=met if store else None), seconds=0.1):  # fmt: skip
        raise distributed.DistNetworkError("reset")


@pytest.mark.parametrize("error", [RunFailure("gloo too"), RuntimeError("shapes differ"), KeyError("gloo")])
def test_other_errors_stay_what_they_are(monkeypatch, error):
    monkeypatch.setattr(world_module, "_absent", lambda *_: pytest.fail("asked"))
    with pytest.raises(type(error)) as found, report_lost_processes(World(0, 2, CPU, store=distributed.HashStore())):
        raise error
    assert found.value is error
    with report_lost_processes(World(0, 2, CPU)):
        pass


# In turn ------------------------------------------------------------------------------------------------------------


def in_threads(monkeypatch, worlds, work):
    """What ``main_first`` returns or raises for each of some processes, which are threads here."""
    results = {}

    def run(world):
        try:
            results[world.rank] = main_first(world, lambda main: work(world.rank, main))
        except UserError as error:
            results[world.rank] = str(error)

    monkeypatch.setattr(world_module, "gather_objects", Gathering(len(worlds)))
    threads = [threading.Thread(target=run, args=(world,)) for world in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [results[world.rank] for world in worlds]


def test_the_main_process_works_before_all_others(monkeypatch):
    begun = []

    def work(rank, main):
        begun.append((rank, main))
        time.sleep(0.02)
        return rank

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert in_threads(monkeypatch, [World(rank, 3, CPU) for rank in range(3)], work) == [0, 1, 2]
    assert begun[0] == (0, True)
    assert sorted(begun[1:]) == [(1, False), (2, False)]
    assert main_first(World(0, 1, CPU), lambda main: main)


def test_a_mistake_that_the_main_process_finds_is_raised_in_all(monkeypatch):
    def work(rank, main):
        if main:
            raise UserError("train.csv, line 3: no path")
        pytest.fail("works although the main process failed")

    found = in_threads(monkeypatch, [World(rank, 3, CPU) for rank in range(3)], work)
    assert found == ["train.csv, line 3: no path"] * 3
