"""The processes that torchrun started: how they connect, exchange values, and find out which one was lost.

Reading order: ``World``, ``init_world``, ``gather_objects``, ``report_lost_processes``.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from lookupvit_video.distributed.restart_safe_store import restart_safe_store
from lookupvit_video.errors import RunFailure, UserError

T = TypeVar("T")
_HELP = "see docs/distributed.md"


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device
    hosts: tuple[str, ...] = ()
    """The machine of each process, by rank."""
    control: distributed.ProcessGroup | None = field(default=None, repr=False, compare=False)
    """A gloo group of all processes, for messages that must not wait for a GPU."""
    store: Store | None = field(default=None, repr=False, compare=False)
    """The rendezvous store, which still works when processes do not respond."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def name(self, rank: int) -> str:
        """Return the name of a process for messages."""
        return f"process {rank} of {self.size}" + (f" on {self.hosts[rank]}" if self.hosts else "")


def init_world(timeout: float = 1800.0, join_timeout: float = 300.0) -> World:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPUs); without torchrun, a single process.

    Args:
        timeout: seconds that an operation between processes may take, which is how long they wait for one that hangs.
        join_timeout: seconds that all of them may take to start.

    Raises:
        UserError: fewer GPUs than processes on this machine, or an incomplete set of torchrun's variables.
        RunFailure: the processes do not find one another; says which are missing and what to check.
    """
    size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun --nproc_per_node: process {local_rank} has no GPU of its own; this machine "
                f"has {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if size == 1:
        return World(0, 1, device, (socket.gethostname(),))
    rank = int(os.environ.get("RANK", 0))
    if distributed.is_initialized():
        return World(rank, size, device)
    store, hosts = _join(World(rank, size, device), timeout, join_timeout)
    control = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    assert isinstance(control, distributed.ProcessGroup)  # every process is in it
    return World(rank, size, device, hosts, control, store)


def _join(world: World, timeout: float, join_timeout: float) -> tuple[Store, tuple[str, ...]]:
    """Connect the processes; return their store, and the machine of each."""
    here = f"process {world.rank} of {world.size} on {socket.gethostname()}"
    unset = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if unset:
        raise UserError(f"{here}: WORLD_SIZE is set but not {', '.join(unset)}; start with torchrun, {_HELP}")
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=join_timeout)))
    except (RuntimeError, OSError) as error:
        raise RunFailure(
            f"{here} cannot reach the others at {place} ({_first_line(error).rstrip('.')}); check that torchrun "
            f"runs on every node, and that the address is the first node's, with a port that is free and open, {_HELP}"
        ) from None
    try:
        store = restart_safe_store(store, world.rank, world.size, join_timeout)
        _absent(store, "join", world, join_timeout)
    except (RunFailure, distributed.DistError) as error:  # DistError: without torchrun the first process has the store
        reason = error if isinstance(error, RunFailure) else "lost process 0"
        raise RunFailure(
            f"{here} {reason}; check that torchrun runs on every node with the same --nnodes and --nproc_per_node, and "
            f"its output there, {_HELP}"
        ) from None
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            # A process that hangs is found over gloo (``World.control``). nccl must time out later: its watchdog ends
            # a process without naming the others.
            timeout=timedelta(seconds=timeout + 120 * (world.device.type == "cuda")),
        )
    except RuntimeError as error:
        raise RunFailure(
            f"{here} found the others at {place} but cannot connect to them ({_first_line(error)}); set "
            f"GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface between the nodes, {_HELP}"
        ) from None
    return store, tuple(store.get(f"join/{rank}").decode() for rank in range(world.size))


def _absent(store: Store, occasion: str, world: World, seconds: float) -> list[int]:
    """Sign in for an occasion; return the ranks of the processes that do not within some seconds."""
    names = [f"{occasion}/{rank}" for rank in range(world.size)]
    deadline = time.monotonic() + seconds
    try:
        store.set(names[world.rank], socket.gethostname())
        while not store.check(names):
            if time.monotonic() > deadline:
                return [rank for rank, name in enumerate(names) if not store.check([name])]
            time.sleep(0.05)  # not ``store.wait``, which blocks other threads
    except RuntimeError:  # without torchrun the first process has the store
        return [0]
    return []


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def close_world() -> None:
    """Leave the process group, if one was joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def gather_objects(value: T, world: World) -> list[T]:
    """Return every process's value, by rank, in every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    distributed.all_gather_object(values, value)
    return values


def main_first(world: World, work: Callable[[bool], T]) -> T:
    """Do the same work in every process: in the main one first, then in one a machine, then in all others.

    So that what the first ones leave on disk serves the others.

    Args:
        work: gets whether this is the main process.

    Raises:
        UserError: of the main process, in all of them.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    turn = 0 if world.is_main else 1 if local == 0 else 2
    result: list[T] = []
    error: UserError | None = None
    for now in range(3):
        if now == turn:
            try:
                result.append(work(world.is_main))
            except UserError as raised:
                if not world.is_main:
                    raise
                error = raised
        failed = gather_objects(error and str(error), world)[0] if now < 2 else None
        if failed:
            raise error or UserError(failed)
    return result[0]


def in_any_process(world: World, *flags: bool) -> list[bool]:
    """Return for each flag whether some process has it set; all processes must call it.

    It uses gloo, so it waits for no GPU.
    """
    if world.size == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=world.control)
    return [bool(vote) for vote in votes.tolist()]


@contextmanager
def report_lost_processes(world: World, seconds: float = 30.0) -> Iterator[None]:
    """Turn torch's errors of lost connections into a RunFailure that names the processes that are missing.

    Args:
        seconds: to wait for the other processes to respond.
    """
    try:
        yield
        return
    except RunFailure:
        raise
    except RuntimeError as error:  # torch's network errors are among these
        reason = _first_line(error)
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
    missing = _absent(world.store, "lost contact", world, seconds) if world.store else []
    names = ", ".join(map(world.name, missing))
    cause = (
        f"no answer within {seconds:g} s from {names}: it is not responding or has exited, see its log and its machine"
        if missing else "all processes respond: check the network"
    )  # fmt: skip
    raise RunFailure(f"lost contact ({reason}); {cause}, {_HELP}")
