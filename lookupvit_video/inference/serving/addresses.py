"""Which addresses the server fetches videos from: hosts that were named, and never a private address by accident."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from lookupvit_video.errors import UserError
from lookupvit_video.inference.serving.refusal import Refusal

_PORTS = {"http": 80, "https": 443}
# They carry an IPv4 address, which may be a private one.
_CARRIERS = [ip_network(name) for name in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")]


class Place(NamedTuple):
    """A host, and a port; 0: 80 or 443, as the scheme has it."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read "host", "host:port" or "[IPv6]:port".

        Raises:
            UserError: it is something else.
        """
        try:
            parts = urlsplit(f"//{text}")
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            host, port = "", None
        if not host or any(sign in text for sign in "/@?#*") or port == 0:
            raise UserError(f"{text!r}: hosts are written HOST or HOST:PORT, such as videos.example.org")
        return cls(host, port or 0)


@dataclass(frozen=True)
class AllowedHosts:
    """The hosts that may be fetched from."""

    public: frozenset[Place] = field(default_factory=frozenset)
    private: frozenset[Place] = field(default_factory=frozenset)
    """Those that may have a private address: of this machine or its network."""

    @classmethod
    def parse(cls, public: Sequence[str], private: Sequence[str]) -> "AllowedHosts":
        """Read lists of hosts, see ``Place.parse``."""
        return cls(frozenset(map(Place.parse, public)), frozenset(map(Place.parse, private)))

    def check(self, url: str) -> None:
        """Refuse an address that is not of an allowed host.

        Raises:
            Refusal: it is not http(s), holds a password, or names another host or port.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise Refusal(400, "not an address", url) from None
        if parts.scheme not in _PORTS or not host:
            raise Refusal(400, "addresses begin with http:// or https://", url)
        if parts.username is not None or parts.password is not None:
            raise Refusal(400, "addresses with a user or password are not fetched", url)
        places = {Place(host, port or _PORTS[parts.scheme])}
        if port in (None, *_PORTS.values()):
            places.add(Place(host, 0))
        if not places & (self.public | self.private):
            raise Refusal(403, f"host {host!r} is not allowed here (--allow-host)", url)
        if _is_literal(host):  # which no resolver sees
            self.check_address(host, host)

    def check_address(self, host: str, address: str) -> None:
        """Refuse a private address of a host that is not allowed to have one.

        Raises:
            Refusal: it is private, or not the address of one machine.
        """
        if not is_public(address) and host not in {place.host for place in self.private}:
            raise Refusal(403, f"host {host!r} has a private address (--allow-private)")


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address is of one machine in the public internet."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if isinstance(found, IPv6Address) and any(found in network for network in _CARRIERS):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class CheckedResolver(AbstractResolver):
    """Looks names up and refuses those with an address that is not allowed; what was checked is connected to."""

    def __init__(self, allowed: AllowedHosts):
        self._allowed, self._resolver = allowed, ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            Refusal: one of them is private.
            OSError: it has none.
        """
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            self._allowed.check_address(host.rstrip("."), one["host"])
        return found

    async def close(self) -> None:
        """Nothing is open."""
