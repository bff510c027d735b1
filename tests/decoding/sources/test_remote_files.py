"""What a server on this machine refuses, cuts off or does not have, and how often it is asked."""

import http.server
import socket
import threading

import pytest

from lookupvit_video.decoding.sources import remote_files

aiohttp = pytest.importorskip("aiohttp")
DATA = bytes(range(256)) * 4


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A server that does to each request what a list says, then serves; yields its address, that list and the waits."""
    troubles: list[int | str] = []
    waits: list[float] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            trouble = troubles.pop(0) if troubles else 200
            if isinstance(trouble, int) and trouble != 200:
                self.send_error(trouble)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA[:100] if trouble == "cut" else DATA)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(remote_files.time, "sleep", waits.append)
    yield f"http://127.0.0.1:{server.server_port}", troubles, waits
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("trouble", [500, 503, 429, "cut"])
def test_what_may_pass_is_tried_again(place, trouble):
    address, troubles, waits = place
    troubles += [trouble, trouble]
    assert remote_files.read_remote(f"{address}/a.mp4") == DATA
    assert waits == [0.5, 2.0]


def test_three_attempts_are_enough(place):
    address, troubles, waits = place
    troubles += [503] * 5
    with pytest.raises(OSError, match="503"):
        remote_files.read_remote(f"{address}/a.mp4")
    assert len(troubles) == 2
    assert waits == [0.5, 2.0]


@pytest.mark.parametrize("trouble", [403, 404, 410])
def test_what_does_not_pass_is_not(place, trouble):
    address, troubles, waits = place
    troubles += [trouble] * 5
    with pytest.raises(OSError, match=r"a\.mp4|Forbidden|Gone"):
        remote_files.read_remote(f"{address}/a.mp4")
    assert len(troubles) == 4
    assert waits == []


def test_a_server_that_is_gone_is_asked_three_times(place):
    _, _, waits = place
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        remote_files.read_remote("http://127.0.0.1:9/a.mp4")  # nothing listens there
    assert waits == [0.5, 2.0]


@pytest.mark.parametrize(
    ("error", "cause", "passes"),
    [
        (aiohttp.ClientOSError("no address"), socket.gaierror("temporary failure"), True),
        (OSError("ServerDisconnectedError"), aiohttp.ServerDisconnectedError(), True),
        (OSError("InvalidURL"), aiohttp.InvalidURL("http://["), False),
        (OSError("no answer in time"), TimeoutError(), False),
        (OSError("disk"), None, False),
    ],
)
def test_what_lies_behind_an_error_counts_too(error, cause, passes):
    error.__cause__ = cause
    assert remote_files._may_pass(error) == passes
