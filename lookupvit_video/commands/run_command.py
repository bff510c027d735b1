"""How every command ends: errors in one line, and exit codes.

0: done. 1: a runtime failure. 2: invalid input. 75: a training was stopped by a signal and has saved. 130: interrupted
(Ctrl-C); a training has saved. 141: what read standard output has ended, such as `head`.
"""

import errno
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from lookupvit_video.arguments import expand_arguments
from lookupvit_video.errors import BUG, EXIT_INTERRUPTED, RunFailure, UserError
from lookupvit_video.processes.children import end_children
from lookupvit_video.processes.memory import keep_freed_memory
from lookupvit_video.text import make_streams_tolerant, one_line, use_utf8

EXIT_BROKEN_PIPE = 128 + 13  # as shells report a program that SIGPIPE ended
PATIENCE = 5.0  # seconds that an interrupted command may take to end


def program() -> str:
    """Return the name of the command in messages and help: "lookupvit train", "run_net.py"."""
    return Path(sys.argv[0]).name


def command_line() -> str:
    """Return the command as it was given."""
    return " ".join([program(), *sys.argv[1:]])


def print_error(message: object) -> None:
    """Print a problem that does not end the command, on one line of stderr."""
    print(one_line(f"{program()}: error: {message}"), file=sys.stderr)


def share_cores() -> None:
    """Let waiting threads of OpenMP (torch) sleep soon; before torch is imported. Results do not depend on it.

    By default they spin for milliseconds. On a busy machine, a thread that spins keeps the one that it waits for from
    running. A user's own setting stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's main function and leave with its exit code.

    A user's mistake, a runtime failure and an error of the operating system give one line (LOOKUPVIT_DEBUG=1 in the
    environment shows their tracebacks). Anything else is a bug: it keeps its traceback.
    """
    use_utf8()
    make_streams_tolerant()
    keep_freed_memory(runs_model=True)
    try:
        sys.argv[1:] = expand_arguments(sys.argv[1:])
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))  # the second one
        end_children()
        _print_last(f"{interrupt}" or "interrupted")
        deadline = threading.Timer(PATIENCE, os._exit, [EXIT_INTERRUPTED])  # some thread may be busy for long
        deadline.daemon = True
        deadline.start()
        sys.exit(EXIT_INTERRUPTED)
    except (UserError, RunFailure, OSError) as error:
        end_children()
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(EXIT_BROKEN_PIPE)
        if os.environ.get("LOOKUPVIT_DEBUG") == "1":
            raise
        _print_last(f"error: {one_line(_explained(error))}")
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Exception:
        end_children()
        traceback.print_exc()
        _print_last(BUG)
        sys.exit(1)
    end_children()  # a decoding worker that hangs would keep this process from ending
    sys.exit(code)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader; then it goes nowhere from now on, also as Python ends."""
    if not hasattr(select, "poll"):  # Windows
        return False
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in asked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _print_last(line: str) -> None:
    sys.stdout.flush()
    print(f"{program()}: {line}", file=sys.stderr)


def _explained(error: Exception) -> str:
    """Return a message; where a temporary folder is full, with the folder and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        return f"{error.strerror}: free space there, or set TMPDIR to a folder with space"
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename:
        folder = os.path.abspath(tempfile.gettempdir())
        if os.path.abspath(os.fsdecode(error.filename)).startswith(folder + os.sep):
            return f"{error}; free space in {folder}, or set TMPDIR to a folder with space"
    return str(error)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report Ctrl-C in one line outside of ``run_command`` too, while a script is importing."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _print_last("interrupted")
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


sys.excepthook = _hook
