"""Loopback servers of live video for tests, and a model that names colors."""

import contextlib
import socketserver
import struct
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import torch

from lookupvit_video.config import load_config
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL

COLORS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 200)}


def color_predictor(seconds=0.0, **changes):
    """Return a predictor of windows of 0.5 s that names the color it sees, after some seconds a window."""
    options = {"DATA.SAMPLING_RATE": "2", "DATA.TARGET_FPS": "16", "MODEL.NUM_CLASSES": "3", **changes}
    cfg = load_config(None, [*SMALL, *(word for pair in options.items() for word in pair)])
    predictor = Predictor(build_model(cfg), cfg, list(COLORS), torch.device("cpu"))

    def predict_clips(clips, grid=None):
        time.sleep(seconds * len(clips))
        shares = clips.float().mean((2, 3, 4))
        return (shares / shares.sum(1, keepdim=True) * 6).softmax(1)

    predictor.predict_clips = predict_clips
    return predictor


def write_colors(path, names, seconds=2.0, fps=16, container_format=None, options=None):
    """Write a video of one color after the other, each for some seconds."""
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": str(fps), "bf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for name in names:
            picture = np.full((48, 64, 3), COLORS[name], np.uint8)
            for _ in range(round(seconds * fps)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(handler):
    """Serve on loopback in a thread; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def serving_files(folder):
    """Serve the files of a folder."""
    return serving(partial(_Quiet, directory=str(folder)))


def serving_pieces(pieces):
    """Serve at every address one piece of bytes after the other, a connection each; then nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not pieces:
                self.send_error(404)
                return
            data = pieces.pop(0)
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()  # no length: a live stream, which ends when the connection does
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return serving(Handler)


@contextlib.contextmanager
def webhook():
    """Yield the address of a webhook and the list of what is posted to it."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if self.path == "/fails" else 307 if self.path == "/moved" else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with serving(Handler) as address:
        yield address, posted


SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:video\r\n"
)
RTSP = {
    "OPTIONS": ["Public: DESCRIBE, SETUP, PLAY"],
    "DESCRIBE": ["Content-Type: application/sdp"],
    "SETUP": ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1"],
}


@contextlib.contextmanager
def serving_rtsp(data):
    """Serve an MPEG transport stream over RTSP, its packets within the connection (RFC 2326, 10.12); yield the address.

    Each connection gets it from its beginning, and is cut at its end.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline().decode():
                headers = {}
                while header := self.rfile.readline().decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                method = line.split()[0]
                rows = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", "Session: 1", *RTSP.get(method, ())]
                body = SDP if method == "DESCRIBE" else ""
                rows.append(f"Content-Length: {len(body)}")
                self.wfile.write("\r\n".join([*rows, "", body]).encode())
                if method == "PLAY":
                    self.send()
                    return

        def send(self):
            for at in range(0, len(data), 7 * 188):
                packet = struct.pack(">BBHII", 128, 33, at // 1316 & 65535, at, 1) + data[at : at + 1316]
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/live"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
