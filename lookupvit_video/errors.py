"""Failures that are no mistake of the user's and no fault of the program."""

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again; for Slurm's RequeueExit
EXIT_INTERRUPTED = 130  # as shells have it for Ctrl-C


class RunFailure(RuntimeError):
    """A run that cannot go on for a reason that its message tells: the data or the numbers went bad at work."""
