"""Progress passes everything through, and tells people no more than is true."""

import io
import logging
import re
import sys

import pytest

from lookupvit_video.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def set_stderr(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def counts(text):
    return [(int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+)", text)]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_passes_every_item(monkeypatch, stream, count):
    set_stderr(monkeypatch, stream())
    items = (str(i) for i in range(count))
    assert list(progress(items, total=count, label="test", unit="videos", every=0)) == list("01234"[:count])


def test_is_lazy(monkeypatch):
    set_stderr(monkeypatch, io.StringIO())
    endless = iter(int, 1)
    assert next(iter(progress(endless, total=3, label="test", unit="videos"))) == 0


def test_plain_lines_where_there_is_no_terminal(monkeypatch, caplog):
    stream = set_stderr(monkeypatch, io.StringIO())
    with caplog.at_level(logging.INFO, logger="lookupvit_video.progress"):
        list(progress(range(3), total=10, step=4, label="test", unit="videos", every=0))
    assert [counts(line)[0] for line in caplog.messages] == [
        (4, 10),
        (8, 10),
        (10, 10),
    ]  # the last item is what is left
    for line in caplog.messages:
        assert re.fullmatch(r"test: \d+/10 videos, [\d.]+ videos/s, eta \d+ s", line)
    assert "\r" not in stream.getvalue()


def test_lines_are_far_between(monkeypatch, caplog):
    set_stderr(monkeypatch, io.StringIO())
    with caplog.at_level(logging.INFO, logger="lookupvit_video.progress"):
        list(progress(range(1000), total=1000, label="test", unit="videos", every=60))
    assert caplog.messages == []


@pytest.mark.parametrize("items", [3, 7])
def test_bar_on_a_terminal_ends_at_the_total(monkeypatch, caplog, items):
    stream = set_stderr(monkeypatch, Terminal())
    with caplog.at_level(logging.INFO):
        list(progress(range(items), total=10, step=4, label="test", unit="videos", every=0))
    shown = counts(stream.getvalue())
    assert shown[-1] == (10, 10)
    assert max(done for done, _ in shown) == 10
    assert "test" in stream.getvalue()
    assert caplog.messages == []
