"""What the commands in tools/ share: clear errors in one line, and exit codes.

0: done. 1: a failure at work. 2: something the user gave is wrong. 75: a run was stopped by
a signal and has saved (tools/run_net.py). 130: interrupted.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lookupvit_video.arguments import expand_arguments
from lookupvit_video.errors import RunFailure
from lookupvit_video.text import make_streams_tolerant, one_line, use_utf8


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's main function and leave with its exit code; a user's mistake gives one line, no traceback.

    LOOKUPVIT_DEBUG=1 in the environment shows tracebacks.
    """
    use_utf8()
    make_streams_tolerant()
    try:
        sys.argv[1:] = expand_arguments(sys.argv[1:])
        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        os._exit(130)  # without waiting for decoding workers
    except (ValueError, RunFailure, OSError) as error:
        _end_workers()
        if os.environ.get("LOOKUPVIT_DEBUG") == "1":
            raise
        print(f"{Path(sys.argv[0]).name}: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except Exception:
        _end_workers()
        raise
    sys.exit(code)


def _end_workers() -> None:
    """Kill this process's children, such as decoding workers: one that hangs in a decoder heeds no gentler signal,
    and Python waits at its end, without limit, until all are gone."""
    for child in multiprocessing.active_children():
        child.kill()
