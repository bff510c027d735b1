"""When training checkpoints are due, and writing them in the background."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lookupvit_video.checkpoints.checkpoint import remove_old_checkpoints, remove_unfinished, save_checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """Writes checkpoints in a thread, one after the other, and deletes old ones once a new one is complete.

    Its input must not change afterwards: ``full_state`` makes copies on the CPU. So training waits for that copy, not
    for the disk, unless the last checkpoint is still being written when the next one is due.

    Args:
        folder: OUTPUT_DIR.
        steps, minutes: between two additional training checkpoints; 0: none.
        keep: training checkpoints that stay.
        enabled: in the main process only; others write nothing.
    """

    def __init__(self, folder: str | Path, *, steps: int, minutes: float, keep: int, enabled: bool):
        self.folder, self.steps, self.minutes, self.keep, self.enabled = folder, steps, minutes, keep, enabled
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._last = time.monotonic()
        if enabled:
            remove_unfinished(folder)

    def due_by_steps(self, step: int) -> bool:
        """Whether a checkpoint is due after a step; the same in all processes."""
        return self.steps > 0 and step % self.steps == 0

    def due_by_clock(self) -> bool:
        """Whether a checkpoint is due by the main process's clock; False in other processes."""
        return self.enabled and 0 < 60 * self.minutes <= time.monotonic() - self._last

    def write(self, path: Path, content: dict[str, Any], *, is_training_checkpoint: bool) -> None:
        """Begin to write a file of ``save_checkpoint(path, **content)``.

        Args:
            is_training_checkpoint: the newest of these stay, older ones are deleted.

        Raises:
            OSError: the one before could not be written.
        """
        if is_training_checkpoint:
            self._last = time.monotonic()
        if self.enabled:
            self.wait()
            self._pending = self._thread.submit(self._write, path, content, is_training_checkpoint)

    def _write(self, path: Path, content: dict[str, Any], is_training_checkpoint: bool) -> None:
        began = time.monotonic()
        save_checkpoint(path, **content)
        if is_training_checkpoint:
            remove_old_checkpoints(self.folder, self.keep)
        logger.info("wrote %s in %.1f s", path, time.monotonic() - began)

    def check(self) -> None:
        """Raise OSError if writing failed; does not wait."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written; OSError if that failed."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait until everything is written, or has failed."""
        self._thread.shutdown()
