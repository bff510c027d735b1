"""One way to turn what a random draw depends on into its seed."""

import numpy as np


def mix_seed(*parts: int) -> int:
    """Return a 63-bit seed that follows from non-negative integers alone: same on every machine, spread well."""
    # With the count in front, since numpy's hash takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> 1)
