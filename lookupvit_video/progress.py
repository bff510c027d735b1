"""Progress for people: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)
T = TypeVar("T")


def progress(
    items: Iterable[T], *, total: int, label: str, unit: str, step: int = 1, every: float = 10.0
) -> Iterator[T]:
    """Pass items through and show how many of ``total`` units are done, units a second and the time left.

    Args:
        items: each is ``step`` units (the last one what is left).
        every: seconds between two lines where stderr is not a terminal.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=label, unit=f" {unit}", dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(min(step, total - bar.n))
        return
    start = shown = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= every:
            shown, done = now, min(count * step, total)
            rate = done / (now - start)
            logger.info(
                "%s: %d/%d %s, %.1f %s/s, eta %.0f s", label, done, total, unit, rate, unit, (total - done) / rate
            )
