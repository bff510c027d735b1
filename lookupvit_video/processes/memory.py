"""How the C library keeps memory in a process of this package."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make this process reuse memory that it has freed, which glibc would return to the kernel at once.

    Clips are as large as the pieces that glibc maps and unmaps each time, and the page faults take longer than filling
    the pages: loading takes less processor time with this. Up to 256 MiB are kept; pieces of more than
    32 MiB are not. Called in the processes that this package starts (commands, decoding workers), never on import.
    """
    with suppress(AttributeError, OSError, TypeError):  # no glibc: another system, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
