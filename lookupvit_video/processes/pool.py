"""A process pool for work on files that may crash, hang or exhaust a process: a failure loses one task only.

pebble's pool limits the time of tasks too, but counts time in which others have the processor, and retries none.
"""

import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

from lookupvit_video.errors import BUG, INTERNAL, RunFailure
from lookupvit_video.processes.children import deaf_to
from lookupvit_video.processes.memory import keep_freed_memory
from lookupvit_video.processes.waiting import seconds_without_processor

Task = TypeVar("Task")
Answer = TypeVar("Answer")

_METHOD = "spawn" if sys.platform == "win32" else "forkserver"
_HANGS_IN_A_ROW = 3  # tasks that time out again when alone: then no others are tried again, which may take hours


class Lost(NamedTuple):
    """Why a task has no answer."""

    cause: str
    """"timeout", "crash" (the process died), "memory" or "error" (the function raised)."""
    detail: str


class Outcome(NamedTuple, Generic[Answer]):
    """The answer to one task, or why it has none."""

    number: int
    """Position of the task in the sequence of tasks."""
    answer: Answer | None
    lost: Lost | None = None


def run_isolated(
    function: Callable[[Task], Answer],
    tasks: Sequence[Task],
    *,
    processes: int,
    timeout: float,
    second_try: bool = False,
) -> Iterator[Outcome[Answer]]:
    """Yield the outcome of ``function`` on each task, in completion order.

    A process that dies or takes more than ``timeout`` seconds for a task is replaced, and only that task is lost. Time
    in which it was ready to run but others had the processor does not count (on Linux, which measures it). ``function``
    must be importable (or a partial of a function that is); each process works on one task at a time.

    Args:
        second_try: at the end, retry the tasks that timed out, one at a time, so that they cannot slow each other down;
            until three in a row time out again.

    Raises:
        RunFailure: a process died before its first task.
    """
    late: list[Outcome[Answer]] = []
    for outcome in _run(function, tasks, range(len(tasks)), processes, timeout):
        if second_try and outcome.lost and outcome.lost.cause == "timeout":
            late.append(outcome)
        else:
            yield outcome
    late.sort()
    in_a_row = 0
    for first in late:
        outcome = first
        if in_a_row < _HANGS_IN_A_ROW:
            (outcome,) = _run(function, tasks, [first.number], 1, timeout)
            in_a_row = in_a_row + 1 if outcome.lost and outcome.lost.cause == "timeout" else 0
        yield outcome


def start_fork_server(module: str) -> None:
    """Let the process that workers are forked from start to import a module, in the background; once in a process.

    It imports for all of them, so that a lost one is replaced in milliseconds. Where a command knows early that it will
    need workers, this overlaps with its own imports. Windows has none.
    """
    if sys.platform != "win32":
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload([module])
        with deaf_to("SIGINT"):
            forkserver.ensure_running()


def _run(
    function: Callable[[Task], Answer], tasks: Sequence[Task], numbers: Sequence[int], processes: int, timeout: float
) -> Iterator[Outcome[Answer]]:
    start_fork_server(getattr(function, "func", function).__module__)
    context: Any = multiprocessing.get_context(_METHOD)
    waiting = iter(numbers)
    workers = [_Worker(context, function) for _ in range(min(processes, len(numbers)))]
    try:
        while workers:
            deadline = min(worker.deadline for worker in workers)
            left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
            wait([worker.connection for worker in workers], left)
            for worker in list(workers):
                if worker.connection.poll():
                    lost = worker.receive()
                elif worker.is_late():
                    lost = Lost("timeout", f"took longer than {timeout:g} s")
                else:
                    continue
                outcome = None if worker.task is None else Outcome(worker.task, None if lost else worker.answer, lost)
                if lost and lost.cause in ("timeout", "crash"):
                    workers.remove(worker)
                    worker.kill()
                    workers.append(_Worker(context, function))
                elif (index := next(waiting, None)) is None:
                    workers.remove(worker)
                    worker.kill()
                else:
                    worker.send(index, tasks[index], timeout)
                if outcome:  # only now: the process works on its next task while the caller uses this answer
                    yield outcome
    finally:
        for worker in workers:
            worker.kill()


