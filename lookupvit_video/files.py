"""Files that are written completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import simplejson


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; sync it and rename it to ``path`` when the block succeeds.

    The temporary name keeps the suffix, for writers that choose a format by it. A failed block leaves nothing.

    Raises:
        OSError: the folder cannot be written to or the disk is full; it names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with named_failures(path):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)  # the rename itself
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def named_failures(path: str | Path) -> Iterator[None]:
    """Add the name of the written file to errors of the system: those of writing have none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON in ASCII, completely or not at all.

    Raises:
        OSError: see ``atomic_write``.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(simplejson.dumps(content, indent=indent) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Return the folder of what this user's processes keep: LOOKUPVIT_CACHE, or one in the user's cache."""
    own = os.environ.get("LOOKUPVIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lookupvit_video")


def model_file(path: str | Path) -> str:
    """Return the model.pt in a folder, if it is that of a finished run; else the path itself."""
    inside = os.path.join(path, "model.pt")
    return inside if os.path.isfile(inside) else os.fspath(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
