"""Live sources -> events: windows of all sources share the passes of one model, which stays current.

Shape letters: K classes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.errors import UserError
from lookupvit_video.inference.budget import Grid
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.streaming.events import Event, Events, LabelEvents, PresenceEvents
from lookupvit_video.inference.streaming.frames import FrameQueue, Window, WindowBuilder, WindowGrid
from lookupvit_video.inference.streaming.reader import ReaderOptions, SourceReader
from lookupvit_video.inference.streaming.source import Source
from lookupvit_video.inference.timeline import CHANGE_COST, apart, default_stride, plan_windows, window_offsets

if TYPE_CHECKING:
    from lookupvit_video.inference.streaming.recorder import Recorder

_SLACK = 1.0  # seconds that the model may fall behind before windows are skipped
_LATENCIES = 100_000  # of the last decisions, for the summary
_LEAVING = 2.0  # seconds for a source to end
Write = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class StreamOptions:
    """How sources are watched."""

    stride: float | None = None
    window: float | None = None
    """Seconds, see ``plan_windows``."""
    grid: Grid | None = None
    """Of the compressed tokens, or a budget; None: the model's default."""
    batch_size: int = 8
    """Windows in one pass of the model."""
    buffer: float | None = None
    """Seconds of frames that may wait for the model; None: a window, and a second or a stride more."""
    realtime: bool = False
    """Play files at their own speed, and drop what the model cannot keep up with."""
    timeout: float = 10.0
    retries: int | None = None
    """See ``ReaderOptions``."""
    change_cost: float = CHANGE_COST
    min_probability: float = 0.0
    """See ``find_segments``."""
    enter: float | None = None
    """Probability from which on a class is present; None: one label at any time, or the checkpoint's thresholds."""
    leave: float | None = None
    """Probability below which it is over; None: the same."""
    smooth: float = 0.0
    """See ``PresenceEvents``."""
    decisions: bool = False
    """Write the answer to each window too."""
    annotate: str | None = None
    """Video of the source with its answers, see ``Recorder``."""


@dataclass
class Watch:
    """One source at work."""

    source: Source
    reader: SourceReader
    queue: FrameQueue
    builder: WindowBuilder
    events: Events
    is_live: bool
    """Whether it does not wait for the model."""
    recorder: "Recorder | None" = None
    waiting: deque[Window] = field(default_factory=deque)
    decisions: int = 0
    skipped: int = 0
    """Windows that the model had no time for."""
    reported: int = 0
    """Events that ended."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    """Seconds from the arrival of a window's last frame to the answer."""
    last: float = 0.0
    """Seconds of the source up to which windows were answered."""
    is_over: bool = False
    state: Tensor | None = None
    """Of a streaming model, after the last tubelet; None: there was none yet."""

    def summary(self) -> dict[str, Any]:
        """Return counts and latencies, ready for JSON."""
        p50, p99 = np.percentile(self.latencies, [50, 99]) * 1000 if self.latencies else (None, None)
        return {
            "source": self.source.shown_name, "event": "summary", "seconds": round(self.reader.seconds, 3),
            "frames": self.reader.frames, "dropped": self.queue.dropped, "cuts": self.reader.cuts,
            "decisions": self.decisions, "skipped": self.skipped, "events": self.reported,
            "latency_p50_ms": None if p50 is None else round(float(p50), 1),
            "latency_p99_ms": None if p99 is None else round(float(p99), 1),
            **({"error": self.reader.error} if self.reader.error else {}),
        }  # fmt: skip


