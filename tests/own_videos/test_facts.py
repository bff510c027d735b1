"""What is measured: videos, and the memory that is free."""

import subprocess
import sys

import pytest

from lookupvit_video.data.manifest import Video
from lookupvit_video.errors import RunFailure
from lookupvit_video.own_videos.facts import open_sample, video_facts
from tests.small import ROOT
from tests.videos import write_video


def test_the_median_video(tmp_path):
    for number, frames in enumerate((12, 24, 48)):
        write_video(tmp_path / f"{number}.mp4", frames=frames, size=(64, 48), fps=24)
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 100)
    videos = [Video(str(tmp_path / f"{name}.mp4"), 0) for name in (0, 1, 2, "bad")]
    infos, bad = open_sample(videos, seed=0)
    assert list(bad) == [str(tmp_path / "bad.mp4")]
    facts = video_facts({"train": videos, "val": videos[:1], "test": []}, 3, infos)
    assert (facts.train, facts.val, facts.test, facts.classes) == (4, 1, 0, 3)
    assert (facts.seconds, facts.fps, facts.short_side) == (pytest.approx(0.75), pytest.approx(24), 48)
    assert facts.decoded_bytes == pytest.approx(3 * 64 * 48 * (12 + 24 + 48 + 12) / 4)


def test_a_span_of_a_file_counts_not_the_file(tmp_path):
    write_video(tmp_path / "a.mp4", frames=48, fps=24)
    videos = [Video(str(tmp_path / "a.mp4"), 0, 0.5, 1.0)]
    facts = video_facts({"train": videos, "val": [], "test": []}, 1, open_sample(videos, 0)[0])
    assert facts.seconds == 0.5


def test_no_readable_video(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(RunFailure, match="none of 1 videos can be read, for instance"):
        open_sample([Video(str(tmp_path / "bad.mp4"), 0)], 0)


def test_a_limit_of_this_process_is_kept():
    code = (
        "import resource; from lookupvit_video.own_videos.facts import _free_memory; free = _free_memory(); "
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (pages + (1 << 20), -1)); assert _free_memory() <= 1 << 20 < free"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
