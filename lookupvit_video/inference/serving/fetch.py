"""Videos at addresses of allowed hosts, fetched within limits."""

import asyncio
from urllib.parse import urljoin

import aiohttp

from lookupvit_video.inference.page.upload import Limits
from lookupvit_video.inference.serving.addresses import AllowedHosts, CheckedResolver
from lookupvit_video.inference.serving.inbox import Inbox
from lookupvit_video.inference.serving.refusal import Refusal

_MOVED = (301, 302, 303, 307, 308)
_MOVES = 3  # redirections in a row
_CHUNK = 1 << 18


class Fetcher:
    """Fetches videos; made within a running event loop, and closed there.

    Args:
        limits: on a video.
        seconds: for one video.
    """

    def __init__(self, allowed: AllowedHosts, limits: Limits, seconds: float):
        self._allowed, self._limits, self._seconds = allowed, limits, seconds
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(allowed), use_dns_cache=False, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,  # a proxy would look the name up again
            auto_decompress=False,  # what is sent is what is counted
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def fetch(self, url: str) -> Inbox:
        """Return what is at an address; the caller closes it.

        Raises:
            Refusal: it, or where it redirects to, is not allowed; it is too large or takes too long; it fails.
        """
        inbox = Inbox(self._limits.bytes)
        try:
            async with asyncio.timeout(self._seconds):
                await self._fetch(url, inbox)
        except BaseException as error:
            inbox.close()
            if isinstance(error, TimeoutError):
                raise Refusal(504, f"was not fetched within {self._seconds:g} s", url) from None
            if isinstance(error, Refusal):
                raise Refusal(error.status, error.line, url) from None
            if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):
                raise Refusal(502, f"cannot be fetched ({str(error) or type(error).__name__})", url) from None
            raise
        return inbox

    async def _fetch(self, url: str, inbox: Inbox) -> None:
        for _ in range(_MOVES + 1):
            self._allowed.check(url)
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status in _MOVED and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    continue
                if response.status != 200:
                    raise Refusal(502, f"cannot be fetched (its host answers {response.status})")
                if (response.content_length or 0) > self._limits.bytes:
                    raise Refusal(413, self._limits.too_large)
                async for chunk in response.content.iter_chunked(_CHUNK):
                    if not inbox.write(chunk):
                        raise Refusal(413, self._limits.too_large)
                return
        raise Refusal(502, f"is redirected more than {_MOVES} times")

    async def close(self) -> None:
        """Close what is open."""
        await self._session.close()
