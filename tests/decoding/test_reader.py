"""What all readers share: boxes, times, deadlines; without a video."""

import pickle

import numpy as np
import pytest
import torch

from lookupvit_video.decoding import reader
from lookupvit_video.decoding.reader import Box, Deadline, DecodeError, VideoReader, checked_times, shown_at


def test_the_frame_shown_is_the_last_that_has_begun():
    times = np.array([0.0, 0.5, 1.0, 3.0])
    at = np.array([-9.0, 0.0, 0.49, 0.5, 0.99, 1.0, 2.99, 3.0, 99.0])
    assert shown_at(times, at).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_a_time_may_fall_a_microsecond_short_of_the_frames_own():
    times = np.array([0.0, 1.0])
    assert shown_at(times, np.array([1 - 0.9e-6, 1 - 1.5e-6])).tolist() == [1, 0]


def test_times_are_made_one_row_and_must_be_finite():
    assert checked_times("a.mp4", [1, 2]).dtype == np.float64
    assert checked_times("a.mp4", np.array([[1.0], [2.0]])).tolist() == [1.0, 2.0]
    assert checked_times("a.mp4", []).shape == (0,)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=rf"a\.mp4: a time is not finite: {bad}"):
            checked_times("a.mp4", [0.0, bad])


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_box_cuts_rows_and_columns(kind):
    frames = np.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3)
    box = Box(top=1, left=2, height=3, width=4)
    part = box.cut(torch.from_numpy(frames) if kind == "tensor" else frames)
    assert part.shape == (2, 3, 4, 3)
    assert np.array_equal(np.asarray(part), frames[:, 1:4, 2:6])
    assert box.seen_from(Box(1, 1, 9, 9)) == Box(0, 1, 3, 4)


def test_the_box_around_others_reaches_from_the_first_row_and_column_to_the_last():
    assert Box.around([Box(3, 8, 10, 4), Box(5, 2, 4, 5), Box(4, 9, 12, 2)]) == Box(3, 2, 13, 10)
    assert Box.around(iter([Box(0, 1, 2, 3)])) == Box(0, 1, 2, 3)


def test_a_deadline_passes_once_its_seconds_are_over(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(reader.time, "monotonic", lambda: clock[0])
    deadline, endless = Deadline("a.mp4", 2.5), Deadline("a.mp4", 0)
    clock[0] = 102.5
    deadline.check()  # not yet over
    clock[0] = 102.6
    with pytest.raises(DecodeError, match=r"a\.mp4: took longer than 2\.5 s to decode \(DATA\.DECODE_TIMEOUT\)"):
        deadline.check()
    deadline.restart()
    deadline.check()
    clock[0] = 1e12
    endless.check()
    with pytest.raises(DecodeError):
        deadline.check()


def test_the_system_is_asked_for_waiting_only_where_a_call_takes_long(monkeypatch):
    clock, asked = [100.0], []
    monkeypatch.setattr(reader.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(reader, "seconds_without_processor", lambda: asked.append(clock[0]) or 0.0)
    deadline, short = Deadline("a.mp4", 50.0), Deadline("a.mp4", 2.0)
    for clock[0] in (100.0, 100.2, 101.0):
        deadline.check()
    assert asked == []
    short.check()  # after a tenth of its time
    assert asked == [101.0]
    for clock[0] in (101.1, 140.0):
        deadline.check()
    assert asked == [101.0, 101.1]


@pytest.mark.parametrize("known", [True, False])
def test_waiting_for_the_processor_does_not_count(monkeypatch, known):
    clock, waited = [100.0], [5.0 if known else None]
    monkeypatch.setattr(reader.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(reader, "seconds_without_processor", lambda: waited[0])
    deadline = Deadline("a.mp4", 10.0)
    clock[0] = 102.0
    deadline.check()
    clock[0], waited[0] = 111.0, 7.0 if known else None  # two of the eleven seconds, so the end is at 112
    if not known:
        with pytest.raises(DecodeError):
            deadline.check()
        return
    deadline.check()
    clock[0] = 112.5
    with pytest.raises(DecodeError, match="took longer than 10 s"):
        deadline.check()


def test_an_error_keeps_path_and_reason_apart():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "is empty")))
    assert isinstance(error, ValueError)
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is empty", "a.mp4: is empty")


def test_a_reader_closes_itself_also_after_an_error():
    closed = []

    class Reader(VideoReader):
        def close(self):
            closed.append(self)

    with Reader() as one:
        assert closed == []
    with pytest.raises(KeyError), Reader():
        raise KeyError
    assert len(closed) == 2
    assert closed[0] is one


def test_what_a_reader_must_have():
    bare = VideoReader()
    with pytest.raises(NotImplementedError):
        _ = bare.info
    with pytest.raises(NotImplementedError):
        bare.frames_at([0.0])
    with pytest.raises(NotImplementedError):
        bare.close()
