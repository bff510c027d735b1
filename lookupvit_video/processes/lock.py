"""One writer at a time: a second process is refused while the first one lives, and replaces one that has died.

Who writes is recorded in a lock file, with a sign of life every ``BEAT`` seconds. Whether a writer still lives is
decided

1. on its own machine by the kernel: a POSIX record lock on that file, or, where the file system has none, the process's
   id and start time. Both end with the process, also after kill -9. (Not flock, which libraries for locks take:
   decoding workers would inherit it, and outlive a killed process for seconds.)
2. from other machines by the signs of life, since locks do not reach over every network file system: a writer that
   gives none for ``LOST`` seconds counts as lost. No clocks are compared, except for a sign older than ``FORGOTTEN``.

A writer that was only paused and finds itself replaced leaves at once, without writing.
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
except ImportError:  # Windows: signs of life alone
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
BEAT = 10.0
LOST = 60.0
FORGOTTEN = 600.0
PATIENCE = 3.0  # seconds for a process that is just leaving
SETTLE = 1.0  # seconds after which a record must still stand, where no lock of the kernel protects it
_BYTES = 1024  # of a record
_held: set[str] = set()  # by this process: to open such a file again, and close it, would end the kernel's lock


class InUseError(UserError):
    """Another process is writing there."""


@dataclass(frozen=True)
class Owner:
    """Who is writing."""

    token: str
    pid: int
    host: str
    machine: str
    """What a process id belongs to: host, start of its kernel, and container."""
    started: str
    """When the process was started, by its kernel's clock; empty where that is not known."""
    since: float
    """Seconds since 1970, as ``beat``: its latest sign of life."""
    beat: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} is writing there since {since}"


@contextmanager
def only_writer(lock_file: str | Path, what: str, fix: str) -> Iterator[None]:
    """Be the only process that writes to something while the block is active.

    Args:
        lock_file: beside or in what is written to; it is there only as long as somebody writes.
        what: is written to, for the message.
        fix: what the user can do, for the message.

    Raises:
        InUseError: another process is writing there; nothing was changed.
        OSError: the lock file cannot be written.
    """
    path = Path(os.path.abspath(lock_file))
    if str(path) in _held:
        raise InUseError(f"{what}: this process is writing there already; {fix}")
    lock = _acquired(path, what, fix)
    _held.add(str(path))
    beats = threading.Thread(target=lock.beat, name="signs of life", daemon=True)
    beats.start()
    try:
        yield
    finally:
        lock.done.set()
        beats.join(5)  # it writes for a moment at most, unless the disk hangs
        _held.discard(str(path))
        lock.release()


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
    """Return the seconds for which a living process may still hold what a new one needs.

    After a restart by torchrun or Slurm, the one before is being ended and may take its time.
    """
    counts = (os.environ.get(name, "") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return LOST if any(count.isdecimal() and int(count) for count in counts) else PATIENCE


def _tried(path: Path, what: str, lost: str) -> "_Lock | Owner | None":
    """Return the lock, or who holds it; None: somebody who has not yet written who it is.

    Args:
        lost: token of an owner on another machine that counts as lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked, owner = _kernel_lock(descriptor), _read(descriptor)
        if not _is_at(path, descriptor):  # it was removed just now by who held it
            return owner
        if owner and owner.token == lost:  # a lock of a lost machine may never end: a new file is free of it
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
    """Watch a writer on another machine; return whether it, or another one, gives a sign of life."""
    if time.time() - owner.beat > FORGOTTEN:
        return False
    logger.warning("%s: %s; waiting up to %g s for a sign of life", what, owner, LOST)
    deadline = time.monotonic() + LOST
    while time.monotonic() < deadline:
        time.sleep(min(1.0, LOST / 10))
        try:
            descriptor = os.open(path, os.O_RDONLY)  # opened again: a network file system then looks for what is new
        except FileNotFoundError:
            return False  # it has left
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
        """Write who holds it, with a new sign of life; always as long, so that it can be written over."""
        text = json.dumps(asdict(replace(self.owner, beat=time.time())))
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, text.ljust(_BYTES - 1).encode() + b"\n")
        os.fsync(self.descriptor)  # other machines are to see it

    def beat(self) -> None:
        """Give signs of life; end this process where another one has taken its place meanwhile."""
        while not self.done.wait(BEAT):
            with contextlib.suppress(OSError):  # the disk may be away for a while
                if not self.is_ours():
                    line = f"{self.what}: another process took over, as this one gave no sign of life; leaving\n"
                    os.write(2, line.encode(errors="replace"))
                    os._exit(1)
                self.write()

    def is_ours(self) -> bool:
        """Whether nobody else has taken it. A file that was removed by hand is nobody else's."""
        owner = _read(self.descriptor)
        return (owner is None or owner.token == self.owner.token) and (
            not self.path.exists() or _is_at(self.path, self.descriptor)
        )

    def release(self) -> None:
        """Let others in."""
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
        return None  # nobody, or somebody who is just writing it


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
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
    """Whether this machine can tell if a process lives; Windows cannot be asked without ending it."""
    return os.name != "nt" and owner.machine == _machine()


def _start_of(pid: int) -> str:
    """Return when a process was started, which tells it from a later one of that id; empty: not known, or dead."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def _lives(owner: Owner) -> bool:
    """Whether a process of this machine is still there."""
    if owner.started:
        return _start_of(owner.pid) == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
