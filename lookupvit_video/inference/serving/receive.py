"""A request's body -> a file within limits: the bytes of a video, a form with one, or addresses."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from lookupvit_video.inference.page.upload import Limits
from lookupvit_video.inference.serving.inbox import Inbox
from lookupvit_video.inference.serving.refusal import Refusal
from lookupvit_video.text import shortened

_FORM = 1 << 16  # bytes of a form that are not the video's
_MOST_JSON = 1 << 16
_PATIENCE = 2.0  # seconds for which more is read and dropped, so that the client reads why
_FIELDS = "the form has one file, in a field of any name"


class Received:
    """What came: a video, or addresses of videos."""

    def __init__(self, inbox: Inbox | None = None, name: str = "", urls: list[str] | None = None, is_list: bool = True):
        self.inbox, self.name, self.urls, self.is_list = inbox, name, urls or [], is_list


async def receive(request: Request, limits: Limits, seconds: float, name: str | None) -> Received:
    """Return what a request's body holds.

    Args:
        name: of a video whose bytes are the body.

    Raises:
        Refusal: it is too large, too slow, or something else.
    """
    try:
        async with asyncio.timeout(seconds):
            return await _receive(request, _Body(request, limits), limits, name)
    except TimeoutError:
        raise Refusal(408, f"the upload was not complete within {seconds:g} s", is_closing=True) from None
    except ClientDisconnect:
        raise Refusal(499, "the client has left", is_closing=True) from None


async def _receive(request: Request, body: "_Body", limits: Limits, name: str | None) -> Received:
    kind = parse_options_header(request.headers.get("Content-Type", ""))[0].decode("latin-1").lower()
    if kind == "application/json":
        return _addresses(await body.all(_MOST_JSON))
    if kind == "multipart/form-data":
        return await _form(request, body, limits)
    inbox = Inbox(limits.bytes)
    try:
        async for chunk in body.chunks(limits.bytes):
            inbox.write(chunk)
    except BaseException:
        inbox.close()
        raise
    return Received(inbox, shortened(name or "video", 200))


async def _form(request: Request, body: "_Body", limits: Limits) -> Received:
    parser = MultiPartParser(
        request.headers, body.chunks(limits.bytes + _FORM), max_files=1, max_fields=8, max_part_size=_FORM
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise Refusal(400, f"not a form ({getattr(error, 'message', error)}); {_FIELDS}", is_closing=True) from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise Refusal(400, _FIELDS)
    return Received(Inbox.of_spooled(files[0].file, limits.bytes), shortened(files[0].filename or "video", 200))


def _addresses(body: bytes) -> Received:
    example = 'write {"url": "https://..."} or {"urls": ["https://...", ...]}'
    try:
        wanted: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, f"the body is not JSON; {example}") from None
    urls: Any = wanted.get("urls", wanted.get("url")) if isinstance(wanted, dict) and len(wanted) == 1 else None
    is_list = isinstance(urls, list)
    found: list[Any] = urls if is_list else [urls]
    if not found or not all(isinstance(url, str) and 0 < len(url) <= 4096 for url in found):
        raise Refusal(400, f"no addresses; {example}")
    return Received(urls=found, is_list=is_list)


class _Body:
    """The body of a request, read once."""

    def __init__(self, request: Request, limits: Limits):
        self._request, self._limits, self._stream = request, limits, request.stream()

    async def chunks(self, most: int) -> AsyncGenerator[bytes, None]:
        """Yield what comes, up to a number of bytes.

        Raises:
            Refusal: it is longer, or says that it will be.
        """
        size = 0
        announced = self._request.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > most:
            raise Refusal(413, self._limits.too_large, is_closing=True)
        async for chunk in self._stream:
            size += len(chunk)
            if size > most:
                raise Refusal(413, self._limits.too_large, is_closing=True)
            yield chunk

    async def all(self, most: int) -> bytes:
        """Return all of a short body."""
        found = bytearray()
        async for chunk in self._stream:
            found += chunk
            if len(found) > most:
                raise Refusal(413, f"addresses of more than {most >> 10} KB", is_closing=True)
        return bytes(found)


async def drop_rest(receive: Receive) -> None:
    """Read the rest of a body for a moment: a client that is cut off while it sends may not see the response."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
