"""The processes that this one has started: how they begin and how they are ended."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

STOP_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")  # which let a training save and leave


def end_children() -> None:
    """Kill this process's children, such as decoding workers: one that hangs in a decoder heeds no gentler signal,
    and Python waits at its end, without limit, until all are gone.

    Torch watches its workers by SIGCHLD and raises at any line when one is killed, also where nobody can catch it: so
    that signal is ignored until all are gone.
    """
    children = multiprocessing.active_children()
    if not children:
        return
    watching = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if watching else None
    for child in children:
        child.kill()
    for child in children:
        child.join(5)  # not for ever: one that waits for a dead disk cannot be killed
    if watching:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deaf_to(*names: str) -> Iterator[None]:
    """Let processes that are started in the block never get some signals.

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes at once; the one that started the others decides
    what becomes of them. It gets a signal of that moment when the block ends.
    """
    numbers = {getattr(signal, name) for name in names if hasattr(signal, name)}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock SIGINT and SIGTERM within the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
