"""Where events go, also when nobody takes them."""

import io
import json
import logging
import sys

import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.inference.streaming.sinks import LineSink, WebhookSink
from tests.inference.streaming.servers import webhook


def test_lines_are_appended(tmp_path):
    for number in range(2):
        sink = LineSink(str(tmp_path / "new" / "e.jsonl"))
        sink.write({"event": "start", "label": "é\n", "number": number})
        assert len((tmp_path / "new" / "e.jsonl").read_text().splitlines()) == number + 1  # before it is closed
        sink.close()


def test_a_closed_pipe_is_noticed(tmp_path):
    sink = LineSink(str(tmp_path / "e.jsonl"))
    sink.close()

    class Pipe:
        def write(self, _):
            raise BrokenPipeError

    sink._file = Pipe()
    sink.write({})
    assert sink.is_closed


def test_events_are_posted(caplog):
    with webhook() as (address, posted):
        sink = WebhookSink(address)
        for number in range(3):
            sink.write({"number": number})
        sink.close()
        assert [json.loads(body)["number"] for body in posted] == [0, 1, 2]
        assert sink.lost == 0
        with caplog.at_level(logging.WARNING):
            for path in ("/fails", "/moved"):
                sink = WebhookSink(address + path)
                sink.write({})
                sink.close()
                assert sink.lost == 1
    assert "1 events were not delivered" in caplog.text
    with pytest.raises(UserError, match="--webhook file:///x: must begin with http"):
        WebhookSink("file:///x")


def test_standard_output_stays_open_whichever_it_is_at_the_end(monkeypatch):
    before, after = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", before)
    sink = LineSink("-")
    monkeypatch.setattr(sys, "stdout", after)
    sink.close()
    assert not before.closed
    assert not after.closed
