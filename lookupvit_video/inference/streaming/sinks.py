"""Where events go: JSON lines in a file or on standard output, and a webhook."""

import contextlib
import logging
import queue
import sys
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import simplejson

from lookupvit_video.errors import UserError
from lookupvit_video.text import open_text

logger = logging.getLogger(__name__)
_WAITING = 1000  # events for a webhook that does not respond
_TIMEOUT = 5.0  # seconds for a request
_PATIENCE = 10.0  # seconds at the end


class LineSink:
    """Appends events to a file; "-": standard output."""

    def __init__(self, path: str):
        self.is_closed = False
        """Whether nobody reads any more (``| head``)."""
        self._is_ours = path != "-"
        if not self._is_ours:
            self._file: IO[str] = sys.stdout
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open_text(path, "a")

    def write(self, event: Mapping[str, Any]) -> None:
        """Write a line at once."""
        try:
            self._file.write(simplejson.dumps(event) + "\n")
            self._file.flush()
        except BrokenPipeError:
            self.is_closed = True

    def close(self) -> None:
        """Close the file, but never standard output, which may be another one by now."""
        if self._is_ours:
            self._file.close()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A webhook that is somewhere else is an error: the events would be lost on the way."""

    def redirect_request(self, *_: Any) -> None:
        return None


class WebhookSink:
    """Posts events as JSON to an address, in the background; events that cannot be delivered are counted.

    Raises:
        UserError: the address is not http(s).
    """

    is_closed = False

    def __init__(self, url: str):
        if not url.lower().startswith(("http://", "https://")):
            raise UserError(f"--webhook {url}: must begin with http:// or https://")
        self.lost = 0
        """Events that were not delivered."""
        self._url, self._opener = url, urllib.request.build_opener(_NoRedirect)
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._deliver, name="webhook", daemon=True)
        self._thread.start()

    def write(self, event: Mapping[str, Any]) -> None:
        """Deliver an event soon."""
        try:
            self._waiting.put_nowait(simplejson.dumps(event).encode())
        except queue.Full:
            self.lost += 1

    def _deliver(self) -> None:
        while (body := self._waiting.get()) is not None:
            request = urllib.request.Request(  # noqa: S310 - http(s) only
                self._url, body, {"Content-Type": "application/json"}, method="POST"
            )
            try:
                self._opener.open(request, timeout=_TIMEOUT).close()
            except OSError as error:  # also of HTTP
                self.lost += 1
                if self.lost == 1:
                    logger.warning("--webhook: an event was not delivered: %s", error)

    def close(self) -> None:
        """Deliver what waits, for some seconds at most."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        self.lost += self._waiting.qsize()
        if self.lost:
            logger.warning("--webhook: %d events were not delivered", self.lost)
