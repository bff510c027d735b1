"""Fetching from loopback: limits, redirections, and what a host may answer."""

import asyncio
import gzip
import time
from http.server import BaseHTTPRequestHandler

import pytest

from lookupvit_video.inference.page.upload import Limits
from lookupvit_video.inference.serving.addresses import AllowedHosts
from lookupvit_video.inference.serving.fetch import Fetcher
from lookupvit_video.inference.serving.refusal import Refusal
from tests.inference.streaming.servers import serving

MEGABYTE = 1 << 20


class Host(BaseHTTPRequestHandler):
    """Answers as the path says."""

    asked = []

    def do_GET(self):
        type(self).asked.append(self.path)
        name, _, rest = self.path[1:].partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", rest.replace("~", "://", 1))
            self.end_headers()
            return
        if name == "around":
            self.send_response(301)
            self.send_header("Location", "/around")
            self.end_headers()
            return
        self.send_response(404 if name == "none" else 200)
        body = {"zip": gzip.compress(bytes(MEGABYTE)), "large": bytes(MEGABYTE + 1)}.get(name, b"video")
        if name == "zip":
            self.send_header("Content-Encoding", "gzip")
        if name == "announced":
            self.send_header("Content-Length", str(MEGABYTE + 1))
        self.end_headers()
        if name == "slow":
            time.sleep(1.5)
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    Host.asked = []
    with serving(Host) as address:
        yield address.rstrip("/")


def fetch(url, private=(), public=(), seconds=10.0):
    async def run():
        fetcher = Fetcher(AllowedHosts.parse(public, private), Limits(1), seconds)
        try:
            inbox = await fetcher.fetch(url)
        finally:
            await fetcher.close()
        try:
            inbox.file.seek(0)
            return inbox.file.read()
        finally:
            inbox.close()

    return asyncio.run(run())


def refused(*arguments, **options):
    with pytest.raises(Refusal) as found:
        fetch(*arguments, **options)
    return found.value.status, found.value.line


def test_a_private_host_must_be_named_as_such(host):
    place = host.removeprefix("http://")
    assert fetch(f"{host}/a", [place]) == b"video"
    assert refused(f"{host}/a")[0] == 403
    assert refused(f"{host}/a", public=[place]) == (403, "host '127.0.0.1' has a private address (--allow-private)")
    by_name = f"localhost:{place.rpartition(':')[2]}"
    assert refused(f"http://{by_name}/a", public=[by_name]) == (
        403, "host 'localhost' has a private address (--allow-private)",
    )  # fmt: skip
    assert Host.asked == ["/a"]  # nobody else was asked


def test_redirections_lead_to_allowed_hosts_only(host):
    place = host.removeprefix("http://")
    assert fetch(f"{host}/to//b", [place]) == b"video"
    assert fetch(f"{host}/to/{host.replace('://', '~')}/b", [place]) == b"video"
    elsewhere = f"localhost:{place.rpartition(':')[2]}"
    assert refused(f"{host}/to/http~{elsewhere}/b", [place])[0] == 403
    assert refused(f"{host}/to/http~{elsewhere}/b", [place], [elsewhere])[0] == 403
    assert refused(f"{host}/to/file~/etc/passwd", [place])[0] == 400
    assert refused(f"{host}/around", [place]) == (502, "is redirected more than 3 times")
    assert Host.asked.count("/b") == 2


def test_limits_hold(host):
    place = host.removeprefix("http://")
    too_large = (413, "larger than 1 MB, the limit here (--max-mb)")
    assert refused(f"{host}/large", [place]) == too_large
    assert refused(f"{host}/announced", [place]) == too_large
    assert refused(f"{host}/slow", [place], seconds=0.5) == (504, "was not fetched within 0.5 s")
    assert len(fetch(f"{host}/zip", [place])) < 10_000  # not inflated


def test_what_a_host_does_not_give(host):
    place = host.removeprefix("http://")
    assert refused(f"{host}/none", [place]) == (502, "cannot be fetched (its host answers 404)")
    status, line = refused("http://127.0.0.1:9/a", ["127.0.0.1:9"])
    assert status == 502
    assert line.startswith("cannot be fetched (")


def test_no_proxy_is_asked(host, monkeypatch):
    """It would look the name up again."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert fetch(f"{host}/a", [host.removeprefix("http://")]) == b"video"
