"""lookupvit serve as its clients see it, over sockets of loopback."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.browser import end_group, ended, wait_for
from tests.inference.serving.test_fetch import Host
from tests.inference.streaming.servers import serving
from tests.models.test_models import SMALL
from tests.small import ROOT, call_tool
from tests.videos import write_video

TOOL = ROOT / "tools" / "serve.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    cfg = load_config(None, [*SMALL, "MODEL.COMPRESSED_GRIDS", "[[1,1,1],[1,2,2]]"])
    torch.manual_seed(3)
    names = ["walk", "run", "caf\udce9", "sit", "<b>lie</b>"]
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=names, model=build_model(cfg))
    write_video(folder / "x.mp4", frames=24)
    (folder / "text.mp4").write_text("hello, I am no video\n")
    return folder


@contextlib.contextmanager
def served(folder, *options):
    """Give a server's address and process; afterwards it has ended by SIGTERM with exit code 0, and left no file."""
    with tempfile.TemporaryDirectory(prefix="s") as temporary:
        command = [sys.executable, TOOL, "--checkpoint", folder / "model.pt", "--port", 0, "--workers", 1, *options]
        log = Path(temporary, "log.txt")
        files = Path(temporary, "files")
        files.mkdir()
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(map(str, command)), env={**os.environ, "TMPDIR": str(files), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        with ended(lambda: process, within=300):
            wait_for("the server", lambda: "serving at" in log.read_text() or process.poll() is not None, 200)
            assert process.poll() is None, log.read_text()
            yield re.search(r"http://127\.0\.0\.1:\d+", log.read_text()).group(), process
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert process.returncode == 0, log.read_text()
            assert "Traceback" not in log.read_text()
            end_group(process)
            assert [path for path in files.rglob("*") if not path.is_dir()] == []


@pytest.fixture(scope="module")
def host():
    """A host on loopback that the server may fetch from."""
    with serving(Host) as address:
        yield address.rstrip("/")


@pytest.fixture(scope="module")
def address(folder, host):
    options = ("--max-mb", 1, "--receive-seconds", 2, "--queue", 2, "--allow-private", host.removeprefix("http://"))
    with served(folder, *options) as (address, _):
        yield address


def ask(url, body=None, method=None, **headers):
    """Return (status, content)."""
    request = urllib.request.Request(url, body, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def asked(*arguments, **options):
    status, content = ask(*arguments, **options)
    return status, json.loads(content)


def form(*files, field="video"):
    """Return the body and the type of a form."""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + body + b"\r\n"
        for name, body in files
    ]
    return b"".join(parts) + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


def expected(folder, name, **options):
    answer = load_model(folder / "model.pt", "cpu").predict(str(folder / "x.mp4"), **options)
    return json.loads(json.dumps({**answer.as_dict(), "path": name}))


def test_the_answer_is_the_line_that_predict_writes(folder, address, tmp_path):
    done = call_tool("tools/predict.py", "--checkpoint", folder / "model.pt", folder / "x.mp4", "--workers", 0,
                     "--json", tmp_path / "a.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = (tmp_path / "a.jsonl").read_text().strip()
    status, content = ask(f"{address}/predict?name={folder / 'x.mp4'}", (folder / "x.mp4").read_bytes())
    assert (status, content.decode("ascii")) == (200, line)
    body, headers = form(("x.mp4", (folder / "x.mp4").read_bytes()))
    assert asked(f"{address}/predict", body, **headers) == (200, expected(folder, "x.mp4"))
    assert asked(f"{address}/predict?topk=2&grid=1x1x1", body, **headers) == (
        200, expected(folder, "x.mp4", topk=2, grid="1x1x1"),
    )  # fmt: skip


@pytest.mark.parametrize(("path", "body", "method", "status", "line"), [
    ("/predict", b"hello, I am no video\n" * 9, None, 422, "is text, not a video (it starts with 'hello, I am no vid"),
    ("/predict", b"", "POST", 422, "is empty (0 bytes)"),
    ("/predict", bytes((1 << 20) + 1), None, 413, "larger than 1 MB, the limit here (--max-mb)"),
    ("/predict", None, "GET", 405, "GET is not for this address; POST a video to /predict"),
    ("/predict", b"x", "PUT", 405, "PUT is not for this address"),
    ("/nothing", b"x", None, 404, "there is no such address here; there are /predict, /health"),
    ("/predict?topk=0", b"x", None, 400, "topk: Input should be greater than or equal to 1"),
    ("/predict?grid=7x7x7", b"x", None, 400, "grid 7x7x7"),
])  # fmt: skip
def test_what_is_refused_has_a_status_and_a_line(address, path, body, method, status, line):
    found, content = asked(address + path, body, method)
    assert found == status
    assert "\n" not in content["error"]
    assert line in content["error"]


def test_forms_that_are_none(address):
    for body, line in (
        (form()[0], "the form has one file"), (b"x", "not a form"),
        (form(("a", b"x"), ("b", b"x"))[0], "Too many files"),
    ):  # fmt: skip
        status, content = asked(f"{address}/predict", body, **form()[1])
        assert status == 400
        assert line in content["error"]
    body, headers = form(("x.mp4", bytes(1 << 21)))
    assert asked(f"{address}/predict", body, **headers)[0] == 413


def test_addresses(address, host):
    json_type = {"Content-Type": "application/json"}

    def post(content):
        return asked(f"{address}/predict", json.dumps(content).encode(), **json_type)

    status, content = post({"url": f"{host}/a"})  # allowed, but no video
    assert (status, content["path"]) == (422, f"{host}/a")
    assert post({"url": "http://169.254.169.254/latest"})[0] == 403
    assert post({"url": f"{host}/none"})[0] == 502
    status, rows = post({"urls": [f"{host}/a", "http://example.org/x"]})
    assert status == 200
    assert [row["path"] for row in rows] == [f"{host}/a", "http://example.org/x"]
    assert "is text" in rows[0]["error"]
    assert "not allowed here (--allow-host)" in rows[1]["error"]
    assert post({"urls": [f"{host}/a"] * 3})[0] == 413  # more than the queue holds
    for wrong in ({}, {"url": 3}, {"urls": []}, {"url": "a", "x": 1}, [], "x"):
        assert post(wrong)[0] == 400
    assert asked(f"{address}/predict", b"{" * 100, **json_type)[0] == 400
    assert asked(f"{address}/predict", b"[" * (1 << 17), **json_type)[0] == 413


def read_all(connection):
    found = b""
    while chunk := connection.recv(1 << 16):
        found += chunk
    return found


def connected(address):
    return contextlib.closing(socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 30))


def test_slow_senders_are_ended_and_the_queue_is_bounded(folder, address):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with connected(address) as one, connected(address) as two:
        for connection in (one, two):
            connection.sendall(head + b"x")
        wait_for("both", lambda: asked(f"{address}/health")[1]["in_progress"] == 2, 2)
        status, content = asked(f"{address}/predict", (folder / "x.mp4").read_bytes())
        assert (status, content) == (503, {"error": "busy: 2 of 2 videos are in progress; try again later"})
        for connection in (one, two):
            assert b"408 Request Timeout" in (found := read_all(connection))
            assert b"the upload was not complete within 2 s" in found
    assert asked(f"{address}/predict", (folder / "x.mp4").read_bytes())[0] == 200


def test_a_client_that_leaves_leaves_nothing(address):
    with connected(address) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        wait_for("it", lambda: asked(f"{address}/health")[1]["in_progress"] == 1, 2)
    wait_for("its end", lambda: asked(f"{address}/health")[1]["in_progress"] == 0, 5)


def test_health_and_metrics(address):
    status, state = asked(f"{address}/health")
    assert (status, state["status"], state["classes"], state["in_progress"]) == (200, "ok", 5, 0)
    asked(f"{address}/predict", b"hello" * 9)
    status, text = ask(f"{address}/metrics")
    assert status == 200
    for name in ('requests_total{path="/predict",status="422"}', "batch_clips_bucket", "videos_in_progress 0.0",
                 'stage_seconds_count{stage="receive"}', "model_seconds_total"):  # fmt: skip
        assert f"lookupvit_{name}" in text.decode()
    prometheus = pytest.importorskip("prometheus_client.parser")
    assert len(list(prometheus.text_string_to_metric_families(text.decode()))) > 8


def test_the_schema_is_served_and_no_page_of_other_hosts(address):
    assert "/predict" in asked(f"{address}/openapi.json")[1]["paths"]
    assert ask(f"{address}/docs")[0] == ask(f"{address}/redoc")[0] == 404


def test_sigterm_finishes_what_is_in_progress(folder):
    found = []
    with served(folder, "--receive-seconds", 20) as (address, process), connected(address) as connection:
        body = (folder / "x.mp4").read_bytes()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body[:-1])
        wait_for("it", lambda: asked(f"{address}/health")[1]["in_progress"] == 1, 5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 5).close()
        threading.Timer(0.5, connection.sendall, [body[-1:]]).start()
        found.append(read_all(connection))
    assert b"200 OK" in found[0]
    assert b'"classes"' in found[0]


@pytest.mark.parametrize(("options", "line"), [
    (["--allow-host", "a/b"], "'a/b': hosts are written HOST or HOST:PORT"),
    (["--grid", "7x7x7"], "grid 7x7x7"),
    (["--reject", "0.05"], "not calibrated"),
    (["--host", "203.0.113.1"], "--host 203.0.113.1 --port 0: Cannot assign requested address; choose another"),
])  # fmt: skip
def test_mistakes_are_found_at_the_start(folder, options, line):
    done = call_tool(TOOL, "--checkpoint", folder / "model.pt", "--port", 0, *options)
    assert (done.returncode, line in done.stderr) == (2, True), done.stderr


def test_what_is_missing_is_named(folder, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("lookupvit_video.inference.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = call_tool(TOOL, "--checkpoint", folder / "model.pt")
    assert done.returncode == 2
    assert 'serve needs fastapi: pip install "lookupvit_video[serve]"' in done.stderr
