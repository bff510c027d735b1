"""OUTPUT_DIR: one run writes there at a time, and what keeps it from writing is reported in one line."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fvcore.common.config import CfgNode

from lookupvit_video.checkpoints.checkpoint import training_checkpoints
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import RunFailure
from lookupvit_video.processes.lock import InUseError, only_writer

# Why a file that a run writes may fail, other than by a fault of the program.
DISK_ERRORS = {getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EROFS EIO ESTALE EACCES ENOENT ENOTDIR".split()}


@contextmanager
def report_disk_failures(cfg: CfgNode) -> Iterator[None]:
    """Turn the system's errors about files in OUTPUT_DIR into one line that says what is still there.

    An error that names no file is not about OUTPUT_DIR: what writes there names the file (``files.named_failures``).

    Raises:
        RunFailure: in their place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS or not _is_within(error.filename, cfg.OUTPUT_DIR):
            raise
        kept = training_checkpoints(cfg.OUTPUT_DIR)
        what = f"{kept[0]} is complete, and the same command resumes from it" if kept else "there is no checkpoint yet"
        raise RunFailure(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written to: {error.strerror} ({error.filename}); free space or fix "
            f"the disk. {what}"
        ) from None


def _is_within(path: object, folder: str) -> bool:
    """Whether a path, as errors name it, is a folder, in it, or above it (where the folder could not be made)."""
    if not isinstance(path, (str, bytes)):
        return False
    inner, outer = Path(path.decode(errors="replace") if isinstance(path, bytes) else path).absolute(), Path(folder)
    return outer.absolute() in (inner, *inner.parents) or inner in outer.absolute().parents


@contextmanager
def sole_writer(cfg: CfgNode, world: World) -> Iterator[None]:
    """Let no other run write to OUTPUT_DIR while the block is active; all processes must call it.

    Raises:
        InUseError: another run is writing there; nothing was changed. In the other processes SystemExit: one line is
            enough.
        RunFailure: OUTPUT_DIR cannot be written to; likewise.
    """
    with ExitStack() as stack:
        refused: ValueError | RunFailure | None = None
        if world.is_main:
            try:
                with report_disk_failures(cfg):
                    folder = Path(cfg.OUTPUT_DIR)
                    what, fix = f"OUTPUT_DIR {folder}", "choose another OUTPUT_DIR or stop it"
                    stack.enter_context(only_writer(folder / ".lock", what, fix))
            except (InUseError, RunFailure) as error:
                refused = error
        code = gather_objects(refused and (2 if isinstance(refused, ValueError) else 1), world)[0]
        if refused:
            raise refused
        if code:
            raise SystemExit(code)
        yield
