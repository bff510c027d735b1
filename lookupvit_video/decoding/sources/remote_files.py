"""Bytes of remote files, by ranges, through a handler of iopath's or a file system of fsspec's, and a bounded cache.

What was read lies in blocks in the user's cache (``LOOKUPVIT_REMOTE_CACHE``: at most as many GB, 10 by default),
which all processes of a machine share; the blocks used longest ago go first.
"""

import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import Any

from lookupvit_video.files import cache_folder
from lookupvit_video.remote import path_manager

BLOCK = 4 << 20  # bytes: at 20 ms a request and 100 MB/s, as long under way as the request takes
_WAITS = (0.5, 2.0)  # seconds before the second and the third attempt
_LASTING = (FileNotFoundError, PermissionError, ValueError, TimeoutError)  # the last has waited for minutes already
_BUSY = (408, 425, 429)  # HTTP: timed out, too early, too many requests
_LOOK_EVERY = 32  # blocks written by a process between two looks at the size of the cache
_written = 0
# A worker inherits the file systems of its parent. If it let go of them it would close connections that the parent
# still waits for (they share one epoll), and fsspec drops its own references at a fork.
_kept_open: dict[int, Any] = {}


def read_remote(url: str, start: int = 0, size: int | None = None) -> bytes:
    """Return some bytes of a remote file; None: all of it, in one request.

    Raises:
        OSError: it cannot be read, or no handler and no file system knows its prefix.
    """
    if size is None:
        return _kept(url, "all", 0, None)
    end = start + size
    if not _limit():
        return _fetched(url, start, end)
    return b"".join(
        _kept(url, str(at // BLOCK), at, at + BLOCK, slice(max(start - at, 0), min(end - at, BLOCK)))
        for at in range(start // BLOCK * BLOCK, end, BLOCK)
    )


def forget(url: str) -> None:
    """Remove what the cache has of a file."""
    for file in _folder(url).glob("*"):
        file.unlink(missing_ok=True)


def _kept(url: str, name: str, start: int, end: int | None, part: slice = slice(0, None)) -> bytes:
    """Return a part of a block of a file, or of all of it, from the cache, or fetch the block into the cache."""
    global _written
    file = _folder(url) / name
    with contextlib.suppress(OSError), open(file, "rb", buffering=0) as kept:
        os.utime(file)
        kept.seek(part.start)
        return kept.read(-1 if part.stop is None else part.stop - part.start)
    data = _fetched(url, start, end)
    if _limit():
        with contextlib.suppress(OSError):  # a full disk costs time, not the answer
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{name}.{secrets.token_hex(4)}")
            temporary.write_bytes(data)
            temporary.rename(file)
            _written += 1
            if _written % _LOOK_EVERY == 0:
                _shrink()
    return data[part]


def _fetched(url: str, start: int, end: int | None) -> bytes:
    """Return some bytes of a remote file; what may pass (a lost connection, a busy server) is tried again."""
    for wait in _WAITS:
        try:
            return _fetched_once(url, start, end)
        except Exception as error:
            if not _may_pass(error):
                raise
            time.sleep(wait)
    return _fetched_once(url, start, end)


def _may_pass(error: BaseException) -> bool:
    """Whether a later attempt may succeed where this one failed."""
    chain = [each for each in (error, error.__cause__) if each is not None]
    if any(isinstance(each, _LASTING) for each in chain):
        return False
    for each in chain:
        status = getattr(each, "status", None)  # of aiohttp's answers
        if isinstance(status, int):
            return status in _BUSY or status >= 500
    return any(isinstance(each, ConnectionError) or type(each).__module__.startswith("aiohttp") for each in chain)


def _fetched_once(url: str, start: int, end: int | None) -> bytes:
    if any(url.startswith(prefix) for prefix in path_manager._path_handlers):
        with path_manager.open(url, "rb") as file:
            file.seek(start)
            return bytes(file.read(-1 if end is None else end - start))
    try:
        files, path = _file_system(url)
        # of a file that ends before `end`, up to its end
        return bytes(files.cat_file(path, start=start or None, end=end))
    except TimeoutError as error:
        raise OSError("no answer in time") from error
    except OSError:
        raise
    except (ImportError, ValueError) as error:
        raise OSError(f"{error}; docs/videos.md lists what each prefix needs") from error
    except Exception as error:  # those of each library for the network
        raise OSError(f"{type(error).__name__}: {error}") from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    files, path = fsspec.core.url_to_fs(url)
    _kept_open[id(files)] = files
    return files, path


def _limit() -> int:
    """Bytes that the cache may take."""
    return int(float(os.environ.get("LOOKUPVIT_REMOTE_CACHE", "10")) * 1e9)


def _root() -> Path:
    return cache_folder() / "remote"


def _folder(url: str) -> Path:
    return _root() / hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _shrink() -> None:
    """Remove the blocks used longest ago, until nine tenths of the limit are left."""
    found = []
    for file in _root().glob("*/*"):
        with contextlib.suppress(OSError):
            state = file.stat()
            found.append((state.st_mtime, state.st_size, file))
    total = sum(size for _, size, _ in found)
    if total <= _limit():
        return
    for _, size, file in sorted(found):
        if total <= 0.9 * _limit():
            return
        file.unlink(missing_ok=True)
        total -= size
