"""The server's process: connections within limits, and a clean end by a signal."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lookupvit_video.errors import UserError

HEADERS = 10.0  # seconds for a client to send the head of a request
GRACE = 20  # seconds for the requests in progress once the server ends
BACKLOG = 1024


class LimitedProtocol(H11Protocol):
    """Closes what does not send a request in time, and connections above a limit; uvicorn itself waits for ever."""

    most = 512
    """Connections at a time."""
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._patience = self.loop.call_later(HEADERS, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Take what comes; the time for a request's head runs from its first byte."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(HEADERS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the server; uvicorn would raise them again at its end."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections.

    Args:
        port: 0: any free one.

    Raises:
        UserError: the host is not of this machine, or the port is taken.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        number = error.errno or 0  # below 0: of a name's look-up
        why = os.strerror(number) if number > 0 else error.strerror
        raise UserError(f"--host {host} --port {port}: {why or error}; choose another") from None


def shown_address(listener: socket.socket) -> str:
    """Return the address of a socket as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: Any, listener: socket.socket, connections: int) -> None:
    """Serve an ASGI app until SIGINT or SIGTERM; then requests in progress are finished, for some seconds."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # every broken request is a warning
    protocol = type("Protocol", (LimitedProtocol,), {"most": connections})
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        backlog=BACKLOG, timeout_graceful_shutdown=GRACE, timeout_keep_alive=5,
    )  # fmt: skip
    _Server(config).run(sockets=[listener])
