"""Paths that may be remote."""

import errno
import os
import re
from pathlib import Path

from iopath.common.file_io import PathManager

path_manager = PathManager()
"""Opens lists, class lists, configs and checkpoints. A handler registered here adds its prefix, such as "s3://"."""


def is_remote(path: str | Path) -> bool:
    """Whether a path names a place that a handler of ``path_manager`` fetches from."""
    return "://" in str(path)


def absolute(path: str) -> str:
    """Return the absolute path of a file; an address stays."""
    return path if is_remote(path) else os.path.abspath(path)


def is_hub_id(source: str) -> bool:
    """Whether a name is not a path and has the form of a Hugging Face Hub id ("org/name")."""
    is_file = Path(source).suffix in (".pt", ".pth", ".bin", ".safetensors") or Path(source).exists()
    return not is_file and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def joined(folder: str | Path, name: str) -> str:
    """Return the path of a file in a folder, either of which may be remote; an absolute name stays."""
    if is_remote(name) or not is_remote(folder):
        return name if is_remote(name) else os.path.join(folder, name)
    return name if os.path.isabs(name) else f"{folder}{'' if str(folder).endswith('/') else '/'}{name}"


def local_copy(path: str | Path) -> Path:
    """Return where a file is on this machine, after fetching it if it is remote.

    Raises:
        OSError: it cannot be fetched, or no handler is registered for its prefix.
    """
    local = Path(path_manager.get_local_path(str(path)))
    if is_remote(path) and not local.exists():
        raise FileNotFoundError(errno.ENOENT, "not found; is a handler registered in lookupvit_video.remote", str(path))
    return local
