"""A thread that decodes one source: its frames, cropped, go into a queue; a source that is cut off is opened again."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lookupvit_video.data.transforms import eval_transform
from lookupvit_video.decoding.orientation import RgbConverter, orientation_of_frame
from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.inference.streaming.frames import CUT, Frame, FrameQueue, WindowGrid
from lookupvit_video.inference.streaming.source import Source, SourceClock, decoded_frames, open_source

if TYPE_CHECKING:
    from lookupvit_video.inference.streaming.recorder import Recorder

logger = logging.getLogger(__name__)
_FASTER = 1.05  # than its own speed: HTTP sources deliver seconds at once, and should not fall behind in the end


@dataclass(frozen=True)
class ReaderOptions:
    """How a source is read."""

    size: int
    short_side: int
    """See ``eval_transform``."""
    realtime: bool = False
    """Play a file at its own speed."""
    timeout: float = 10.0
    """Seconds to connect, and to wait for data."""
    retries: int | None = None
    """How often in a row to connect again; None: without end."""
    first_wait: float = 0.5
    longest_wait: float = 30.0
    """Seconds before connecting again: doubled each time."""


class SourceReader(threading.Thread):
    """Reads a source until its end, or until ``stop`` is set.

    Args:
        recorder: gets every frame.
    """

    def __init__(
        self, source: Source, grid: WindowGrid, queue: FrameQueue, options: ReaderOptions, stop: threading.Event,
        recorder: "Recorder | None" = None,
    ):  # fmt: skip
        super().__init__(name=f"source {source.shown_name}", daemon=True)
        self.source, self.frames, self.cuts = source, 0, 0
        """Frames decoded, and interruptions after which it went on."""
        self.error = ""
        """Why it could not be read; empty: no failure."""
        self.bug: Exception | None = None
        self._grid, self._queue, self._options, self._ended, self._recorder = grid, queue, options, stop, recorder
        self._clock, self._rgb, self._size = SourceClock(), RgbConverter(), (0, 0)
        self._crop = eval_transform(options.size, options.short_side, 1)
        self._held: tuple[Any, float, float] | None = None  # the frame before, its seconds, when it arrived
        self._gap = ""
        self._due: float | None = None  # when the next frame may be shown
        self._lost: float | None = None  # when the last frame before an interruption came

    @property
    def seconds(self) -> float:
        """The end of what was read, in seconds of the source."""
        return 0.0 if self._clock.last is None else self._clock.last + self._clock.period

    def run(self) -> None:
        """Read; see ``threading.Thread``."""
        try:
            self._connect_until_done()
        except Exception as error:
            self.bug = error
        finally:
            self._queue.close()

    def _connect_until_done(self) -> None:
        failures, wait = 0, self._options.first_wait
        while not self._ended.is_set():
            before, is_over, why = self.frames, False, "the connection ended"
            try:
                is_over = self._read_once()
            except DecodeError as error:
                why = error.reason
            self._flush()
            if is_over or self._ended.is_set():
                return
            if self.frames > before:
                failures, wait, self._lost = 0, self._options.first_wait, time.monotonic()
            if not self.source.is_live or failures == self._options.retries:
                self.error = why
                return
            logger.warning("%s: %s; connecting again in %.1f s", self.source.shown_name, why, wait)
            self._ended.wait(wait)
            failures, wait = failures + 1, min(2 * wait, self._options.longest_wait)

    def _read_once(self) -> bool:
        """Read from opening to the end; return whether the source is over, not only cut off."""
        before, self._size = self.frames, (0, 0)
        with open_source(self.source, self._options.timeout) as container:
            length = container.duration / 1e6 if container.duration else None
            self._clock.is_endless = self.source.is_live and length is None
            for frame in decoded_frames(container, self.source.shown_name):
                if self._ended.is_set():
                    return True
                if self._lost is not None and self._clock.is_endless:  # else it is sent from its beginning
                    self._clock.interrupted(time.monotonic() - self._lost)
                self._take(frame, container)
        if not self.frames:
            raise DecodeError(self.source.shown_name, "no frame can be decoded")
        if length is None:
            return not self.source.is_live
        return not self.source.is_live or self.seconds >= length - 1.0 or self.frames == before

    def _take(self, frame: Any, container: Any) -> None:
        """Take in a decoded frame: until when the one before it is shown is known now."""
        seconds, cut = self._clock.seconds(frame.time)
        if seconds is None:
            return
        self.frames += 1
        self.cuts += self._lost is not None
        self._lost = None
        self._wait_for(seconds)
        if cut:
            self._flush()
            self._gap = CUT
        elif self._held is not None:
            self._pass_on(seconds)
        if self._size != (frame.width, frame.height):
            self._size = frame.width, frame.height
            aspect = float(container.streams.best("video").sample_aspect_ratio or 1)
            self._rgb.fit(self._size, orientation_of_frame(frame), aspect)
        self._held = frame, seconds, time.monotonic()

    def _wait_for(self, seconds: float) -> None:
        """Wait until a frame is due, where the source delivers faster than its own speed."""
        now = time.monotonic()
        if self._options.realtime and not self.source.is_live:
            self._due = now - seconds if self._due is None else self._due
            self._ended.wait(max(0.0, self._due + seconds - now))
        elif self.source.kind == "http":
            self._due = now if self._due is None else max(now, self._due + min(self._clock.period, 1.0) / _FASTER)
            self._ended.wait(max(0.0, self._due - now))

    def _flush(self) -> None:
        """Pass on the last frame before the end, or before an interruption."""
        if self._held is not None:
            self._pass_on(self._held[1] + self._clock.period)

    def _pass_on(self, end: float) -> None:
        assert self._held is not None
        (frame, start, arrived), self._held = self._held, None
        is_needed = self._grid.needs(start, end)
        if not is_needed and self._recorder is None:
            return
        picture = self._rgb.convert(frame, orientation_of_frame(frame, self._rgb.orientation))
        if self._recorder is not None:
            self._recorder.add(picture, start, 1 / self._clock.period)
        if not is_needed:
            return
        pixels = self._crop(torch.from_numpy(picture.copy())[None])[0]
        self._queue.put(Frame(start, end, arrived, pixels, self._gap), self._ended)
        self._gap = ""
