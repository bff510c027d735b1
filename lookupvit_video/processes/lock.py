"""One writer at a time: a second process is refused while the first one lives, and replaces one that has died.

A lock file records the writer, and a heartbeat every ``BEAT`` seconds. Whether a writer is alive is decided

1. on its own machine by the kernel: a POSIX record lock on that file, or, where the file system has none, the process's
   id and start time. Both end with the process, also after kill -9. (Not flock, which lock libraries use: decoding
   workers would inherit it, and outlive a killed process for seconds.)
2. from other machines by the heartbeats, since not every network file system shares locks: a writer without one for
   ``LOST`` seconds counts as lost. Clocks are compared only for a heartbeat older than ``FORGOTTEN``.

A writer that was paused, and finds that another one replaced it, exits at once without writing.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lookupvit_video.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: heartbeats only
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
BEAT = 10.0
LOST = 60.0
FORGOTTEN = 600.0
PATIENCE = 3.0  # seconds for a process that is exiting
SETTLE = 1.0  # seconds after which a record must be unchanged, where no kernel lock protects it
_BYTES = 1024  # of a record
_held: set[str] = set()  # by this process: opening and closing such a file again would end the kernel's lock


class InUseError(UserError):
    """Another process is writing there."""


@dataclass(frozen=True)
class Owner:
    """The process that writes."""

    token: str
    pid: int
    host: str
    machine: str
    """The scope of a process id: host, boot of its kernel, and container."""
    started: str
    """When the process was started, by its kernel's clock; empty: not known."""
    since: float
    """Seconds since 1970, as ``beat``, its latest heartbeat."""
    beat: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} is writing there since {since}"


@contextmanager
def only_writer(lock_file: str | Path, what: str, fix: str) -> Iterator[None]:
    """Be the only process that writes to something while the block is active.

    Folders that are made for the lock are removed again where nothing is written to them.

    Args:
        lock_file: exists only while a process writes.
        what: names what is written to, in the message.
        fix: says in the message what the user can do.

    Raises:
        InUseError: another process is writing there; nothing was changed.
        OSError: the lock file cannot be written.
    """
    path = Path(os.path.abspath(lock_file))
    if str(path) in _held:
        raise InUseError(f"{what}: this process is already writing there; {fix}")
    made = [folder for folder in path.parents if not folder.exists()]
    lock = _acquired(path, what, fix)
    _held.add(str(path))
    beats = threading.Thread(target=lock.beat, name="heartbeat", daemon=True)
    beats.start()
    try:
        yield
    finally:
        lock.done.set()
        beats.join(5)  # a write is short, unless the disk hangs
        _held.discard(str(path))
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _acquired(path: Path, what: str, fix: str) -> "_Lock":
    deadline, lost = time.monotonic() + _patience(), ""
    while True:
        found = _tried(path, what, lost)
        if isinstance(found, _Lock):
            return found
        if found and not _is_here(found) and found.token != lost:
            if _shows_life(path, found, what):
                raise InUseError(f"{what}: {found}; {fix}")
            lost, deadline = found.token, time.monotonic() + PATIENCE
            continue
        if time.monotonic() > deadline:
            raise InUseError(f"{what}: {found or 'another process is writing there'}; {fix}")
        time.sleep(0.1)


def _patience() -> float:
    """Return the seconds to wait for a process that is ending: after a restart by torchrun or Slurm, longer."""
    counts = (os.environ.get(name, "") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return LOST if any(count.isdecimal() and int(count) for count in counts) else PATIENCE


def _tried(path: Path, what: str, lost: str) -> "_Lock | Owner | None":
    """Return the lock, or its owner; None: an owner that has not yet written its record.

    Args:
        lost: token of an owner on another machine that counts as lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked, owner = _kernel_lock(descriptor), _read(descriptor)
        if not _is_at(path, descriptor):  # its owner has just removed it
            return owner
        if owner and owner.token == lost:  # the lock of a lost machine may never end, so a new file is made
            path.unlink(missing_ok=True)
            return owner
        if locked is False or (owner and (not _is_here(owner) or _lives(owner))):
            return owner
        now = time.time()
        pid = os.getpid()
        mine = Owner(secrets.token_hex(8), pid, socket.gethostname(), _machine(), _start_of(pid), now, now)
        lock = _Lock(path, descriptor, mine, what)
        lock.write()
        if not locked or lost:
            time.sleep(SETTLE)
            if not lock.is_ours():
                return _read(descriptor)
        descriptor = -1
        return lock
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _shows_life(path: Path, owner: Owner, what: str) -> bool:
    """Watch a writer on another machine; return whether it, or another one, writes a heartbeat."""
    if time.time() - owner.beat > FORGOTTEN:
        return False
    logger.warning("%s: %s; waiting up to %g s for its heartbeat", what, owner, LOST)
    deadline = time.monotonic() + LOST
    while time.monotonic() < deadline:
        time.sleep(min(1.0, LOST / 10))
        try:
            descriptor = os.open(path, os.O_RDONLY)  # opening makes a network file system look for changes
        except FileNotFoundError:
            return False  # it has exited
        try:
            now = _read(descriptor)
        finally:
            os.close(descriptor)
        if now and (now.token, now.beat) != (owner.token, owner.beat):
            return True
    return False


@dataclass
class _Lock:
    """The lock that this process holds."""

    path: Path
    descriptor: int
    owner: Owner
    what: str

    def __post_init__(self) -> None:
        self.done = threading.Event()

    def write(self) -> None:
        """Write the owner with a new heartbeat; always of the same length, so that it can be overwritten."""
        text = json.dumps(asdict(replace(self.owner, beat=time.time())))
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, text.ljust(_BYTES - 1).encode() + b"\n")
        os.fsync(self.descriptor)  # for other machines

    def beat(self) -> None:
        """Write heartbeats; end this process if another one has replaced it."""
        while not self.done.wait(BEAT):
            with contextlib.suppress(OSError):  # the disk may be unavailable for a while
                if not self.is_ours():
                    line = f"{self.what}: another process took over, since this one had no heartbeat; leaving\n"
                    os.write(2, line.encode(errors="replace"))
                    os._exit(1)
                self.write()

    def is_ours(self) -> bool:
        """Whether no other process has taken it; also where the file was removed by hand."""
        owner = _read(self.descriptor)
        return (owner is None or owner.token == self.owner.token) and (
            not self.path.exists() or _is_at(self.path, self.descriptor)
        )

    def release(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            if _is_at(self.path, self.descriptor):
                self.path.unlink()
        os.close(self.descriptor)


def _kernel_lock(descriptor: int) -> bool | None:
    """Lock an open file; return whether that worked, None where this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _read(descriptor: int) -> Owner | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return Owner(**json.loads(os.read(descriptor, _BYTES)))
    except (ValueError, TypeError):
        return None  # no record, or one that is being written


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _is_here(owner: Owner) -> bool:
    """Whether this machine can find out if a process is alive; on Windows, asking would end it."""
    return os.name != "nt" and owner.machine == _machine()


def _start_of(pid: int) -> str:
    """Return when a process was started, since its id may be used again; empty: not known, or it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def _lives(owner: Owner) -> bool:
    """Whether a process of this machine is alive."""
    if owner.started:
        return _start_of(owner.pid) == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    return True
