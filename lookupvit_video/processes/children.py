"""The child processes of this process: how they start and how they are ended."""

import multiprocessing
import signal
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

STOP_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")  # a training saves and leaves


def end_children(only: Container[BaseProcess] | None = None) -> None:
    """Kill this process's children, such as decoding workers: Python would wait for them at its end without limit.

    Args:
        only: those to kill; None: all.

    A worker that hangs in a decoder reacts to no other signal. Torch watches its workers by SIGCHLD, and raises at any
    line when one is killed, so that signal is ignored until all have ended.
    """
    children = [child for child in multiprocessing.active_children() if only is None or child in only]
    if not children:
        return
    watching = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if watching else None
    for child in children:
        child.kill()
    for child in children:
        child.join(5)  # a process that waits for a dead disk cannot be killed
    if watching:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deaf_to(*names: str) -> Iterator[None]:
    """Block some signals in the processes that are started in the block.

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes at once; the parent decides what its children do.
    The parent gets a signal that comes during the block at its end.
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
