"""What may be fetched: named hosts, and private addresses of those alone that may have them."""

import asyncio
import re

import pytest
from aiohttp.resolver import ThreadedResolver

from lookupvit_video.errors import UserError
from lookupvit_video.inference.serving.addresses import AllowedHosts, CheckedResolver, Place, is_public
from lookupvit_video.inference.serving.refusal import Refusal

HOSTS = AllowedHosts.parse(["videos.example.org", "other.example.org:8080", "8.8.8.8", "10.0.0.5"], ["127.0.0.1:9000"])


def refusal(url):
    with pytest.raises(Refusal) as found:
        HOSTS.check(url)
    return found.value.status, found.value.line


@pytest.mark.parametrize("url", [
    "https://videos.example.org/a.mp4", "http://VIDEOS.example.org:80/a", "https://videos.example.org.:443/a?b#c",
    "http://other.example.org:8080/a", "http://127.0.0.1:9000/a", "http://8.8.8.8/a",
])  # fmt: skip
def test_named_hosts_are_allowed(url):
    HOSTS.check(url)


@pytest.mark.parametrize(("url", "line"), [
    ("https://example.org/a", "host 'example.org' is not allowed"),
    ("https://videos.example.org.evil.com/a", "not allowed"),
    ("http://evil.com\\@videos.example.org/a", "not allowed|user or password|not an address"),
    ("http://videos.example.org:22/a", "not allowed"),
    ("http://other.example.org/a", "not allowed"),
    ("http://127.0.0.1/a", "not allowed"),
    ("http://2130706433:9000/a", "not allowed"),
    ("http://[::ffff:127.0.0.1]:9000/a", "not allowed"),
    ("http://10.0.0.5/a", "host '10.0.0.5' has a private address"),
    ("file:///etc/passwd", "addresses begin with http:// or https://"),
    ("ftp://videos.example.org/a", "addresses begin with"),
    ("http:///a", "addresses begin with"),
    ("http://me:secret@videos.example.org/a", "user or password"),
    ("http://videos.example.org:x/a", "not an address"),
    ("http://[::1/a", "not an address"),
])  # fmt: skip
def test_others_are_not(url, line):
    status, found = refusal(url)
    assert status in (400, 403)
    assert re.search(line, found), found


@pytest.mark.parametrize(("address", "expected"), [
    ("93.184.216.34", True), ("2606:4700::1111", True),
    ("127.0.0.1", False), ("0.0.0.0", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
    ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
    ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00::1", False), ("ff02::1", False),
    ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
    ("2001:0:1::1", False), ("::7f00:1", False),
])  # fmt: skip
def test_public_addresses(address, expected):
    assert is_public(address) == expected


def test_a_name_is_looked_up_once_and_refused_where_any_address_is_private(monkeypatch):
    """Not looked up again to connect: the second answer of a name could be another one."""
    found = [{"host": "93.184.216.34"}, {"host": "127.0.0.1"}]

    async def resolve(self, host, port=0, family=0):
        return found

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    hosts = AllowedHosts.parse(["a.org"], ["b.org"])

    def look_up(host):
        async def run():
            return await CheckedResolver(hosts).resolve(host)

        return asyncio.run(run())

    with pytest.raises(Refusal, match="private"):
        look_up("a.org")
    assert look_up("b.org") == found
    found.pop()
    assert look_up("a.org") == found


@pytest.mark.parametrize("text", ["", "a/b", "a@b", "a:b", "*.example.org", "http://a", "a:0", "a:99999"])
def test_hosts_that_are_none_are_a_users_mistake(text):
    with pytest.raises(UserError, match="HOST or HOST:PORT"):
        Place.parse(text)


def test_hosts_are_read():
    assert Place.parse("Videos.Example.org") == ("videos.example.org", 0)
    assert Place.parse("[::1]:80") == ("::1", 80)
