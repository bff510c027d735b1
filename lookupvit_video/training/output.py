"""OUTPUT_DIR: one run writes there at a time, and a failure to write is reported in one line."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lookupvit_video.checkpoints.checkpoint import training_checkpoints
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import RunFailure
from lookupvit_video.processes.lock import InUseError, only_writer

# Errors of writing that are no fault of the program.
DISK_ERRORS = {getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EROFS EIO ESTALE EACCES ENOENT ENOTDIR".split()}


@contextmanager
def report_disk_failures(folder: str) -> Iterator[None]:
    """Turn the system's errors about files in OUTPUT_DIR into a RunFailure that names the newest checkpoint there.

    An error that names no file is not about OUTPUT_DIR: what writes there names the file (``files.named_failures``).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS or not _is_within(error.filename, folder):
            raise
        kept = training_checkpoints(folder)
        what = f"{kept[0]} is complete, and the same command resumes from it" if kept else "there is no checkpoint yet"
        raise RunFailure(
            f"OUTPUT_DIR {folder} cannot be written to: {error.strerror} ({error.filename}); free space or fix "
            f"the disk. {what}"
        ) from None


def _is_within(path: object, folder: str) -> bool:
    """Whether a path, as errors name it, is a folder, in it, or above it (where the folder could not be created)."""
    if not isinstance(path, (str, bytes)):
        return False
    inner, outer = Path(path.decode(errors="replace") if isinstance(path, bytes) else path).absolute(), Path(folder)
    return outer.absolute() in (inner, *inner.parents) or inner in outer.absolute().parents


@contextmanager
def sole_writer(folder: str, world: World) -> Iterator[None]:
    """Let no other run write to OUTPUT_DIR while the block is active; all processes must call it.

    Raises:
        InUseError: another run is writing there; nothing was changed.
        RunFailure: OUTPUT_DIR cannot be written to.
        SystemExit: in the other processes, in place of these two, since one line is enough.
    """
    with ExitStack() as stack:
        refused: ValueError | RunFailure | None = None
        if world.is_main:
            try:
                with report_disk_failures(folder):
                    what, fix = f"OUTPUT_DIR {folder}", "choose another OUTPUT_DIR or stop it"
                    stack.enter_context(only_writer(Path(folder) / ".lock", what, fix))
            except (InUseError, RunFailure) as error:
                refused = error
        code = gather_objects(refused and (2 if isinstance(refused, ValueError) else 1), world)[0]
        if refused:
            raise refused
        if code:
            raise SystemExit(code)
        yield
