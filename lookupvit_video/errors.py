"""Failures that are no mistake of the user's and no fault of the program."""


class RunFailure(RuntimeError):
    """A run that cannot go on for a reason that its message tells: the data or the numbers went bad at work."""
