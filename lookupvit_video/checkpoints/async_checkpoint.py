"""When training checkpoints are due, and writing them beside the training."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from lookupvit_video.checkpoints.checkpoint import remove_old_checkpoints, remove_unfinished, save_checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """Writes checkpoints in a thread of its own, one after the other, and deletes old ones when a new one is whole.

    What it is given must not change any more: ``full_state`` makes copies on the CPU. So training waits for that copy
    only, and not for the disk, unless the last checkpoint is still being written when the next one is due.

    Args:
        cfg: TRAIN.CHECKPOINT_STEPS, CHECKPOINT_MINUTES, KEEP_CHECKPOINTS and OUTPUT_DIR.
        enabled: in the main process only; others write nothing.
    """

    def __init__(self, cfg: CfgNode, enabled: bool):
        self.cfg, self.enabled = cfg, enabled
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._last = time.monotonic()
        if enabled:
            remove_unfinished(cfg.OUTPUT_DIR)

    def due_by_steps(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps; the same in all processes."""
        period = self.cfg.TRAIN.CHECKPOINT_STEPS
        return period > 0 and step % period == 0

    def due_by_clock(self) -> bool:
        """Whether the last checkpoint is too long ago by the main process's clock; others say no."""
        minutes = self.cfg.TRAIN.CHECKPOINT_MINUTES
        return self.enabled and 0 < 60 * minutes <= time.monotonic() - self._last

    def write(self, path: Path, content: dict[str, Any], *, is_training_checkpoint: bool) -> None:
        """Begin to write a file of ``save_checkpoint(path, **content)``.

        Args:
            is_training_checkpoint: it is a training checkpoint, of which the newest stay.

        Raises:
            RunFailure: the one before could not be written.
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
            remove_old_checkpoints(self.cfg.OUTPUT_DIR, self.cfg.TRAIN.KEEP_CHECKPOINTS)
        logger.info("wrote %s in %.1f s", path, time.monotonic() - began)

    def check(self) -> None:
        """Raise RunFailure if writing failed; does not wait."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: it could not be.
        """
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait until all is written, or has failed."""
        self._thread.shutdown()
