"""The two errors that commands report in one line; anything else is a bug and keeps its traceback."""

BUG = "this is a bug in lookupvit_video; please report it with the traceback above, see CONTRIBUTING.md"
INTERNAL = "internal error"  # how the reason begins where a bug, not a file, cost the answer
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h, for Slurm's RequeueExit
EXIT_INTERRUPTED = 130  # as in shells for Ctrl-C


class UserError(ValueError):
    """A user's mistake; the message names the file, line or key, and how to fix it. Commands exit with code 2."""


class RunFailure(RuntimeError):
    """A failure at run time whose cause lies outside the program: data, disk, memory, numbers. Commands exit with 1."""
