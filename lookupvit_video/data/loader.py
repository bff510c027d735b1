"""Samplers and loaders. The order of samples follows from (seed, step) alone: not from ranks, workers or restarts."""

import atexit
import errno
import multiprocessing.util
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from lookupvit_video.config import Section
from lookupvit_video.data.dataset import Batch, Sample, VideoDataset, collate
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sample_order import Keys, Order, sample_order, shuffled
from lookupvit_video.data.sampling import build_time_sampler
from lookupvit_video.data.transforms import eval_transform, train_transform
from lookupvit_video.data.video_table import first_label
from lookupvit_video.decoding.backends import check_backend
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.processes.children import STOP_SIGNALS, deaf_to, end_children
from lookupvit_video.processes.memory import keep_freed_memory

_FEWER = "lower DATA_LOADER.NUM_WORKERS or DATA_LOADER.PREFETCH_FACTOR (in training, or raise TRAIN.ACCUMULATION_STEPS)"
_MORE_SHARED_MEMORY = (
    "make /dev/shm larger (docker run --shm-size=8g, or mount -o remount,size=8g /dev/shm as root) or " + _FEWER
)
# What torch or the system say in a worker, or where its batch is taken in.
_SIGNS_OF_NO_SHARED_MEMORY = ("Bus error", "shared memory", "unable to write to file </torch_", "unable to mmap")
_SIGNS_OF_NO_SPACE = ("No space left on device", "Disk quota exceeded")
_SIGNS_OF_NO_FILES = ("Too many open files", "received 0 items of ancdata")


class TrainBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields this rank's (epoch, row) keys for each micro-batch of each step from ``start_step`` to ``total_steps``.

    An epoch is an order that follows from its number, cut into global batches of ``batch_size`` videos; the ragged rest
    is left out of that epoch. Each global batch is cut into ``parts`` accumulation parts, and those over the ranks; so
    the global batch of a step holds the same videos for any number of ranks and parts.

    Args:
        order: the keys of an epoch, see ``sample_order``; None: each video once, shuffled.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        order: Order | None = None,
        batch_size: int,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size > num_videos:
            raise UserError(
                f"TRAIN.BATCH_SIZE needs {batch_size} videos a step, but the training list holds {num_videos}"
            )
        if batch_size % (parts * world_size):
            raise UserError(
                f"TRAIN.BATCH_SIZE: {batch_size} videos a step cannot be split evenly over {world_size} processes x "
                f"{parts} accumulation steps"
            )
        self.order = order or shuffled(num_videos, seed)
        self.batch_size = batch_size
        self.steps_per_epoch = num_videos // batch_size
        self.total_steps, self.start_step = total_steps, start_step
        self.parts, self.rank, self.world_size = parts, rank, world_size

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        begun = -1
        keys: Keys
        share = self.batch_size // (self.parts * self.world_size)
        for step in range(self.start_step, self.total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != begun:
                begun, keys = epoch, self.order(epoch)
            for part in range(self.parts):
                first = batch * self.batch_size + (part * self.world_size + self.rank) * share
                yield keys[first : first + share]


@contextmanager
def report_worker_failures() -> Iterator[None]:
    """Turn what torch raises when a decoding worker dies, hangs or runs out of space into one line with the fix.

    Raises:
        RunFailure: in its place. Torch may raise at any line of this process, not only where it waits for a batch.
    """
    try:
        yield
        return
    except RunFailure:
        raise
    except (RuntimeError, OSError) as error:
        of_system = isinstance(error, OSError) and error.errno is not None  # not one that a worker sent here
        reason = "" if of_system else _worker_failure(f"{error.__cause__ or error}".strip())
        if not reason:
            raise
    # Out here, so that no traceback keeps torch's iterator: while it lives, torch keeps raising for its dead workers.
    raise RunFailure(reason)


def _worker_failure(text: str) -> str:
    """What happened to a worker and how to fix it, from torch's message; empty where it is about something else."""
    if text.startswith("DataLoader timed out"):
        return f"{text}; does the disk hang? Otherwise raise DATA_LOADER.TIMEOUT"
    if any(sign in text for sign in _SIGNS_OF_NO_SHARED_MEMORY):
        return f"a decoding worker found no shared memory for its batch; {_MORE_SHARED_MEMORY}"
    if any(sign in text for sign in _SIGNS_OF_NO_FILES):
        return f"no more open files are allowed for the decoding workers' batches; raise `ulimit -n`, or {_FEWER}"
    if "DataLoader worker" in text and any(sign in text for sign in _SIGNS_OF_NO_SPACE):
        last = text.splitlines()[-1]
        return f"a decoding worker has no space for its files ({last}); free space there, or set TMPDIR elsewhere"
    if text.startswith(("DataLoader worker", "Pin memory thread")):
        return (
            f"{text.splitlines()[0].rstrip('. ')}; if killed, the memory may be full: {_FEWER}; if by a fault, "
            "lookupvit check finds the video"
        )
    return ""


@contextmanager
def _report_start_failures() -> Iterator[None]:
    """Turn the system's errors when workers and their queues are made into one line.

    Raises:
        RunFailure: in their place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:  # of a semaphore
            reason = f"there is no shared memory for the decoding workers; {_MORE_SHARED_MEMORY}"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            reason = f"no more open files are allowed for the decoding workers; raise `ulimit -n`, or {_FEWER}"
        elif error.errno in (errno.EAGAIN, errno.ENOMEM):
            reason = f"the system allows no more processes or memory for decoding workers ({error.strerror}); {_FEWER}"
        else:
            raise
        raise RunFailure(reason) from None


def _prepare_worker(_worker: int) -> None:
    """Prepare the process of a decoding worker."""
    keep_freed_memory()
    multiprocessing.util.get_temp_dir()  # batches travel by a socket in it: better an error here than a thread's later


class _Workers(_MultiProcessingDataLoaderIter):
    """Torch's iterator, which ends the workers that it could start if it could not start all of them."""

    def __init__(self, loader: "Loader"):
        try:
            super().__init__(loader)
        except OSError:
            self._shutdown = True  # not by asking them through queues that may be missing
            end_children(getattr(self, "_workers", []))
            raise
        _workers.update(self._workers)


# At its end Python sends its children SIGTERM, which workers do not hear, and waits: a script that leaves a loop over
# a loader early would not end.
_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
atexit.register(end_children, _workers)


class Loader(DataLoader[Sample]):
    """A DataLoader of ``Batch``es whose workers' deaths are ``RunFailure``s.

    Its workers run torch and the decoders on one thread each, and live as long as one pass over the loader, which for
    training is the complete run.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        batches: Sampler[list[tuple[int, int]]] | list[list[int]],
        *,
        workers: int,
        prefetch: int,
        timeout: float,
        pin_memory: bool,
    ):
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_prepare_worker,
            pin_memory=pin_memory,
            prefetch_factor=prefetch if workers else None,
            timeout=timeout if workers else 0,
            # its own: torch draws a seed from it at each start, and a resumed run starts once more than another
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own iterator
        # The step to be finished after a signal needs the workers; they must not end at the signal.
        with deaf_to(*STOP_SIGNALS), _report_start_failures():
            batches = super().__iter__()  # the workers start now, not with the first batch
        return self._batches(batches)

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if not self.num_workers:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _Workers(self)

    @staticmethod
    def _batches(batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            with report_worker_failures():
                yield from batches
        finally:
            del batches  # see ``report_worker_failures``


def build_train_loader(
    cfg: CfgNode,
    videos: Sequence[Video],
    *,
    total_steps: int,
    start_step: int = 0,
    mirror: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """Return one loader for all the rest of the training: ACCUMULATION_STEPS batches a step.

    Args:
        mirror: the label of each label's mirror image, see ``mirrored_labels``; None: no clip is mirrored.

    Raises:
        UserError: TRAIN.BATCH_SIZE does not fit the number of videos or processes, or there is no such backend here.
    """
    size, repeats = cfg.DATA.TRAIN_CROP_SIZE, cfg.AUG.NUM_SAMPLE
    clips = {
        "times": build_time_sampler(cfg, training=True, num_clips=repeats),
        "transform": train_transform(cfg),
        "shape": (repeats, 3, cfg.DATA.NUM_FRAMES, size, size),
        "damaged": cfg.DATA.DAMAGED_TRAIN,
        "seed": cfg.RNG_SEED,
        "mirror": mirror,
        "num_classes": _num_targets(cfg.MODEL),
    }
    batches = TrainBatchSampler(
        len(videos),
        order=sample_order(cfg.DATA.SAMPLER, first_label(videos), cfg.RNG_SEED),
        batch_size=cfg.TRAIN.BATCH_SIZE // repeats,
        seed=cfg.RNG_SEED,
        total_steps=total_steps,
        start_step=start_step,
        parts=cfg.TRAIN.ACCUMULATION_STEPS,
        rank=rank,
        world_size=world_size,
    )
    return _build_loader(cfg.DATA, cfg.DATA_LOADER, videos, clips, batches, pin_memory)


def build_eval_loader(
    cfg: CfgNode,
    videos: Sequence[Video],
    *,
    num_views: int,
    num_crops: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """Return a loader over this rank's videos, ``num_views`` x ``num_crops`` clips each; every video exactly once."""
    size = cfg.DATA.TEST_CROP_SIZE
    clips = {
        "times": build_time_sampler(cfg, training=False, num_clips=num_views),
        "transform": eval_transform(size, cfg.DATA.TEST_SHORT_SIDE or size, num_crops),
        "shape": (num_views * num_crops, 3, cfg.DATA.NUM_FRAMES, size, size),
        "damaged": cfg.DATA.DAMAGED_TEST,
        "num_classes": _num_targets(cfg.MODEL),
    }
    rows = list(range(rank, len(videos), world_size))
    batches = [rows[i : i + cfg.TEST.BATCH_SIZE] for i in range(0, len(rows), cfg.TEST.BATCH_SIZE)]
    return _build_loader(cfg.DATA, cfg.DATA_LOADER, videos, clips, batches, pin_memory)


def _num_targets(MODEL: Section) -> int:
    """Return how many targets a video has where it may have several labels; else 0."""
    return MODEL.NUM_CLASSES if MODEL.TASK == "multi_label" else 0


def _build_loader(
    DATA: Section,
    DATA_LOADER: Section,
    videos: Sequence[Video],
    clips: dict[str, Any],
    batches: Sampler[list[tuple[int, int]]] | list[list[int]],
    pin_memory: bool,
) -> Loader:
    check_backend(DATA.DECODING_BACKEND)
    dataset = VideoDataset(
        videos,
        backend=DATA.DECODING_BACKEND,
        cache=DATA.CACHE_VIDEOS and (DATA.CACHE_SHORT_SIDE or True),
        timeout=DATA.DECODE_TIMEOUT,
        index_cache=DATA.INDEX_CACHE,
        **clips,
    )
    return Loader(
        dataset,
        batches,
        workers=DATA_LOADER.NUM_WORKERS,
        prefetch=DATA_LOADER.PREFETCH_FACTOR,
        timeout=DATA_LOADER.TIMEOUT,
        pin_memory=pin_memory and DATA_LOADER.PIN_MEMORY,
    )


@dataclass
class DataWatch:
    """Warns, now and then, that training waits for data, and says what can be done about it.

    Args:
        workers: DATA_LOADER.NUM_WORKERS.
        cached: DATA.CACHE_VIDEOS.
        share: of the time, above which waiting is reported.
        pause: log lines from one warning to the next.
    """

    workers: int
    cached: bool = False
    share: float = 0.3
    pause: int = 20
    _lines: int = 0
    _quiet_until: int = 1  # the first line's time holds the start of the workers

    def advice(self, data_seconds: float, step_seconds: float) -> str:
        """Return a warning for a log line's data time and step time, or nothing."""
        self._lines += 1
        if self._lines <= self._quiet_until or data_seconds <= self.share * step_seconds:
            return ""
        self._quiet_until = self._lines + self.pause
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes, load = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), os.getloadavg()[0]
        if self.cached:
            fix = (
                f"with DATA.CACHE_VIDEOS each process that reads decodes every video once, and "
                f"DATA_LOADER.NUM_WORKERS is {self.workers}; later epochs wait less"
            )
        elif load > 2 * cores:
            fix = f"other programs keep the {cores} cores here busy (load {load:.0f}): stop them, or wait"
        elif processes * (self.workers + 1) < cores:
            fix = f"raise DATA_LOADER.NUM_WORKERS, now {self.workers}: this machine has {cores} cores"
        else:
            fix = (
                f"the {cores} cores here are busy: re-encode the videos smaller (ffmpeg -i IN -vf scale=-2:256 OUT), "
                "draw more clips from each (AUG.NUM_SAMPLE) or use a machine with more cores"
            )
        return (
            f"training waits for data {100 * data_seconds / step_seconds:.0f} % of the time; {fix}. "
            "lookupvit benchmark loader --cfg CONFIG shows where the time goes"
        )
