"""How long a thread was ready to run while others had the processor, which no time limit should count."""


def seconds_without_processor(thread: int | str = "thread-self") -> float | None:
    """Return the seconds that a thread has waited for a processor so far; None where the system does not count them.

    Args:
        thread: the ID of a process, for its main thread, or "thread-self" for the calling one.
    """
    try:
        with open(f"/proc/{thread}/schedstat", "rb", buffering=0) as file:
            return int(file.read(128).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or a kernel without these counts
        return None
