"""A command in several processes, as torchrun starts it, without waiting for the imports of each."""

import multiprocessing
import os
import socket
import subprocess
from multiprocessing.queues import Queue

from tests.small import call_tool


def call_ranks(size: int, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Run a command of tools/ in ``size`` processes on this machine; return what each did, by rank."""
    if size == 1:
        return [call_tool(*arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    answers: Queue[tuple[int, subprocess.CompletedProcess[str]]] = context.Queue()
    words = list(map(str, arguments))
    processes = [context.Process(target=_be_rank, args=(rank, size, port, words, answers)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        found = dict(answers.get(timeout=300) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(size)]


def _be_rank(rank: int, size: int, port: int, words: list[str], answers: Queue) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in place.items()}, OMP_NUM_THREADS="1")
    answers.put((rank, call_tool(*words)))
