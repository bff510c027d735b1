"""Samplers and loaders. The order of samples follows from (seed, step) alone: not from ranks, workers or restarts."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Sampler

from lookupvit_video.data.dataset import Batch, VideoDataset, collate
from lookupvit_video.data.decode import check_backend
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sampling import build_time_sampler
from lookupvit_video.data.transforms import eval_transform, train_transform
from lookupvit_video.seeding import mix_seed


class TrainBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields this rank's (epoch, row) keys for each micro-batch of each step from ``start_step`` to ``total_steps``.

    An epoch is a permutation from (seed, epoch), cut into global batches of ``batch_size`` videos; the ragged rest is
    left out of that epoch. Each global batch is cut into ``parts`` accumulation parts, and those over the ranks; so
    the global batch of a step holds the same videos for any number of ranks and parts.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size > num_videos:
            raise ValueError(
                f"TRAIN.BATCH_SIZE asks for {batch_size} videos a step, but the training list holds {num_videos}"
            )
        if batch_size % (parts * world_size):
            raise ValueError(
                f"TRAIN.BATCH_SIZE: {batch_size} videos a step cannot be split evenly over {world_size} processes x "
                f"{parts} accumulation steps"
            )
        self.num_videos, self.batch_size, self.seed = num_videos, batch_size, seed
        self.steps_per_epoch = num_videos // batch_size
        self.total_steps, self.start_step = total_steps, start_step
        self.parts, self.rank, self.world_size = parts, rank, world_size

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled_epoch, order = -1, []
        share = self.batch_size // (self.parts * self.world_size)
        for step in range(self.start_step, self.total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
                shuffled_epoch, order = epoch, torch.randperm(self.num_videos, generator=generator).tolist()
            for part in range(self.parts):
                first = batch * self.batch_size + (part * self.world_size + self.rank) * share
                yield [(epoch, row) for row in order[first : first + share]]


def _loader(
    cfg: CfgNode,
    dataset: VideoDataset,
    batches: Sampler[list[tuple[int, int]]] | list[list[int]],
    pin_memory: bool,
) -> Iterable[Batch]:
    check_backend(cfg.DATA.DECODING_BACKEND)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.DATA_LOADER.NUM_WORKERS,
        collate_fn=collate,
        pin_memory=pin_memory and cfg.DATA_LOADER.PIN_MEMORY,
    )


def build_train_loader(
    cfg: CfgNode,
    videos: Sequence[Video],
    *,
    flip: bool,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """Return one loader for the whole rest of the training: ACCUMULATION_STEPS batches a step.

    Raises:
        ValueError: TRAIN.BATCH_SIZE does not fit the number of videos or processes.
    """
    size, repeats = cfg.DATA.TRAIN_CROP_SIZE, cfg.AUG.NUM_SAMPLE
    dataset = VideoDataset(
        videos,
        times=build_time_sampler(cfg, training=True, num_clips=repeats),
        transform=train_transform(cfg, flip=flip),
        shape=(repeats, 3, cfg.DATA.NUM_FRAMES, size, size),
        backend=cfg.DATA.DECODING_BACKEND,
        cache=cfg.DATA.CACHE_VIDEOS,
        seed=cfg.RNG_SEED,
    )
    batches = TrainBatchSampler(
        len(videos),
        batch_size=cfg.TRAIN.BATCH_SIZE // repeats,
        seed=cfg.RNG_SEED,
        total_steps=total_steps,
        start_step=start_step,
        parts=cfg.TRAIN.ACCUMULATION_STEPS,
        rank=rank,
        world_size=world_size,
    )
    return _loader(cfg, dataset, batches, pin_memory)


def build_eval_loader(
    cfg: CfgNode,
    videos: Sequence[Video],
    *,
    num_views: int,
    num_crops: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """Return a loader over this rank's videos, ``num_views`` x ``num_crops`` clips each; every video exactly once."""
    size = cfg.DATA.TEST_CROP_SIZE
    dataset = VideoDataset(
        videos,
        times=build_time_sampler(cfg, training=False, num_clips=num_views),
        transform=eval_transform(size, cfg.DATA.TEST_SHORT_SIDE or size, num_crops),
        shape=(num_views * num_crops, 3, cfg.DATA.NUM_FRAMES, size, size),
        backend=cfg.DATA.DECODING_BACKEND,
        cache=cfg.DATA.CACHE_VIDEOS,
    )
    rows = list(range(rank, len(videos), world_size))
    batches = [rows[i : i + cfg.TEST.BATCH_SIZE] for i in range(0, len(rows), cfg.TEST.BATCH_SIZE)]
    return _loader(cfg, dataset, batches, pin_memory)
