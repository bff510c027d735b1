"""Training videos that cannot be read or are damaged: recorded, and too many of them stop the run."""

import itertools
import logging
import os
from collections.abc import Iterable

from lookupvit_video.data.dataset import Batch, damage_refused
from lookupvit_video.data.manifest import allowed_bad
from lookupvit_video.decoding.sources.shards import split_member
from lookupvit_video.errors import RunFailure
from lookupvit_video.log import record_bad_videos
from lookupvit_video.remote import is_remote
from lookupvit_video.training.run import Run

logger = logging.getLogger(__name__)


def note_bad_videos(run: Run, batch: Batch) -> None:
    """Record the videos of a batch that could not be read or are damaged; stop at more than are allowed."""
    _note_damaged_videos(run, batch)
    news = [(row, reason) for row, reason in batch.errors if row not in run.state.bad_rows]
    if not news:
        return
    stop_if_lost([run.train_videos[row].path for row, _ in news])
    run.state.bad_rows.update(row for row, _ in news)
    if not run.dry:
        record_bad_videos(run.folder, [("train", run.train_videos[row].path, reason) for row, reason in news])
    for _, reason in news:
        logger.warning("skipped: %s", reason)
    stop_at_too_many_bad(run)


def _note_damaged_videos(run: Run, batch: Batch) -> None:
    """Record videos that are used although they are damaged, each once; stop where the config refuses them."""
    if batch.damaged and run.cfg.DATA.DAMAGED_TRAIN == "refuse":
        row, damage = batch.damaged[0]
        raise damage_refused(run.train_videos[row].path, damage, "DATA.DAMAGED_TRAIN")
    unread = {row for row, _ in batch.errors}
    news = [(row, damage) for row, damage in batch.damaged if row not in unread | run.damaged_rows]
    run.damaged_rows.update(row for row, _ in news)
    for row, damage in news:
        path = run.train_videos[row].path
        if not run.dry:
            record_bad_videos(run.folder, [("train", path, f"damaged, used: {damage}")])
        logger.warning("%s: damaged, but used: %s", path, damage)


def stop_at_too_many_bad(run: Run) -> None:
    """Raise RunFailure where more training videos are known to be bad than DATA.MAX_BAD_FRACTION allows.

    A process knows its own at once, and those of all processes at each log line.
    """
    if len(run.state.bad_rows) > allowed_bad(len(run.train_videos), run.cfg.DATA.MAX_BAD_FRACTION):
        listed = os.path.abspath(run.folder / "bad_videos.csv")
        fix = "fix the videos or raise DATA.MAX_BAD_FRACTION" if run.dry else (
            f"the reasons are in {listed}; to train without them set DATA.SKIP_LIST {listed}, or fix the videos, or "
            "raise DATA.MAX_BAD_FRACTION, or train on damaged ones as well with DATA.DAMAGED_TRAIN use"
        )  # fmt: skip
        raise RunFailure(
            f"{len(run.state.bad_rows)} of {len(run.train_videos)} training videos cannot be read or are damaged; {fix}"
        )


def stop_if_lost(paths: list[str]) -> None:
    """Raise RunFailure where videos cannot be read because their folder is missing, so that none is listed as bad."""
    folder = lost_folder(paths)
    if folder:
        raise RunFailure(
            f"{folder} is missing or empty: is the disk or the share with the videos still mounted? No video was "
            "recorded as bad; the same command resumes from the newest checkpoint"
        )


def lost_folder(paths: Iterable[str]) -> str:
    """Return the first folder of some unreadable videos that is missing or empty; "": none is.

    Then a disk or a network share is no longer mounted, and the videos are not bad. Remote videos have no folder here.
    """
    for path in itertools.filterfalse(is_remote, paths):
        shard = split_member(path)
        folder = os.path.dirname(shard[0] if shard else path) or "."
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is None:
                    return folder
        except OSError:
            return folder
    return ""
