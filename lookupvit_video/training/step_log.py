"""What is measured of the steps between two log lines."""

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
from lookupvit_video.training.health import Reading, bad_step_text, slow_processes

ADVICE = "lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_EPOCHS or use TRAIN.PRECISION float32"


@dataclass
class StepLog:
    """Collects the steps between two log lines without waiting for the device."""

    world: World
    videos: Sequence[Video]
    settled: list[tuple[float, float]] = field(default_factory=list)
    """Loss and gradient norm of each step so far, over all processes; a checkpoint holds them, so that the line that a
    resumed run writes is the same."""
    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    """Timed ones: those since the start, or the resumption, of this process."""
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
        """Time a forward pass; on a GPU by events, which are read when the device is waited for anyway."""
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
        """Take in a step: this process's loss, the gradient's norm, the videos read; nothing is computed yet."""
        self._losses.append(loss)
        self._norms.append(norm)
        self._rows.append(rows)

    def settle(self, last_step: int, tolerant: bool = False) -> None:
        """Average what was added over the processes; all must call it. Waits for the device.

        Args:
            last_step: number of the last step added.
            tolerant: the steps were looked at already, see ``bad_step``.

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
            told = self.bad_step(last_step - len(pairs) + 1 + first, own_losses[first], pairs[first][1], first)
            raise RunFailure(f"{told}; {ADVICE}")
        self.settled += pairs
        self.forward_seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._losses, self._norms, self._rows, self._events = [], [], [], []

    def bad_step(self, step: int, loss: float, norm: float, index: int = -1) -> str:
        """Say what is known of a step that is not finite; all processes must call it.

        Args:
            step: its number.
            loss: this process's.
            norm: of the gradient.
            index: of the step among those added.
        """
        own = Reading(loss, [self.videos[row].path for row in self._rows[index]])
        return bad_step_text(step, norm, gather_objects(own, self.world), self.world)

    def summary(self, batch_size: int) -> tuple[dict[str, Any], list[str]]:
        """Return the means of what was settled, by name, and what to warn of; all processes must call it.

        Args:
            batch_size: clips a step, over all processes.

        Returns:
            loss and grad_norm over the steps that have finite ones; seconds a step as step_time and, of them, data_time
            in the process that waited longest.
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
