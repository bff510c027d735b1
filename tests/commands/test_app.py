"""The page as its user sees it, in a real browser, and as those use it who wish it ill.

The picture in docs/ is made by this, with a checkpoint and a video (more than a clip long) of Moving Digits:
LOOKUPVIT_PAGE="runs/demo_motion/model.pt video.mp4 docs/page.png" python -m pytest tests/commands -k picture
"""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.browser import chromium, end_group, ended, find_chromium, requested, wait_for
from tests.models.test_models import SMALL
from tests.small import ROOT, call_tool
from tests.videos import write_video

TOOL = ROOT / "tools" / "app.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    grids = [
        "MODEL.COMPRESSED_GRIDS",
        "[[1,1,1],[1,2,2],[2,4,4]]",
        "DATA.SAMPLING_RATE",
        "2",
        "TEST.NUM_ENSEMBLE_VIEWS",
        "2",
    ]
    cfg = load_config(None, [*SMALL, *grids])
    torch.manual_seed(3)
    save_checkpoint(path, cfg=cfg, classes=["walk", "run", "jump", "sit", "<b>lie</b>"], model=build_model(cfg))
    return path


@contextlib.contextmanager
def served(checkpoint, folder, *options):
    """Give the address of the page, and its log; afterwards nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="p") as temporary:  # a socket's path must be short
        places = {"HOME": folder / "home", "XDG_CACHE_HOME": folder / "home", "TMPDIR": Path(temporary)}
        (folder / "home").mkdir()
        environment = {**os.environ, **{name: str(place) for name, place in places.items()}, "OMP_NUM_THREADS": "1"}
        log = folder / "log.txt"
        command = [sys.executable, TOOL, "--checkpoint", checkpoint, "--port", 0, *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(map(str, command)), cwd=folder / "home", env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        with ended(lambda: process, within=400):
            wait_for("the page", lambda: "page is at" in log.read_text() or process.poll() is not None, 200)
            assert process.poll() is None, log.read_text()
            yield re.search(r"http://127\.0\.0\.1:\d+", log.read_text()).group(), log
            end_group(process, gently=60)
            assert process.returncode == 0, log.read_text()
            assert list((folder / "home").rglob("*")) == []
            assert list(Path(temporary).iterdir()) == []


# In a browser --------------------------------------------------------------------------------------------------------


class Visitor:
    """What a person does with the page."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def one(self, selector):
        return next(iter(self.driver.find_elements("css selector", selector)), None)

    def text(self, selector):
        """Return the text there, which a redraw may take away meanwhile."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, selector)

    def upload(self, path):
        """Open the page and give it a file."""
        self.driver.get(self.address)
        wait_for("the field for the file", lambda: self.one("#video input[type=file]")).send_keys(str(path))
        wait_for("the upload", lambda: self.one("#video video"))

    def answer(self, budget=None):
        """Ask, and return the line that the page ends with."""
        if budget:
            self.one(f"#budget input[value='{budget}']").click()
        self.driver.execute_script("document.querySelector('button#answer').click()")
        return wait_for("an answer", lambda: re.search(r"^(?!Choose).*[^…\s]$", self.text("#status p").strip())).group()

    def shows(self, selector):
        """Whether a picture or video is there with its pixels, which may be fetched once it is in sight only."""
        if self.one(selector) is None:
            return False
        script = "const it = document.querySelector(arguments[0]); it.scrollIntoView(); return it"
        return self.driver.execute_script(f"{script}.naturalWidth > 0 || it.videoWidth > 0", selector)


def test_a_video_is_answered_and_a_text_is_refused_in_a_line(checkpoint, tmp_path):
    find_chromium()
    video = write_video(tmp_path / "x.mp4", frames=48)
    (tmp_path / "text.mp4").write_text("hello, I am no video\n")
    with served(checkpoint, tmp_path) as (address, log), chromium(tmp_path) as driver:
        visitor = Visitor(driver, address)
        visitor.upload(video)
        line = visitor.answer("2x4x4")
        expected = load_model(checkpoint, "cpu").predict(video, grid="2x4x4")
        assert line == f"x.mp4: {expected.label}, {expected.probability:.0%} (mean of 2 clips over time)"
        assert visitor.text("#classes h2").strip() == expected.label
        assert all(label in visitor.text("#classes") for label in expected.labels)  # names are no HTML
        for picture in ("#sheet img", "#timeline img", "#overlay video"):
            wait_for(picture, lambda picture=picture: visitor.shows(picture))
        steps = visitor.text("#steps")
        assert "answer on grid 2x4x4" in steps
        assert len(re.findall(r"\d\.\d\d s", steps)) == 5
        visitor.upload(tmp_path / "text.mp4")
        assert visitor.answer() == "text.mp4: is text, not a video (it starts with 'hello, I am no video')"
        assert visitor.one("#status p.failed")
        assert "Traceback" not in driver.page_source
        assert not any(toast.is_displayed() for toast in driver.find_elements("css selector", ".toast-body"))
        assert not visitor.shows("#sheet img")
        asked = requested(driver)
        assert len(asked) > 10
        assert {
            url for url in asked if not url.startswith((address, "chrome"))
        } == set()  # offline: nobody else is asked
        assert "Traceback" not in log.read_text()


def test_what_the_camera_records_is_answered(checkpoint, tmp_path):
    find_chromium()
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with served(checkpoint, tmp_path) as (address, log), chromium(tmp_path, 400, camera) as driver:
        visitor = Visitor(driver, address)

        def press(pattern):
            script = (
                "const found = [...document.querySelectorAll('#video button')].find((button) => "
                "new RegExp(arguments[0]).test(button.ariaLabel + button.innerText)); found?.click(); return !!found"
            )
            wait_for(pattern, lambda: driver.execute_script(script, pattern))

        for seconds in (2, 8, 20):  # on a busy machine the browser may need some until it has recorded anything
            driver.get(address)
            press("Capture from camera")
            press("Click to Access Webcam")
            press("start recording")
            time.sleep(seconds)
            press("Stop")
            wait_for("the recording", lambda: visitor.one("#video video[src]"))
            line = visitor.answer()
            if "is empty" not in line:
                break
        classes = load_model(checkpoint, "cpu").classes
        assert any(line.startswith(f"sample.webm: {name}, ") for name in classes), line
        assert {url for url in requested(driver) if not url.startswith((address, "chrome"))} == set()
        assert "Traceback" not in log.read_text()


@pytest.mark.skipif("LOOKUPVIT_PAGE" not in os.environ, reason="LOOKUPVIT_PAGE names a checkpoint, a video, a picture")
def test_the_picture_in_docs(tmp_path):
    checkpoint, video, out = (Path(name).resolve() for name in os.environ["LOOKUPVIT_PAGE"].split())
    thresholds = checkpoint.with_suffix(".adaptive.json")
    options = ["--calibration", thresholds] if thresholds.exists() else []
    with served(checkpoint, tmp_path, *options) as (address, _), chromium(tmp_path) as driver:
        visitor = Visitor(driver, address)
        visitor.upload(video)
        visitor.answer()
        visitor.upload(video)  # once more: the first answer waited for what later ones find ready
        assert "failed" not in visitor.answer()
        for picture in ("#sheet img", "#timeline img", "#overlay video"):
            wait_for(picture, lambda picture=picture: visitor.shows(picture))
        driver.execute_script("document.querySelector('#overlay video').pause()")
        height = driver.execute_script("return document.body.scrollHeight")
        area = {"x": 0, "y": 0, "width": 1280, "height": height, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": area})
        (tmp_path / "page.png").write_bytes(base64.b64decode(shot["data"]))
        with Image.open(tmp_path / "page.png") as image:
            coarse = [min(255, (value + 2) // 4 * 4) for value in range(256)]  # nobody sees it, and the file is smaller
            image.convert("RGB").point(coarse * 3).save(out, optimize=True)


# Without one ---------------------------------------------------------------------------------------------------------

WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(address, path, body=None, kind="application/json"):
    """Return status and text of an answer."""
    request = urllib.request.Request(address + path, body, {"Content-Type": kind} if body is not None else {})
    try:
        with WEB.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def upload(address, name, content):
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--b--\r\n"
    return ask(address, "/gradio_api/upload", body, "multipart/form-data; boundary=b")


def join(address, session, *data):
    """Ask as the page's own script does, and return all that comes back."""
    body = json.dumps({"data": data, "fn_index": 0, "session_hash": session}).encode()
    code, text = ask(address, "/gradio_api/queue/join", body)
    if code != 200:
        return text
    with WEB.open(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as events:
        return "".join(line.decode() for line in iter(events.readline, b"") if b"data:" in line)


def test_hostile_requests_get_nothing(checkpoint, tmp_path):
    secret = tmp_path / "secret.mp4"
    write_video(secret, frames=12)
    with served(checkpoint, tmp_path, "--max-mb", 1, "--max-seconds", 1) as (address, log):
        code, text = upload(address, "large.mp4", bytes((1 << 20) + 1))
        assert (code, "exceeded" in text) == (413, True)
        code, text = upload(address, "../../home/<b>.mp4", b"text")
        assert code == 200
        (name,) = json.loads(text)
        assert "/lookupvit_page_" in name
        kind = {"_type": "gradio.FileData"}
        assert "is text, not a video" in join(address, "a", {"path": name, "meta": kind}, "1x1x1")
        code, text = upload(address, "long.mp4", Path(write_video(tmp_path / "long.mp4", frames=48)).read_bytes())
        long = {"path": json.loads(text)[0], "meta": kind}
        assert "lasts 2 s; the limit here is 1 s" in join(address, "b", long, "1x1x1")
        for number, (file, budget) in enumerate([
            ({"path": str(secret), "meta": kind}, "1x1x1"), ({"path": str(checkpoint), "meta": kind}, "1x1x1"),
            ({"path": "http://localhost:9/a.mp4", "meta": kind}, "1x1x1"), ({"path": "", "meta": kind}, "1x1x1"),
            ({"path": name + "/../../../x", "meta": kind}, "1x1x1"), ("x", "1x1x1"), (7, "1x1x1"), ([], "1x1x1"),
            (long, "9x9x9"), (long, {"a": 1}), (long, "1" * 10**5), ({"path": 3, "meta": kind}, "1x1x1"),
        ]):  # fmt: skip
            text = join(address, f"s{number}", file, budget)
            assert '"success":false' in text, (file, budget)
            assert "Traceback" not in text, (file, budget)
        assert ask(address, f"/gradio_api/file={secret}")[0] == 403
        assert ask(address, f"/gradio_api/file={checkpoint}")[0] == 403
        assert "addresses are not fetched" in log.read_text()
        assert ask(address, "/")[0] == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "65536"], "--port: must be 0 to 65535"),
        (["--topk", "0"], "--topk: must be 1 to 1000"),
        (["--max-mb", "0"], "--max-mb: must be 1 to"),
        (["--max-seconds", "nan"], "--max-seconds: must be a number of seconds above 0"),
        (["--timeout", "inf"], "--timeout: must be a number of seconds above 0"),
        (["--crops", "2"], "--crops"),
    ],
)
def test_mistakes_are_told_in_a_line(options, message):
    done = call_tool(TOOL, "--checkpoint", "x.pt", *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_port_that_is_taken_is_a_line(checkpoint, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, str(TOOL), "--checkpoint", str(checkpoint), "--port", str(port)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"app.py: error: --port {port}: no free port; --port 0 takes the first free one from 7860 on"
    )
    assert list(tmp_path.iterdir()) == []
