"""From a received video to its answer, and what goes wrong on the way."""

import asyncio
import os
import time
from pathlib import Path

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.inference.page.upload import Limits
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.serving import inbox as inbox_module
from lookupvit_video.inference.serving import service as module
from lookupvit_video.inference.serving.batching import Wish
from lookupvit_video.inference.serving.inbox import Inbox
from lookupvit_video.inference.serving.refusal import Refusal
from lookupvit_video.inference.serving.service import ServeOptions, Service
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import write_video

WISH = Wish(5, None)


@pytest.fixture(scope="module")
def predictor():
    cfg = load_config(None, SMALL)
    torch.manual_seed(1)
    return Predictor(build_model(cfg), cfg, list("abcde"), torch.device("cpu"))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "x.mp4", frames=24)


@pytest.fixture
def make(predictor, monkeypatch):
    made = []

    def make(read=None, **options):
        if read is not None:
            monkeypatch.setattr(module, "read_within_limits", read)
        made.append(Service(predictor, predictor.plan, ServeOptions(**options)))
        return made[-1]

    yield make
    for service in made:
        service.close()


def received(path):
    inbox = Inbox(1 << 30)
    assert inbox.write(Path(path).read_bytes())
    return inbox


async def stays():
    return False


async def leaves():
    return True


def answer(service, inbox, is_gone=stays):
    return asyncio.run(service.answer(inbox, "x.mp4", WISH, is_gone))


def test_the_answer_is_that_of_predict_and_the_video_is_gone(make, predictor, video):
    service, inbox = make(), received(video)
    found = answer(service, inbox)
    expected = predictor.predict(video).as_dict()
    assert found.as_dict() == {**expected, "path": "x.mp4"}
    assert inbox.file.closed
    assert service.used == service._reading == 0


def dies(plan, limits, path):
    os.abort()


def mistaken(plan, limits, path):
    raise IndexError("planted")


def sleeps(plan, limits, path):
    time.sleep(1.5)


@pytest.mark.parametrize(("read", "status", "line"), [
    (dies, 422, "the process that read it died (SIGABRT)"), (mistaken, 500, "internal error; see the server log"),
    (sleeps, 504, "was not answered within 0.5 s; try again later"),
])  # fmt: skip
def test_what_crashes_errs_or_hangs_is_one_request(make, video, read, status, line):
    service, inbox = make(read, wait=0.5 if read is sleeps else 30), received(video)

    async def run():
        with pytest.raises(Refusal) as found:
            await service.answer(inbox, "x.mp4", WISH, stays)
        while service._reading:  # the worker is at it still, and the file must be there until it is not
            assert not inbox.file.closed
            await asyncio.sleep(0.05)
        return found.value

    refusal = asyncio.run(run())
    assert (refusal.status, refusal.line, refusal.path) == (status, line, "x.mp4")
    assert inbox.file.closed
    lost = {dies: "crash", mistaken: "error"}.get(read)
    assert lost is None or f'lookupvit_workers_lost_total{{cause="{lost}"}} 1.0' in service.metrics.text().decode()


def test_what_cannot_be_read_is_refused_with_the_reason(make, tmp_path):
    (tmp_path / "x.mp4").write_text("I am no video, but I am longer than that")
    with pytest.raises(Refusal, match="is text, not a video") as found:
        answer(make(), received(tmp_path / "x.mp4"))
    assert found.value.status == 422


def test_a_long_video_is_refused(make, video):
    with pytest.raises(Refusal, match=r"lasts 1 s; the limit here is 0.5 s \(--max-seconds\)"):
        answer(make(limits=Limits(seconds=0.5)), received(video))


def test_nothing_is_read_for_a_client_that_has_left(make, video):
    service, inbox = make(dies), received(video)
    with pytest.raises(Refusal) as found:
        answer(service, inbox, leaves)
    assert found.value.status == 499
    assert inbox.file.closed


def test_a_mistake_in_the_checkpoint_is_the_servers(make, predictor, video, monkeypatch):
    def fail(*_, **__):
        raise UserError("the weights are damaged")

    monkeypatch.setattr(predictor, "answers", fail)
    with pytest.raises(Refusal, match="the weights are damaged") as found:
        answer(make(), received(video))
    assert found.value.status == 500


def test_places_are_given_back_and_no_more_than_there_are(make):
    service = make(queue=2)
    with service.places(), service.places():
        with pytest.raises(Refusal, match="busy: 2 of 2 videos are in progress") as found, service.places():
            pass
        assert found.value.status == 503
    with pytest.raises(KeyError), service.places(2):
        raise KeyError
    with pytest.raises(Refusal, match="3 videos at once; the limit here is 2") as found, service.places(3):
        pass
    assert found.value.status == 413
    assert service.used == 0


def test_wishes_are_checked(make):
    service = make(topk=3)
    assert service.wish(None, None) == (3, None)
    assert service.wish(7, "1x2x2") == (7, "1x2x2")
    for grid in ("9x9x9", "no grid"):
        with pytest.raises(Refusal, match="grid") as found:
            service.wish(None, grid)
        assert found.value.status == 400
    with pytest.raises(Refusal, match="not calibrated, which this server's reject need"):
        make(answers={"reject": "0.1", "coverage": None}).wish(None, "1x2x2")


def test_an_inbox_is_a_file_without_a_name_that_workers_can_open(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inbox = Inbox(10)
    assert inbox.write(b"12345")
    assert Path(inbox.path).read_bytes() == b"12345"
    assert list(tmp_path.iterdir()) == []
    assert not inbox.write(b"678901")
    inbox.close()
    inbox.close()


def test_where_there_are_no_such_files_it_has_a_name_until_it_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(inbox_module, "HAS_UNNAMED", False)
    inbox = Inbox(10)
    inbox.write(b"123")
    assert Path(inbox.path).read_bytes() == b"123"
    assert len(list(tmp_path.iterdir())) == 1
    inbox.close()
    assert list(tmp_path.iterdir()) == []
