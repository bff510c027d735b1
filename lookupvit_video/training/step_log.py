"""Measures the steps between two log lines."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed

from lookupvit_video.data.manifest import Video
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import RunFailure

ADVICE = "lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_EPOCHS or use TRAIN.PRECISION float32"
SHOWN_VIDEOS = 8  # of each process, where a message names what a step read


@dataclass
class StepLog:
    """Collects the steps between two log lines without waiting for the device."""

    world: World
    videos: Sequence[Video]
    settled: list[tuple[float, float]] = field(default_factory=list)
    """Loss and gradient norm of each step so far, over all processes, see ``TrainingState.losses``."""
    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    """Steps of this process, which are timed."""
    data_seconds: float = 0.0
    forward_seconds: float = 0.0
    macs: int = 0
    """Of the forward passes of all clips, over all processes."""
    _losses: list[Tensor] = field(default_factory=list)
    _norms: list[Tensor] = field(default_factory=list)
    _rows: list[list[int]] = field(default_factory=list)

    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def forward_timed(self) -> Iterator[None]:
        """Time a forward pass; on a GPU by events, which ``settle`` reads."""
        if self.world.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            before = time.perf_counter()
            yield
            self.forward_seconds += time.perf_counter() - before

    def add(self, loss: Tensor, norm: Tensor, rows: list[int]) -> None:
        """Add a step: this process's loss, the gradient norm and rows of the videos read; computes nothing."""
        self._losses.append(loss)
        self._norms.append(norm)
        self._rows.append(rows)

    def settle(self, last_step: int, tolerant: bool = False) -> None:
        """Average the added steps over the processes; all must call it. Waits for the device.

        Args:
            last_step: number of the last step added.
            tolerant: steps that are not finite are allowed.

        Raises:
            RunFailure: a loss or gradient is not finite; names the step, the processes and their videos.
        """
        if not self._losses:
            return
        values = torch.stack([torch.stack(self._losses), torch.stack(self._norms)])
        own_losses = values[0].tolist()
        if self.world.size > 1:
            distributed.all_reduce(values)
            values /= self.world.size
        pairs = list(zip(*values.tolist(), strict=True))
        finite = values.isfinite().all(0).tolist()
        if not tolerant and not all(finite):
            first = finite.index(False)
            report = self.bad_step(last_step - len(pairs) + 1 + first, own_losses[first], pairs[first][1], first)
            raise RunFailure(f"{report}; {ADVICE}")
        self.settled += pairs
        self.forward_seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._losses, self._norms, self._rows, self._events = [], [], [], []

    def bad_step(self, step: int, loss: float, norm: float, index: int = -1) -> str:
        """Describe a step that is not finite; all processes must call it.

        Args:
            loss: of this process.
            norm: of the gradient.
            index: of the step among those added.
        """
        own = (loss, [self.videos[row].path for row in self._rows[index]])
        return bad_step_text(step, norm, gather_objects(own, self.world))

    def summary(self, batch_size: int) -> tuple[dict[str, Any], list[str]]:
        """Return means over the settled steps, by name, and warnings; all processes must call it.

        Args:
            batch_size: clips a step, over all processes.

        Returns:
            loss and grad_norm over the finite ones; step_time in seconds, and data_time, its part in the process that
            waited longest for data.
        """
        seconds, steps = time.perf_counter() - self.start, max(self.steps, 1)
        own = (self.data_seconds / steps, self.forward_seconds / steps)
        times = gather_objects(own, self.world)
        pairs = torch.tensor(self.settled)
        loss, norm = (column[column.isfinite()].mean().item() for column in pairs.T)
        slowest = max(data for data, _ in times)
        facts = {
            "loss": loss,
            "grad_norm": norm,
            "clips_per_second": batch_size * steps / seconds,
            "step_time": seconds / steps,
            "data_time": slowest,
            "data_share": slowest * steps / seconds,
        }
        return facts, slow_processes(times, self.world) if self.world.size > 1 else []


def bad_step_text(step: int, norm: float, readings: Sequence[tuple[float, list[str]]]) -> str:
    """Describe where a loss or gradient became nan or infinite: the step, the processes and their videos.

    Args:
        norm: of the gradient, the mean over the processes.
        readings: loss of each process, by rank, and the videos that it read for the step.
    """
    bad = [rank for rank, (loss, _) in enumerate(readings) if not math.isfinite(loss)]
    if bad:
        what = f"the loss is {readings[bad[0]][0]:g} in " + ", ".join(f"rank {rank}" for rank in bad)
    else:  # the mean over the processes does not show whose gradient it was
        what, bad = "all losses are finite", list(range(len(readings)))
    named = []
    for rank in bad:
        names = readings[rank][1]
        more = f" and {len(names) - SHOWN_VIDEOS} more" if len(names) > SHOWN_VIDEOS else ""
        named.append(f"rank {rank} read {', '.join(names[:SHOWN_VIDEOS])}{more}")
    return f"step {step}: {what}, the gradient's norm is {norm:g}; {'; '.join(named)}"


def slow_processes(times: Sequence[tuple[float, float]], world: World, factor: float = 1.5) -> list[str]:
    """Name the processes for which the others wait.

    Args:
        times: by rank, seconds of a step spent waiting for data and in the forward pass.
        factor: a process is slow if both together take this many times the median, and 20 ms more.
    """
    totals = [data + forward for data, forward in times]
    usual = statistics.median_low(totals)
    slow = []
    for rank, (data, forward) in enumerate(times):
        if data + forward > factor * usual + 0.02:
            cause = "its data" if data > forward else "its forward pass"
            slow.append(
                f"{world.name(rank)} is slow: data and forward pass of a step take {1000 * (data + forward):.0f} ms "
                f"({1000 * max(data, forward):.0f} ms are {cause}), the median is {1000 * usual:.0f} ms"
            )
    return slow
