"""Answers to the windows of a live source -> events with start and end, as the timeline of a file has segments.

Shape letters: K classes.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from lookupvit_video.inference.streaming.label_path import LabelPath
from lookupvit_video.inference.timeline import CHANGE_COST, SMALLEST, Segment


class Event(NamedTuple):
    """Something that began, or is over."""

    kind: Literal["start", "end"]
    segment: Segment
    """Up to now, or complete."""

    def as_dict(self, source: str) -> dict[str, Any]:
        """Return it ready for JSON; times in seconds of the source."""
        found = self.segment
        end = {"end": round(found.end, 3)} if self.kind == "end" else {}
        return {
            "source": source, "event": self.kind, "label": found.label, "start": round(found.start, 3), **end,
            "probability": round(found.probability, 4),
        }  # fmt: skip


class Events(Protocol):
    """Turns windows into events."""

    def add(self, start: float, probabilities_K: np.ndarray) -> list[Event]:
        """Take in the next window, by its start in seconds, and return what follows from it."""

    def finish(self, end: float) -> list[Event]:
        """End what is not over, at a time in seconds; a later window begins again."""


@dataclass
class _Open:
    """A stretch that is not over."""

    label: int
    start: float
    total: float = 0.0
    count: int = 0
    is_reported: bool = False

    def add(self, probability: float) -> None:
        self.total += probability
        self.count += 1

    def segment(self, end: float, classes: Sequence[str]) -> Segment:
        return Segment(self.start, end, classes[self.label], self.total / self.count)


class LabelEvents:
    """One label at any time, as ``find_segments`` finds it; an event is reported once no later window can change it.

    Args:
        window: length of a window in seconds.
        change_cost, min_probability: see ``find_segments``.
        apart: see ``Timeline``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        window: float,
        change_cost: float = CHANGE_COST,
        min_probability: float = 0.0,
        apart: float = 0.0,
    ):
        self._classes, self._window, self._min = classes, window, min_probability
        self._apart = apart or window
        self._cost = change_cost
        self._begin(0.0)

    def _begin(self, start: float | None) -> None:
        self._path, self._row = LabelPath(self._cost), 0
        self._recent: deque[tuple[int, float]] = deque()  # windows that may still lie before a change
        self._unsettled: deque[tuple[float, np.ndarray]] = deque()
        self._open: _Open | None = None
        self._next_start, self._last_start = start, 0.0  # None: where the first window starts

    def add(self, start: float, probabilities_K: np.ndarray) -> list[Event]:
        """See ``Events``."""
        if self._next_start is None:
            self._next_start = start
        self._recent.append((self._row, start))
        while len(self._recent) > 1 and self._recent[1][1] <= start - self._apart + 1e-6:
            self._recent.popleft()
        row, earliest = self._recent[0]
        before = row if earliest <= start - self._apart + 1e-6 else -1
        self._path.add(np.log(np.maximum(probabilities_K, SMALLEST)), before)
        self._unsettled.append((start, probabilities_K))
        self._row += 1
        return self._settle(self._path.settled())

    def _settle(self, labels: Sequence[int]) -> list[Event]:
        found: list[Event] = []
        for label in labels:
            start, probabilities_K = self._unsettled.popleft()
            if label < 0:
                continue
            if self._open is None or self._open.label != label:
                if self._open is not None:
                    self._next_start = (self._last_start + self._window + start) / 2
                    found += self._end(self._next_start)
                self._open = _Open(label, self._next_start or 0.0)
            self._open.add(float(probabilities_K[label]))
            self._last_start = start
            if not self._open.is_reported and self._open.total >= self._min * self._open.count:
                self._open.is_reported = True
                found.append(Event("start", self._open.segment(start + self._window, self._classes)))
        return found

    def _end(self, end: float) -> list[Event]:
        if self._open is None or not self._open.is_reported:
            return []
        return [Event("end", self._open.segment(end, self._classes))]

    def finish(self, end: float) -> list[Event]:
        """See ``Events``."""
        found = [*self._settle(self._path.finish()), *self._end(end)]
        self._begin(None)
        return found


class PresenceEvents:
    """Every class by itself: present from where its probability reaches one threshold to where it falls below another.

    With equal thresholds and no smoothing, as the timeline of a model of several labels a video.

    Args:
        window: length of a window in seconds.
        enter, leave: (K,) thresholds; ``leave`` is at most ``enter``.
        smooth: seconds of which probabilities are averaged, up to the window; 0: each window's own.
    """

    def __init__(
        self, classes: Sequence[str], window: float, enter: Sequence[float], leave: Sequence[float], smooth: float = 0.0
    ):
        self._classes, self._window, self._smooth = classes, window, smooth
        self._enter_K, self._leave_K = np.array(enter), np.array(leave)
        self._begin(0.0)

    def _begin(self, start: float | None) -> None:
        self._open: dict[int, _Open] = {}
        self._recent: deque[tuple[float, np.ndarray]] = deque()
        self._first = start  # from where the first window counts; None: from its own start
        self._center: float | None = None

    def add(self, start: float, probabilities_K: np.ndarray) -> list[Event]:
        """See ``Events``."""
        center = start + self._window / 2
        if self._center is not None:
            border = (self._center + center) / 2
        else:
            border = start if self._first is None else self._first
        self._center = center
        self._recent.append((start, probabilities_K))
        while self._recent[0][0] < start - self._smooth - 1e-6:
            self._recent.popleft()
        mean_K = np.mean([row for _, row in self._recent], axis=0)
        found = []
        for label in [label for label in self._open if mean_K[label] < self._leave_K[label]]:
            found.append(Event("end", self._open.pop(label).segment(border, self._classes)))
        for label in np.flatnonzero(mean_K >= self._enter_K).tolist():
            self._open.setdefault(label, _Open(label, border))
        for label, stretch in self._open.items():
            stretch.add(float(probabilities_K[label]))
            if not stretch.is_reported:
                stretch.is_reported = True
                found.append(Event("start", stretch.segment(start + self._window, self._classes)))
        return found

    def finish(self, end: float) -> list[Event]:
        """See ``Events``."""
        found = [Event("end", stretch.segment(end, self._classes)) for stretch in self._open.values()]
        self._begin(None)
        return found