class Streamer:
    """Watches sources with one model.

    Args:
        write: takes each event, ready for JSON.
        stop: ends the run.

    Raises:
        UserError: a stride or window out of range, or a video to write of several sources.
    """

    def __init__(
        self, predictor: Predictor, sources: Sequence[Source], options: StreamOptions, write: Write,
        stop: threading.Event,
    ):  # fmt: skip
        self._predictor, self._options, self._write, self._ended = predictor, options, write, stop
        if options.annotate and len(sources) > 1:
            raise UserError(f"--annotate {options.annotate}: writes the video of one source; there are {len(sources)}")
        plan = predictor.window_plan
        _, self.window = plan_windows(plan, 0.0, options.stride, options.window)
        self.stride = default_stride(plan, self.window) if options.stride is None else options.stride
        self.buffer = self.window + max(_SLACK, self.stride) if options.buffer is None else options.buffer
        self._ready = threading.Condition()
        self._cost = 0.0  # seconds that the model takes for a window
        grid = WindowGrid(self.stride, window_offsets(plan, self.window))
        self.watches = [self._watch(source, grid) for source in sources]

    def _watch(self, source: Source, grid: WindowGrid) -> Watch:
        options, plan = self._options, self._predictor.plan
        is_live = source.is_live or options.realtime
        queue = FrameQueue(self.buffer, self._ready, drops=is_live)
        reading = ReaderOptions(
            size=plan.size, short_side=plan.short_side, realtime=options.realtime, timeout=options.timeout,
            retries=options.retries,
        )  # fmt: skip
        recorder = None
        if options.annotate:
            from lookupvit_video.inference.streaming.recorder import Recorder  # draws with matplotlib's colors

            recorder = Recorder(options.annotate, self._predictor.classes)
        reader = SourceReader(source, grid, queue, reading, self._ended, recorder)
        return Watch(source, reader, queue, WindowBuilder(grid), self._events(), is_live, recorder)

    def _events(self) -> Events:
        options, classes = self._options, self._predictor.classes
        if options.enter is None and not self._predictor.thresholds:
            far = apart(self._predictor.window_plan, self.window)
            return LabelEvents(classes, self.window, options.change_cost, options.min_probability, far)
        enter = self._predictor.thresholds if options.enter is None else [options.enter] * len(classes)
        leave = enter if options.leave is None else [min(options.leave, threshold) for threshold in enter]
        return PresenceEvents(classes, self.window, enter, leave, options.smooth)

    def run(self) -> list[dict[str, Any]]:
        """Watch until all sources are over or ``stop`` is set; return the summary of each."""
        for watch in self.watches:
            watch.reader.start()
        try:
            while not self._ended.is_set() and not all(watch.is_over for watch in self.watches):
                self._collect()
                if batch := self._next_batch():
                    self._answer(batch)
        finally:
            self._ended.set()
            for watch in self.watches:
                watch.reader.join(_LEAVING)
                if watch.recorder:
                    watch.recorder.close()
        for watch in self.watches:
            if watch.reader.bug is not None:
                raise watch.reader.bug
            if not watch.is_over:
                self._finish(watch)
        summaries = [watch.summary() for watch in self.watches]
        for summary in summaries:
            self._write(summary)
        return summaries

    def _collect(self) -> None:
        """Wait for frames, and make windows of them; a source that waits for the model is asked when it has none."""
        active = [watch for watch in self.watches if not watch.is_over]
        with self._ready:
            self._ready.wait_for(
                lambda: self._ended.is_set() or any(w.waiting or w.queue.has_news for w in active), timeout=0.2
            )
        for watch in active:
            if watch.waiting and not watch.is_live:
                continue
            was_closed = watch.queue.is_closed  # before the frames are taken, which are the last ones then
            for frame in watch.queue.take():
                watch.waiting += watch.builder.add(frame)
            if was_closed and not watch.waiting:
                watch.waiting += watch.builder.finish()
                if not watch.waiting:
                    self._finish(watch)

    def _next_batch(self) -> list[tuple[Watch, Window]]:
        """Choose windows in turn; of a live source, late ones are skipped where the model cannot catch up."""
        active = [watch for watch in self.watches if watch.waiting]
        if not active:
            return []
        slack, now = max(_SLACK, self.stride), time.monotonic()
        affordable = max(1, int(slack / self._cost / len(active))) if self._cost else 10**9
        share = 1 if self._predictor.is_streaming else max(1, self._options.batch_size // len(active))
        batch = []
        for watch in active:
            while watch.is_live and len(watch.waiting) > affordable and now - watch.waiting[0].arrived > slack:
                skipped = watch.waiting.popleft()
                watch.skipped += 1
                if skipped.after_cut:
                    watch.waiting[0] = watch.waiting[0]._replace(after_cut=True)
            count = min(share, len(watch.waiting), affordable if watch.is_live else share)
            batch += [(watch, watch.waiting.popleft()) for _ in range(count)]
        return batch

    def _answer(self, batch: list[tuple[Watch, Window]]) -> None:
        start, size = time.monotonic(), self._options.batch_size
        for first in range(0, len(batch), size):
            part = batch[first : first + size]
            rows = self._probabilities(part).numpy()
            for (watch, window), row in zip(part, rows, strict=True):
                watch.latencies.append(time.monotonic() - window.arrived)
                self._decide(watch, window, row)
        self._cost = (time.monotonic() - start) / len(batch)

    def _probabilities(self, part: Sequence[tuple[Watch, Window]]) -> Tensor:
        """Return the answers (B, K) to windows; those of a streaming model are of different sources."""
        clips = torch.stack([window.clip for _, window in part])
        if not self._predictor.is_streaming:
            return self._predictor.predict_clips(clips, self._options.grid)
        begun = self._predictor.start_state()
        states = [begun if window.after_cut or watch.state is None else watch.state for watch, window in part]
        answers_BK, states_BMD = self._predictor.predict_step(clips, torch.cat(states))
        for (watch, _), state in zip(part, states_BMD.split(1), strict=True):
            watch.state = state
        return answers_BK

    def _decide(self, watch: Watch, window: Window, probabilities_K: np.ndarray) -> None:
        if window.after_cut:
            self._report(watch, watch.events.finish(watch.last))
        watch.decisions += 1
        watch.last = window.start + self.window
        best = int(probabilities_K.argmax())
        if watch.recorder:
            watch.recorder.answer(best, float(probabilities_K[best]))
        if self._options.decisions:
            self._write({
                "source": watch.source.shown_name, "event": "window", "label": self._predictor.classes[best],
                "start": round(window.start, 3), "end": round(watch.last, 3),
                "probability": round(float(probabilities_K[best]), 4),
                "latency_ms": round(1000 * watch.latencies[-1], 1),
            })  # fmt: skip
        self._report(watch, watch.events.add(window.start, probabilities_K))

    def _report(self, watch: Watch, events: Sequence[Event]) -> None:
        for event in events:
            watch.reported += event.kind == "end"
            self._write(event.as_dict(watch.source.shown_name))

    def _finish(self, watch: Watch) -> None:
        """End what is not over: a source that is read to its end ends there."""
        watch.is_over = True
        end = watch.reader.seconds if watch.queue.is_closed and not self._ended.is_set() else watch.last
        self._report(watch, watch.events.finish(end))
