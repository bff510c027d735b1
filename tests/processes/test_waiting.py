"""Time without a processor is told apart from time at work and from waiting for something else."""

import time

import pytest

from lookupvit_video.decoding.reader import Deadline, DecodeError
from lookupvit_video.processes.waiting import seconds_without_processor
from tests.busy import busy_core, compete, for_real


@for_real
def test_only_the_wait_for_a_processor_counts():
    start = seconds_without_processor()
    time.sleep(0.3)
    assert seconds_without_processor() - start < 0.1
    with busy_core():
        start, began = seconds_without_processor(), time.monotonic()
        compete(0.15)
        took = time.monotonic() - began
        assert seconds_without_processor() - start == pytest.approx(took - 0.15, abs=0.3)
    assert took > 0.5


@for_real
def test_a_deadline_leaves_out_what_others_took():
    with busy_core():
        deadline, began = Deadline("a.mp4", 0.5), time.monotonic()
        for _ in range(40):  # as in decoding: a look at the time now and then
            compete(0.005)
            deadline.check()
        assert time.monotonic() - began > 0.5
    time.sleep(0.6)  # a hung disk, not a busy machine
    with pytest.raises(DecodeError, match=r"took longer than 0\.5 s"):
        deadline.check()


def test_time_without_a_processor_does_not_count(monkeypatch):
    """Pretended: half of the time that passes, others have the processor."""
    start = time.monotonic()
    waiting = "lookupvit_video.decoding.reader.seconds_without_processor"
    monkeypatch.setattr(waiting, lambda: (time.monotonic() - start) / 2)
    deadline = Deadline("a.mp4", 0.4)
    taken = None
    try:
        while time.monotonic() < start + 5:
            time.sleep(0.01)
            deadline.check()
    except DecodeError:
        taken = time.monotonic() - start
    assert 0.7 < taken < 2, "the first look, after a tenth of the time, is where the count begins"


def test_this_system_counts_or_says_that_it_does_not():
    start = seconds_without_processor()
    assert start is None or 0 <= start <= seconds_without_processor()


def test_a_system_without_these_counts_is_no_error(monkeypatch):
    assert seconds_without_processor("none") is None
    assert seconds_without_processor(-1) is None
    monkeypatch.setattr("lookupvit_video.decoding.reader.seconds_without_processor", lambda: None)
    deadline = Deadline("a.mp4", 0.01)
    deadline.check()
    time.sleep(0.05)
    with pytest.raises(DecodeError, match="took longer"):
        deadline.check()
    Deadline("a.mp4", 0).check()
