"""How Python and the C library keep memory in a process of this package."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def keep_freed_memory(runs_model: bool = False) -> None:
    """Make this process reuse memory that it has freed, which glibc would return to the kernel at once.

    Clips are as large as the pieces that glibc maps and unmaps each time, and the page faults take longer than filling
    the pages: loading takes less processor time with this. Up to 256 MiB are kept; pieces of more than
    32 MiB are not. Called in the processes that this package starts (commands, decoding workers), never on import.

    Args:
        runs_model: keep up to 1 GiB, pieces of any size: a batch of eight clips has some of 77 MB in each block.
    """
    with suppress(AttributeError, OSError, TypeError):  # no glibc: another system, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        if runs_model:
            mallopt(_M_MMAP_MAX, 0)
        else:
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30 if runs_model else 256 << 20)


@contextmanager
def importing() -> Iterator[None]:
    """Import torch in the block, look for garbage once after it, and never again among what was imported.

    That is a quarter of a million objects, which stay until the end. To look through them again and again takes a sixth
    of the import's time, and half a second at the end of the process. Where torch is imported already, nothing happens.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
