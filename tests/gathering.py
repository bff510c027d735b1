"""Threads in the place of processes, for what a group of them does together."""

import threading


class Gathering:
    """Exchanges values between threads, as ``distributed.world.gather_objects`` does between processes.

    Args:
        size: how many threads meet.
    """

    def __init__(self, size: int):
        self._meeting, self._values = threading.Barrier(size), {}

    def __call__(self, value, world):
        """Return the values of all, in the order of their ranks."""
        if world.size == 1:
            return [value]
        self._values[world.rank] = value
        self._meeting.wait(5)
        found = [self._values[rank] for rank in range(world.size)]
        self._meeting.wait(5)
        return found

    def abort(self):
        """End the wait of all, as torchrun ends all processes where one dies."""
        self._meeting.abort()
