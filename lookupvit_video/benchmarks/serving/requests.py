"""Requests to a server, of those who mean well and of those who do not; sent from one thread, so that it costs little.

A client of a library would take a good part of the processor from the server that is measured.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

HALF = "half of "  # how the name of a truncated video begins
_PAUSE = 0.5  # seconds between the bytes of a slow sender


class Reply(NamedTuple):
    """What a server answers."""

    status: int
    """0: it closed the connection without an answer."""
    content: Any
    """From JSON; None: there is none."""
    seconds: float
    """From the first byte sent, by the clock of the event loop."""
    at: float
    """When it was complete, by the same clock."""


class Ask(NamedTuple):
    """A request, and which statuses answer it as they should."""

    kind: str
    """"video", or how it is hostile."""
    name: str
    """Of the video that it sends; "": none."""
    statuses: frozenset[int]
    send: Callable[[int], Coroutine[Any, Any, Reply]]
    """Takes the port."""


async def post(
    port: int, path: str, body: bytes, headers: Mapping[str, str] | None = None, method: str = "POST"
) -> Reply:
    """Send a request to this machine and return the reply."""
    head = _head(method, path, {"Content-Length": str(len(body)), **(headers or {})})
    return await _exchange(port, [head + body] if len(body) < 1 << 16 else [head, body], 0.0)


async def _exchange(port: int, parts: Sequence[bytes], pause: float) -> Reply:
    """Send parts with pauses between them, until the server has answered."""
    clock = asyncio.get_running_loop().time
    start = clock()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(reader.read())
    try:
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                if pause:
                    await asyncio.wait([answer], timeout=pause)
                if answer.done():
                    break
        try:
            found = await answer
        except ConnectionError:
            found = b""
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return Reply(*_parsed(found), clock() - start, clock())


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def _parsed(found: bytes) -> tuple[int, Any]:
    head, _, body = found.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 3:
        return 0, None
    try:
        return int(words[1]), json.loads(body)
    except ValueError:
        return int(words[1]), None


def video(name: str, body: bytes, kind: str = "video", statuses: Sequence[int] = (200,)) -> Ask:
    """Return a request that sends a file."""
    return Ask(kind, name, frozenset(statuses), lambda port: post(port, f"/predict?name={quote(name)}", body))


def hostile(videos: Mapping[str, bytes], count: int, most: int, receive: float) -> list[Ask]:
    """Return requests that a server should refuse, of all kinds in turn.

    Args:
        videos: by name.
        most: bytes of the largest upload.
        receive: seconds that the server takes for an upload.
    """
    names = list(videos)

    def half(number: int) -> Ask:
        name = names[number % len(names)]
        return video(f"{HALF}{name}", videos[name][: len(videos[name]) // 2], "truncated", [200, 422])

    def slow(head: bytes) -> Callable[[int], Coroutine[Any, Any, Reply]]:
        return lambda port: _exchange(port, [head, *[b"x"] * (4 + int(receive / _PAUSE))], _PAUSE)

    kinds: list[Callable[[int], Ask]] = [
        lambda n: video(f"text{n}.mp4", b"this is no video\n" * 100, "not a video", [422]),
        half,
        lambda n: video(f"huge{n}.mp4", bytes(most + 1), "huge", [413]),
        lambda n: Ask("slow body", "", frozenset([408]), slow(_head("POST", "/predict", {"Content-Length": "1000"}))),
        lambda n: Ask("slow head", "", frozenset([0, 400]), slow(b"POST /predict HTTP/1.1\r\nHost: ")),
        lambda n: Ask("wrong method", "", frozenset([405]), lambda port: post(port, "/predict", b"x", method="PUT")),
        lambda n: Ask("wrong host", "", frozenset([403]), lambda port: post(
            port, "/predict", b'{"url": "http://169.254.169.254/latest"}', {"Content-Type": "application/json"})),
    ]  # fmt: skip
    return [kinds[number % len(kinds)](number) for number in range(count)]


async def send_all(port: int, asks: Sequence[Ask]) -> list[Reply]:
    """Send requests, all at once, and return their replies."""
    return await asyncio.gather(*(ask.send(port) for ask in asks))
