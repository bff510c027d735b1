import os
import time

import pytest

from lookupvit_video.config import load_config
from lookupvit_video.decoding.backends import DecodeError
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.errors import UserError
from lookupvit_video.inference.page import upload
from lookupvit_video.inference.page.upload import Limits, read_upload, warm_up
from lookupvit_video.inference.views import Failure, make_plan, read_file
from tests.models.test_models import SMALL
from tests.videos import write_audio, write_video


@pytest.fixture(scope="module")
def plan():
    return make_plan(load_config(None, SMALL)).changed(2, 3)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "x.mp4", frames=48)  # 2 s


def test_clips_and_duration_of_what_keeps_to_the_limits(plan, video):
    warm_up(plan)
    found = read_upload(video, plan, Limits(seconds=2.0))
    assert found.duration == pytest.approx(2)
    assert (found.views.clips == read_file(video, plan).clips).all()


def test_what_is_too_long_is_not_decoded(plan, video, monkeypatch):
    monkeypatch.setattr(PyAVReader, "frames_at", lambda *_: pytest.fail("decoded"))
    assert upload.read_within_limits(plan, Limits(seconds=1.9), video) == Failure(
        video, "lasts 2 s; the limit here is 1.9 s (--max-seconds)"
    )


def test_what_is_too_large_is_not_opened(plan, tmp_path, monkeypatch):
    large = tmp_path / "large.mp4"
    large.touch()
    os.truncate(large, (2 << 20) + 1)
    monkeypatch.setattr(upload, "read_file", lambda *_: pytest.fail("opened"))
    reason = upload.read_within_limits(plan, Limits(megabytes=2), str(large)).error
    assert reason == "larger than 2 MB, the limit here (--max-mb)"


def test_reasons_are_those_of_the_decoder(plan, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    write_audio(tmp_path / "audio.mp4")
    for name, reason in (("text", "is text"), ("empty", "is empty"), ("audio", "no video stream"), ("none", "no such")):
        with pytest.raises(DecodeError, match=reason):
            read_upload(str(tmp_path / f"{name}.mp4"), plan, Limits())


def dies(plan, limits, path):
    os.abort()


def hangs(plan, limits, path):
    time.sleep(600)


@pytest.mark.parametrize(("read", "reason"), [(dies, "died .SIGABRT"), (hangs, "took longer than 1 s")])
def test_what_crashes_or_hangs_its_reader_is_a_reason_too(plan, monkeypatch, read, reason):
    monkeypatch.setattr(upload, "read_within_limits", read)
    monkeypatch.setattr(upload, "_SLACK", 1 - 2 * plan.timeout)
    with pytest.raises(DecodeError, match=reason):
        read_upload("x.mp4", plan, Limits())


def mistaken(plan, limits, path):
    raise IndexError("planted")


def test_a_bug_in_the_reader_is_no_fault_of_the_file(plan, monkeypatch):
    monkeypatch.setattr(upload, "read_within_limits", mistaken)
    with pytest.raises(RuntimeError, match="internal error, IndexError: planted"):
        read_upload("x.mp4", plan, Limits())


def test_a_users_mistake_is_a_reason(plan, video, monkeypatch):
    def fails(path, plan, check):
        raise UserError("install the decoder")

    monkeypatch.setattr(upload, "read_file", fails)
    assert upload.read_within_limits(plan, Limits(), video) == Failure(video, "install the decoder")
