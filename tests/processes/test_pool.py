"""Work in processes apart: real crashes, kills and hangs, each at the cost of its own task."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lookupvit_video.errors import RunFailure
from lookupvit_video.processes.pool import IsolatedPool, run_isolated
from tests.busy import busy_core, compete, for_real


def work(task):
    """Do to this process what the task says."""
    if isinstance(task, signal.Signals):
        os.kill(os.getpid(), task)
    if isinstance(task, Path):  # a folder to meet the others in
        (task / str(os.getpid())).touch()
        while len(list(task.iterdir())) < 3:
            time.sleep(0.01)
    if task == "hang":
        time.sleep(600)
    if task == "pause":
        time.sleep(1.5)
    if isinstance(task, tuple):  # a file that counts attempts, and how many of them hang
        with task[0].open("a") as file:
            file.write("x")
        if len(task[0].read_text()) <= task[1]:
            time.sleep(600)
    if isinstance(task, float):  # seconds of one processor
        compete(task)
    if task == "exit":
        os._exit(3)
    if task == "raise":
        raise KeyError("a bug")
    if task == "memory":
        return bytearray(1 << 60)
    if task == "cannot be sent":
        return lambda: None
    return task, os.getpid()


def die_on_arrival():
    raise SystemExit(5)


class BadOnArrival:
    def __reduce__(self):
        return die_on_arrival, ()

    def __call__(self, task):
        return task


def outcomes(tasks, processes=2, timeout=30.0):
    found = list(run_isolated(work, tasks, processes=processes, timeout=timeout))
    assert sorted(outcome.number for outcome in found) == list(range(len(tasks)))
    return [outcome for _, outcome in sorted((outcome.number, outcome) for outcome in found)]


def test_every_task_has_its_answer_from_as_many_processes(tmp_path):
    found = outcomes(list(range(40)), processes=2)
    assert [outcome.answer[0] for outcome in found] == list(range(40))
    assert all(outcome.lost is None for outcome in found)
    assert os.getpid() not in {outcome.answer[1] for outcome in found}
    assert len({outcome.answer[1] for outcome in outcomes([tmp_path] * 5, processes=3)}) == 3
    assert outcomes([]) == []


def test_what_dies_or_fails_costs_one_task():
    bad = [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, "exit", "raise", "memory", "cannot be sent"]
    found = outcomes(["a", *bad, "b", *bad, "c"])
    lost = {str(task): outcome.lost for task, outcome in zip(["a", *bad], found, strict=False)}
    assert lost.pop("a") is None
    assert {task: cause for task, (cause, _) in lost.items()} == {
        str(task): {"raise": "error", "memory": "memory"}.get(task, "crash") for task in bad
    }
    assert "SIGSEGV" in lost[str(signal.SIGSEGV)].detail
    assert "SIGKILL, perhaps because memory ran out" in lost[str(signal.SIGKILL)].detail
    assert "exit code 3" in lost["exit"].detail
    assert lost["raise"].detail == "internal error, KeyError: 'a bug'"
    assert [found[number].answer[0] for number in (0, 8, 16)] == ["a", "b", "c"]


def test_a_hanging_task_is_ended_and_its_process_replaced():
    start = time.monotonic()
    found = outcomes(["hang", "a", "b", "hang"], processes=1, timeout=0.5)
    assert time.monotonic() - start < 60
    assert [outcome.lost and outcome.lost.detail for outcome in found] == ["took longer than 0.5 s", None, None,
                                                                         "took longer than 0.5 s"]  # fmt: skip
    assert found[1].answer[1] == found[2].answer[1]


def test_time_without_a_processor_does_not_count(monkeypatch):
    """Pretended: for the first 3 s of a task, its process was ready to run and others had the processor."""
    began = {}

    def pretended(process):
        return min(time.monotonic() - began.setdefault(process, time.monotonic()), 3.0)

    monkeypatch.setattr("lookupvit_video.processes.pool.seconds_without_processor", pretended)
    start = time.monotonic()
    found = outcomes(["pause", "hang"], processes=2, timeout=0.5)
    assert [outcome.lost and outcome.lost.cause for outcome in found] == [None, "timeout"]
    assert 3.4 < time.monotonic() - start


@for_real
def test_a_busy_machine_condemns_nothing(tmp_path):
    """Seven processes on one core: a task of 0.3 s takes 2 s and more, and has 0.9 s."""
    with busy_core():
        start = time.monotonic()
        found = outcomes([0.3, "hang", 0.3], processes=2, timeout=0.9)
        took = time.monotonic() - start
    assert took > 1.5, "the machine was busy"
    assert [outcome.lost and outcome.lost.cause for outcome in found] == [None, "timeout", None]


def test_what_times_out_is_tried_again_alone(tmp_path):
    tasks = [(tmp_path / "a", 1), "b", (tmp_path / "c", 0), (tmp_path / "d", 2)]
    found = list(run_isolated(work, tasks, processes=2, timeout=0.7, second_try=True))
    lost = {outcome.number: outcome.lost and outcome.lost.cause for outcome in found}
    assert lost == {0: None, 1: None, 2: None, 3: "timeout"}
    assert [outcome.number for outcome in found][2:] == [0, 3], "in order, after all others"
    assert [len((tmp_path / name).read_text()) for name in "acd"] == [2, 1, 2]


def test_a_hanging_disk_is_not_waited_for_again_and_again(tmp_path):
    tasks = [(tmp_path / str(number), 9) for number in range(6)]
    found = list(run_isolated(work, tasks, processes=6, timeout=0.5, second_try=True))
    assert [outcome.lost.cause for outcome in found] == ["timeout"] * 6
    assert sorted(len(path.read_text()) for path in tmp_path.iterdir()) == [1, 1, 1, 2, 2, 2]


def test_a_process_works_on_its_next_task_while_the_caller_uses_an_answer(tmp_path):
    file = tmp_path / "x"
    running = run_isolated(work, ["a", (file, 0)], processes=1, timeout=60)
    next(running)
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.exists()
    assert [outcome.number for outcome in running] == [1]


def test_a_task_killed_from_outside_is_reported():
    running = run_isolated(work, ["a", "hang", "b"], processes=1, timeout=60)
    before = {child.pid for child in multiprocessing.active_children()}
    assert next(running).answer[0] == "a"
    (child,) = [child for child in multiprocessing.active_children() if child.pid not in before]
    os.kill(child.pid, signal.SIGKILL)  # the next task may have been handed over already, or not yet
    rest = list(running)
    assert [(outcome.number, outcome.lost.cause if outcome.lost else None) for outcome in rest][-1] == (2, None)
    assert rest[0].lost.cause == "crash"


def test_no_process_is_left_behind():
    before = set(multiprocessing.active_children())
    outcomes(["a", signal.SIGSEGV, "b"])
    running = run_isolated(work, ["a", "hang", "hang"], processes=2, timeout=60)
    next(running)
    running.close()
    assert set(multiprocessing.active_children()) <= before


def test_processes_that_cannot_start_are_no_lost_task():
    with pytest.raises(RunFailure, match=r"ended before its first task \(exit code \d\)"):
        list(run_isolated(BadOnArrival(), [1], processes=1, timeout=60))


@pytest.fixture
def pool():
    pool = IsolatedPool(work, processes=2, timeout=1.0)
    yield pool
    pool.close()
    assert not multiprocessing.active_children()


def test_threads_share_processes_that_stay(pool):
    with ThreadPoolExecutor(5) as threads:
        found = [outcome.answer for outcome in threads.map(pool.run, range(30))]
    assert [task for task, _ in found] == list(range(30))
    assert len({process for _, process in found}) == 2


def test_a_process_that_is_lost_is_replaced_and_one_that_errs_is_not(pool):
    before = {pool.run(0).answer[1] for _ in range(2)}
    assert [pool.run(task).lost.cause for task in ("raise", "memory")] == ["error", "memory"]
    assert {pool.run(0).answer[1] for _ in range(2)} == before
    assert [pool.run(task).lost.cause for task in ("exit", "hang", signal.SIGSEGV)] == ["crash", "timeout", "crash"]
    after = {pool.run(0).answer[1] for _ in range(2)}
    assert len(after) == 2
    assert not after & before
    assert len(multiprocessing.active_children()) == 2


def test_a_thread_whose_pool_is_closed_under_it_gets_a_lost_outcome(pool, monkeypatch):
    send = pool._workers[0].__class__.send
    monkeypatch.setattr(pool._workers[0].__class__, "send", lambda *given: (pool.close(), send(*given)))
    assert pool.run(0).lost.cause == "crash"


def close_under(pool, threads):
    """Close a pool while threads wait for its answers, and wait for their ends."""
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    pool.close()
    for thread in threads:
        thread.join(10)


def test_closing_a_pool_ends_what_waits_for_it(pool):
    found = []
    close_under(pool, [threading.Thread(target=lambda: found.append(pool.run("pause"))) for _ in range(3)])
    assert [outcome.lost.cause for outcome in found] == ["crash"] * 3


def test_a_pipe_in_use_is_closed_by_the_thread_that_uses_it(pool, monkeypatch):
    closed_by = {}
    close, kill = Connection.close, pool._workers[0].__class__.kill

    def noted(connection):
        if not connection.closed:
            closed_by.setdefault(id(connection), set()).add(threading.current_thread())
        close(connection)

    def slow(worker):
        if threading.current_thread() in threads:
            time.sleep(0.3)
        kill(worker)

    pipes = {id(worker.connection) for worker in pool._workers}
    monkeypatch.setattr(Connection, "close", noted)
    monkeypatch.setattr(pool._workers[0].__class__, "kill", slow)
    threads = [threading.Thread(target=pool.run, args=["pause"]) for _ in pool._workers]
    close_under(pool, threads)
    assert {thread for pipe in pipes for thread in closed_by[pipe]} == set(threads)
    assert pool.run(0).lost.cause == "crash"
