"""What tests/videos.py leaves behind in the process that writes a video."""

import os

import pytest

from tests.videos import write_video


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux's scheduling")
def test_an_encoder_leaves_the_scheduling_as_it_was(tmp_path):
    before = os.sched_getscheduler(0)
    write_video(tmp_path / "x.mkv", frames=2, codec="libsvtav1")
    assert os.sched_getscheduler(0) == before
