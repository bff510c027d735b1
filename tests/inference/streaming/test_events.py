"""Events of live windows are the segments of a timeline."""

import numpy as np
import pytest

from lookupvit_video.inference.streaming.events import LabelEvents, PresenceEvents
from lookupvit_video.inference.timeline import Timeline, find_segments

CLASSES = list("abcd")


def random_timeline(seed, thresholds=(), stride=0.5, window=2.0, count=160):
    draw = np.random.default_rng(seed)
    labels = np.repeat(draw.integers(4, size=count // 8 + 1), draw.integers(3, 14, size=count // 8 + 1))[:count]
    rows = draw.dirichlet([0.4] * 4, size=len(labels))
    rows[np.arange(len(labels)), labels] += draw.uniform(0, 2, size=len(labels))
    rows = (rows / rows.sum(1, keepdims=True)).astype(np.float32)
    starts = stride * np.arange(len(rows))
    return Timeline("x", starts[-1] + window, window, starts, rows, CLASSES, thresholds)


def played(events, timeline):
    found = []
    for start, row in zip(timeline.starts.tolist(), timeline.probabilities, strict=True):
        found += events.add(start, row)
    return found + events.finish(timeline.duration)


def assert_same(events, segments):
    ended = sorted((event.segment for event in events if event.kind == "end"), key=lambda s: (s.start, s.label))
    segments = sorted(segments, key=lambda s: (s.start, s.label))
    assert [(s.label, s.start, s.end) for s in ended] == [(s.label, s.start, s.end) for s in segments]
    assert [s.probability for s in ended] == pytest.approx([s.probability for s in segments], abs=1e-6)
    starts = sorted((event.segment.start, event.segment.label) for event in events if event.kind == "start")
    assert starts == [(s.start, s.label) for s in segments]


@pytest.mark.parametrize("cost", [1.0, 2.0, 5.0])
def test_labels_are_the_segments_of_the_timeline(cost):
    for seed in range(8):
        timeline = random_timeline(seed)
        assert_same(played(LabelEvents(CLASSES, 2.0, cost), timeline), find_segments(timeline, change_cost=cost))


def test_a_class_by_itself_is_as_in_the_timeline_of_several_labels():
    thresholds = [0.3, 0.5, 0.2, 0.6]
    for seed in range(8):
        timeline = random_timeline(seed, thresholds)
        assert_same(played(PresenceEvents(CLASSES, 2.0, thresholds, thresholds), timeline), find_segments(timeline))


def test_an_event_is_reported_when_it_begins_and_when_it_ends():
    events = LabelEvents(["a", "b"], 2.0)
    rows = [[0.9, 0.1]] * 10 + [[0.1, 0.9]] * 10
    found = [(number, event) for number, row in enumerate(rows) for event in events.add(number * 0.5, np.array(row))]
    assert [(event.kind, event.segment.label) for _, event in found] == [("start", "a"), ("end", "a"), ("start", "b")]
    numbers = [number for number, _ in found]
    assert numbers[0] <= 4
    assert 10 < numbers[1] == numbers[2] <= 17
    (last,) = events.finish(12.0)
    assert last.as_dict("cam") == {
        "source": "cam", "event": "end", "label": "b", "start": found[2][1].segment.start, "end": 12.0,
        "probability": 0.9,
    }  # fmt: skip
    assert "end" not in found[0][1].as_dict("cam")


def test_after_an_interruption_events_begin_anew():
    for events in (LabelEvents(["a", "b"], 2.0), PresenceEvents(["a", "b"], 2.0, [0.5, 0.5], [0.5, 0.5])):
        for number in range(5):
            events.add(number * 0.5, np.array([0.9, 0.1]))
        (end,) = [event for event in events.finish(4.0) if event.kind == "end"]
        assert (end.segment.start, end.segment.end) == (0.0, 4.0)
        found = [event for number in range(20, 30) for event in events.add(number * 0.5, np.array([0.9, 0.1]))]
        found += events.finish(16.0)
        assert (found[0].kind, found[0].segment.start) == ("start", 10.0)
        assert events.finish(99.0) == []


def test_unlikely_events_are_left_out():
    events = LabelEvents(["a", "b"], 1.0, change_cost=1.0, min_probability=0.7)
    rows = [[0.6, 0.4]] * 10 + [[0.1, 0.9]] * 10
    found = [event for number, row in enumerate(rows) for event in events.add(number * 0.5, np.array(row))]
    assert {event.segment.label for event in [*found, *events.finish(11.0)]} == {"b"}


def test_hysteresis_and_smoothing():
    rows = [0.1, 0.9, 0.6, 0.5, 0.6, 0.2, 0.1, 0.55]

    def spans(**options):
        events = PresenceEvents(["a"], 1.0, [0.8], [options.pop("leave", 0.8)], **options)
        found = [event for number, value in enumerate(rows) for event in events.add(number * 1.0, np.array([value]))]
        return [(e.segment.start, e.segment.end) for e in [*found, *events.finish(9.0)] if e.kind == "end"]

    assert spans() == [(1.0, 2.0)]
    assert spans(leave=0.5) == [(1.0, 5.0)]
    assert spans(leave=0.5, smooth=1.0) == []  # the mean of two is never as high