class IsolatedPool(Generic[Task, Answer]):
    """Processes that stay: several threads may ask at once, and each waits for its own answer.

    Args:
        function, processes, timeout: as of ``run_isolated``.
    """

    def __init__(self, function: Callable[[Task], Answer], *, processes: int, timeout: float):
        self._function, self._timeout, self._is_closed = function, timeout, False
        self._lock = threading.Lock()  # over _is_closed and _workers
        start_fork_server(getattr(function, "func", function).__module__)
        self._context: Any = multiprocessing.get_context(_METHOD)
        # Who takes a worker from here is the only one to use or close its pipe: a handle that is closed twice may be
        # another file's by then.
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(self._context, function) for _ in range(processes)]
        for worker in self._workers:
            self._free.put(worker)

    def run(self, task: Task) -> Outcome[Answer]:
        """Return the outcome of a task, once a process is free for it.

        Raises:
            RunFailure: a process died before its first task.
        """
        worker = self._free.get()
        lost: Lost | None = Lost("crash", "the processes are being ended")
        try:
            if self._is_closed:
                return Outcome(0, None, lost)
            if not worker.is_ready:
                worker.receive()
            worker.send(0, task, self._timeout)
            while not worker.connection.poll(max(0.0, worker.deadline - time.monotonic())):
                if worker.is_late():
                    lost = Lost("timeout", f"took longer than {self._timeout:g} s")
                    break
            else:
                lost = worker.receive()
            answer, worker.answer = worker.answer, None
            return Outcome(0, None if lost else answer, lost)
        except RunFailure:
            if not self._is_closed:
                raise
            return Outcome(0, None, lost)
        finally:
            self._free.put(self._replaced(worker) if lost and lost.cause in ("timeout", "crash") else worker)

    def _replaced(self, worker: "_Worker") -> "_Worker":
        worker.kill()
        with self._lock:
            if not self._is_closed:
                self._workers.remove(worker)
                worker = _Worker(self._context, self._function)
                self._workers.append(worker)
        return worker

    def close(self) -> None:
        """End the processes; what waits for them gets a lost outcome."""
        with self._lock:
            self._is_closed = True
        for worker in self._workers:
            worker.process.kill()  # whose pipe ends with it: a thread that waits there closes it and puts it back
        for worker in self._workers:
            worker.process.join(timeout=5)
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for worker in idle:
            worker.kill()
            self._free.put(worker)  # for a thread that asks later: it finds the pool closed


class _Worker:
    """A process and its current task."""

    def __init__(self, context: Any, function: Callable[[Any], Any]):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        with deaf_to("SIGINT"):  # the fork server too, while it imports
            self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.task: int | None = None
        self.is_ready = False
        self.answer: Any = None
        self.deadline = float("inf")  # imports have no time limit
        self.waited = 0.0

    def send(self, index: int, task: Any, seconds: float) -> None:
        """Give the process a task and its time limit."""
        self.task, self.deadline = index, time.monotonic() + seconds
        self.waited = self._without_processor()
        with contextlib.suppress(ConnectionError):  # it has died: the next receive reports it
            self.connection.send(task)

    def is_late(self) -> bool:
        """Whether the time limit of the task is over, not counting time without a processor."""
        if time.monotonic() <= self.deadline:
            return False
        waited = self._without_processor()
        self.deadline, self.waited = self.deadline + waited - self.waited, waited
        return time.monotonic() > self.deadline

    def _without_processor(self) -> float:
        return seconds_without_processor(self.process.pid or 0) or 0.0

    def receive(self) -> Lost | None:
        """Receive that the process is ready, its answer, or why it has none."""
        lost: Lost | None
        try:
            lost, self.answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(timeout=5)
            code = self.process.exitcode
            if self.task is None:
                raise RunFailure(f"a worker process ended before its first task (exit code {code})") from None
            return Lost("crash", _how_it_died(code))
        self.is_ready = True
        return lost

    def kill(self) -> None:
        """End the process at once."""
        self.connection.close()
        self.process.kill()
        self.process.join(timeout=5)  # a process that waits for a dead disk cannot be killed


def _how_it_died(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the process that read it ended (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = ", perhaps because memory ran out" if name == "SIGKILL" else ""
    return f"the process that read it died ({name}{why})"


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Work on one task after the other until the pipe ends."""
    # If memory runs out, the kernel should kill this process, not its parent.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    keep_freed_memory()
    connection.send((None, None))
    reported: set[tuple[str, int | None]] = set()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            message: tuple[Lost | None, Any] = (None, function(task))
        except MemoryError:
            message = (Lost("memory", "needs more memory than there is"), None)
        except Exception as error:  # a bug: its traceback is printed once for each place
            place = traceback.extract_tb(error.__traceback__)[-1]
            if (place.filename, place.lineno) not in reported:
                reported.add((place.filename, place.lineno))
                traceback.print_exc()
                print(BUG, file=sys.stderr)
            message = (Lost("error", f"{INTERNAL}, {type(error).__name__}: {error}"), None)
        with contextlib.suppress(OSError):  # the parent was killed: the next receive ends this process
            connection.send(message)
