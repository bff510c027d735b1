"""A probe in place of a training loop: features of the lists once, then the classifiers at many learning rates."""

import logging
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import Section
from lookupvit_video.data.loader import report_worker_failures
from lookupvit_video.data.manifest import Video
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import eval_loader
from lookupvit_video.evaluation.linear_probe import Cache, accuracies, cache_features, put_into, train_probes
from lookupvit_video.processes.stop_signals import Stopped, StopSignals
from lookupvit_video.progress import progress
from lookupvit_video.training.output import report_disk_failures
from lookupvit_video.training.run import Run, prepare

logger = logging.getLogger(__name__)
RATES, LOWEST, HIGHEST = 20, 1e-4, 1.0
EPOCHS, BATCH = 100, 256


class Probed(NamedTuple):
    """What a probe has found and taken."""

    rates: list[float]
    top1: list[float]
    """In percent of the validation list, at each rate."""
    best: float
    clips: int
    features_seconds: float
    seconds: float
    """Of the classifiers, at all rates."""
    one_rate_seconds: float | None = None
    """The same at the best rate alone."""

    @property
    def ratio(self) -> float | None:
        """The time of features and classifiers, by that of a probe at one rate."""
        one = self.one_rate_seconds
        return None if one is None else (self.features_seconds + self.seconds) / (self.features_seconds + one)


def train_probe(
    cfg: Section, classes: list[str], world: World, *, rates: int = RATES, epochs: int = EPOCHS, views: int = 1,
    timed: bool = False,
) -> Probed:  # fmt: skip
    """Train the classifiers of a frozen model; OUTPUT_DIR/model.pt has those of the rate that is best in validation.

    Args:
        rates: how many, from ``LOWEST`` to ``HIGHEST``.
        epochs: passes over the features.
        views: clips of a video in time.
        timed: also measure how long one rate alone takes.

    Raises:
        UserError: the config is not one of a probe.
        RunFailure: no video can be read.
        Stopped: a signal came; nothing is kept.
    """
    _check(cfg, world)
    with StopSignals(quiet=True) as stop, report_disk_failures(cfg.OUTPUT_DIR):
        run = prepare(cfg, classes, world, stop)
        try:
            began = time.monotonic()
            lists = (("train", run.train_videos), ("val", run.val_videos))
            train, val = (_cached(run, split, videos, views) for split, videos in lists)
            spent = time.monotonic() - began
            wanted = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), rates).tolist()
            found = _probed(run, train, val, wanted, epochs, spent, timed=timed)
            save_checkpoint(run.folder / "model.pt", **run.checkpoint(inference=True))
            logger.info("wrote %s", run.folder / "model.pt")
        finally:
            run.close()
    return found


def _check(cfg: Section, world: World) -> None:
    """Raise UserError where there can be no probe."""
    if not cfg.MODEL.INIT_FROM:
        raise UserError("MODEL.INIT_FROM is empty; name the weights to probe")
    if cfg.MODEL.TASK != "single_label":
        raise UserError(f"MODEL.TASK is {cfg.MODEL.TASK}; a probe is for one label a video")
    if world.size > 1:
        raise UserError(f"{world.size} processes: a probe needs all features in one; start it without torchrun")
    if not cfg.TRAIN.EVAL_PERIOD:
        raise UserError("TRAIN.EVAL_PERIOD is 0, but validation chooses a probe's learning rate; set it to 1")


def _cached(run: Run, split: str, videos: Sequence[Video], views: int) -> Cache:
    """Return the features of a list."""
    with report_worker_failures():
        loader, size = eval_loader(run.cfg, videos, run.world, views), run.cfg.TEST.BATCH_SIZE
        shown = progress(loader, total=len(videos), label=f"features of {split}", unit="videos", step=size)
        cache = cache_features(run.model, run.stop.until_stopped(shown), run.cfg.DATA.MEAN, run.cfg.DATA.STD)
    if run.stop.name:
        raise Stopped(
            f"stopped by {run.stop.name}; nothing was kept, the same command begins again", run.stop.interrupted
        )
    if unread := len(videos) * views - len(cache.labels_V):
        logger.warning("%s: %d of %d clips cannot be read and are left out", split, unread, len(videos) * views)
    return cache


def _probed(
    run: Run, train: Cache, val: Cache, rates: list[float], epochs: int, spent: float, *, timed: bool
) -> Probed:
    """Train the classifiers, give the model the best ones, and report it."""
    batch = min(BATCH, len(train.labels_V))
    steps = epochs * max(1, len(train.labels_V) // batch)
    began, one = time.monotonic(), None
    probes = train_probes(run.model, train, rates, steps=steps, batch=batch, seed=run.cfg.RNG_SEED)
    seconds, scores = time.monotonic() - began, accuracies(probes, val)
    best = max(range(len(rates)), key=scores.__getitem__)
    if timed:
        began = time.monotonic()
        train_probes(run.model, train, rates[best : best + 1], steps=steps, batch=batch, seed=run.cfg.RNG_SEED)
        one = time.monotonic() - began
    put_into(run.model, train, probes, best)
    for rate, score in zip(rates, scores, strict=True):
        run.journal.write("probe", 0, rate=float(f"{rate:.4g}"), top1=round(score, 3))
        logger.info("learning rate %-8.2g %6.2f %%%s", rate, score, "  best" if rate == rates[best] else "")
    found = Probed(rates, scores, rates[best], len(train.labels_V), spent, seconds, one)
    logger.info(
        "probe: %d steps at %d rates in %.2f s, after %.2f s for the features", steps, len(rates), seconds, spent
    )
    if one is not None:
        logger.info(
            "one rate alone: %.2f s; all rates take %.3f times as long with the features, %.2f times without",
            one, found.ratio, seconds / one,
        )  # fmt: skip
    return found
