"""An HTTP server on this machine that answers as late as one far away."""

import http.server
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder, by ranges, each some time after it was asked for."""

    def __init__(self, folder: Path, latency: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.latency = folder, latency


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for many requests
    disable_nagle_algorithm = True  # no waiting for more to send

    def do_GET(self) -> None:
        """Answer one request."""
        assert isinstance(self.server, _Server)
        time.sleep(self.server.latency)
        with open(self.server.folder / self.path.lstrip("/"), "rb") as file:
            size, span = os.fstat(file.fileno()).st_size, self.headers.get("Range")
            first, last = span.removeprefix("bytes=").split("-") if span else ("0", "")
            end = min(int(last) + 1, size) if last else size
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(end - int(first)))
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(file, int(first), end - int(first))

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def serve() -> None:
    """Be the server: of the folder and with the latency of the command line, at a port that is printed."""
    server = _Server(Path(sys.argv[1]), float(sys.argv[2]))
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def served(folder: Path, latency: float) -> Iterator[str]:
    """Serve a folder from a process of its own; yield its address."""
    command = [sys.executable, "-m", __spec__.name, str(folder), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - this program
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


if __name__ == "__main__":
    serve()
