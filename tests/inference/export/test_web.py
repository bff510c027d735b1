"""The page that runs an exported model, in a real browser, with a video file as its camera.

What a Ti model takes in a browser (docs/export.md) is measured by this, on a folder that `export --format web` wrote:
LOOKUPVIT_WEB=exported/web python -m pytest tests/inference/export/test_web.py -k seconds -s
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
import time
import urllib.error
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.transforms import _fixed_boxes
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.inference.export import web
from lookupvit_video.inference.export.export import deployed_model
from lookupvit_video.inference.export.reference import resized
from lookupvit_video.inference.export.web import PAGE, RUNTIME, find_runtime
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from lookupvit_video.models.kernels.int8 import linear_layers
from tests.browser import chromium, find_chromium, requested, wait_for
from tests.models.test_models import SMALL
from tests.small import call_tool
from tests.videos import write_video

FAKE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2", "MODEL.DIM", "96", "TEST.NUM_ENSEMBLE_VIEWS", "2"])
    torch.manual_seed(3)
    model = build_model(cfg)
    with torch.no_grad():  # answers that are far from one another
        for name, weight in model.named_parameters():
            if name.endswith("linear.weight"):
                weight *= 20
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, cfg=cfg, classes=["walk", "run", "jump", "sit", "<b>lie</b>"], model=model)
    return path


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with files of the runtime's names."""
    folder = tmp_path_factory.mktemp("dist")
    for name in RUNTIME:
        (folder / name).write_text(f"not {name}")
    return folder


@pytest.fixture(scope="module")
def runtime():
    """The real one, where an earlier export has fetched it or LOOKUPVIT_RUNTIME names it."""
    given = os.environ.get("LOOKUPVIT_RUNTIME")
    kept = web.cache_folder() / f"onnxruntime-web-{web.VERSION}"
    if not given and not all((kept / name).is_file() for name in RUNTIME):
        pytest.skip("no files of onnxruntime-web here: LOOKUPVIT_RUNTIME names npm's package or its folder")
    return find_runtime(Path(given) if given else None)


def export(checkpoint, out, runtime, *options):
    command = ("tools/export.py", "--checkpoint", checkpoint, "--out", out, "--format", "web", "--runtime", runtime)
    done = call_tool(*command, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# The folder ----------------------------------------------------------------------------------------------------------


def test_the_folder_has_all_that_the_page_loads(checkpoint, stand_in, tmp_path):
    done = export(checkpoint, tmp_path, stand_in)
    folder = tmp_path / "web"
    page = {path.name for path in PAGE.iterdir()}
    assert {path.name for path in folder.iterdir()} == {
        *page, *RUNTIME, "model.json", "model.onnx", "model_int8.onnx",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} >= {"model.onnx", "model.json", "reference.py"}
    facts = json.loads((folder / "model.json").read_text())
    assert [one["weights"] for one in facts["live"]["files"]] == ["floats", "8 bits"]
    assert facts["live"]["window_seconds"] == pytest.approx(4 * 2 / 30)
    assert len(facts["live"]["offsets"]) == 4
    assert "://" not in "".join(path.read_text() for path in PAGE.iterdir())  # no other host is named
    assert f"{folder / 'index.html'}: serve this folder" in done.stdout
    tensors = onnx.load(folder / "model_int8.onnx").graph.initializer
    layers = linear_layers(load_model(checkpoint, "cpu").model).values()
    large = sum(layer.weight.numel() > 8192 for layer in layers)  # the exporter makes floats of smaller ones
    assert sum(one.data_type == onnx.TensorProto.INT8 for one in tensors) == large > 5
    for one in facts["live"]["files"]:
        assert one["max_difference"] < 1e-4
        assert one["difference_to_floats"] < 1e-2


def package(folder, **others):
    """An npm package of the runtime's names, and its checksum."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in RUNTIME:
            data = f"content of {name}".encode()
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (folder / "ort.tgz").write_bytes(out.getvalue())
    return folder / "ort.tgz", base64.b64encode(hashlib.sha512(out.getvalue()).digest()).decode()


def test_the_runtime_is_taken_from_a_package_with_the_known_checksum_only(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    file, checksum = package(tmp_path)
    with pytest.raises(UserError, match=rf"--runtime {file}: not the package of onnxruntime-web {web.VERSION}"):
        find_runtime(file)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(web, "URL", file.as_uri())
    with pytest.raises(RunFailure, match="not the package"):
        find_runtime(None)
    monkeypatch.setattr(web, "SHA512", checksum)
    for given in (file, None):
        folder = find_runtime(given)
        assert {path.name for path in folder.iterdir()} == set(RUNTIME)
        assert (folder / RUNTIME[0]).read_text() == f"content of {RUNTIME[0]}"
    file.unlink()
    assert find_runtime(None) == folder  # once is enough
    with pytest.raises(UserError, match="No such file"):
        find_runtime(file)


def test_the_runtime_is_taken_from_a_folder(stand_in, tmp_path):
    assert find_runtime(stand_in) == stand_in
    (tmp_path / "dist").symlink_to(stand_in)
    assert find_runtime(tmp_path) == tmp_path / "dist"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no ort.wasm.min.mjs; it must hold the files of onnxruntime-web's dist"):
        find_runtime(tmp_path / "empty")


def test_without_a_network_a_line_says_what_to_do(checkpoint, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web.urllib.request, "urlopen", fail)
    done = call_tool("tools/export.py", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "web")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("cannot be downloaded (no network); fetch it elsewhere and give it with "
                                        "--runtime FILE")  # fmt: skip
    assert not (tmp_path / "out").exists()


# In a browser --------------------------------------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def hosted(folder):
    """Serve static files as any host does: no header is set."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def script(driver, code, *arguments):
    """Return what an asynchronous function gives in the page, of whose module it has the exports as ``page``."""
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);"
        "(async () => { const page = await import('./page.js'), tools = await import('./preprocess.js');"
        f"{code} }})().then((value) => done({{value}}), (error) => done({{error: String(error)}}))",
        *arguments,
    )
    assert "error" not in found, found
    return found["value"]


def opened(driver, address):
    driver.set_script_timeout(120)
    driver.get(address)
    state = "return [page.state.ready, page.state.error]"

    def ready():  # the page loads itself again once its service worker is there
        with contextlib.suppress(Exception):
            return script(driver, state)[0] or script(driver, state)[1]

    assert wait_for("the model", ready, 120) is True


def camera(path, seconds=4):
    """Write a video as Chromium takes it for a camera's, at 20 frames a second."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (6, 8, 3)).repeat(20, 0).repeat(20, 1)
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W160 H120 F20:1 Ip A1:1 C420\n")
        for number in range(20 * seconds):
            luma = np.roll(scene[..., 0], 7 * number, 1).astype(np.uint8)
            file.write(b"FRAME\n" + luma.tobytes() + np.full(2 * 60 * 80, 128, np.uint8).tobytes())
    return path


@pytest.fixture(scope="module")
def page(checkpoint, runtime, tmp_path_factory):
    """A browser with the page, whose camera is a file."""
    find_chromium()
    folder = tmp_path_factory.mktemp("page")
    export(checkpoint, folder, runtime)
    flags = [*FAKE, f"--use-file-for-fake-video-capture={camera(folder / 'camera.y4m')}"]
    (folder / "browser").mkdir()
    with hosted(folder / "web") as address, chromium(folder / "browser", 600, flags) as driver:
        opened(driver, address)
        yield driver
        assert {url for url in requested(driver) if not url.startswith((address, "chrome"))} == set()


def torchs(checkpoint, clip):
    model = load_model(checkpoint, "cpu")
    with torch.no_grad():
        return deployed_model(model)(torch.from_numpy(clip)[None])[0].numpy()


def test_decisions_on_the_camera_are_those_of_torch(page, checkpoint):
    script(page, "await page.startCamera()")
    wait_for("decisions", lambda: script(page, "return page.state.decisions") >= 3)
    found = script(page, """
        const {probabilities, clip} = page.state.last;
        return [[...probabilities], [...clip], document.getElementById("status").textContent,
                document.querySelectorAll("#classes meter").length, self.crossOriginIsolated]""")  # fmt: skip
    probabilities, pixels, status, bars, isolated = found
    clip = np.array(pixels, np.uint8).reshape(3, 4, 32, 32)
    assert len({frame.tobytes() for frame in clip.swapaxes(0, 1)}) > 1  # it moves
    expected = torchs(checkpoint, clip)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.15
    classes = load_model(checkpoint, "cpu").classes
    assert status.startswith(classes[int(expected.argmax())])
    assert "decisions/s" in status
    assert bars == 5
    assert isolated  # the service worker's doing: several threads
    small = script(page, """
        const clip = page.state.last.clip.slice();
        document.getElementById("weights").value = "model_int8.onnx";
        await page.loadModel();
        const found = await page.answerClip(clip);
        return [[...found.probabilities], [...found.clip]]""")  # fmt: skip
    expected = torchs(checkpoint, np.array(small[1], np.uint8).reshape(3, 4, 32, 32))
    np.testing.assert_allclose(small[0], expected, rtol=0, atol=1e-2)
    assert int(np.argmax(small[0])) == int(expected.argmax())


# Keep in self.behind how many seconds the picture on the page lies behind the time sought, each time one is taken.
WATCH_PICTURES = """
    let second = 0;
    self.behind = [];
    const video = document.getElementById("video");
    const watch = (now, picture) => { second = picture.mediaTime; video.requestVideoFrameCallback(watch); };
    video.requestVideoFrameCallback(watch);
    const draw = CanvasRenderingContext2D.prototype.drawImage;
    CanvasRenderingContext2D.prototype.drawImage = function (...given) {
        if (!video.srcObject) self.behind.push(video.currentTime - second);  // not of the camera
        return draw.apply(this, given);
    }"""


def test_a_file_is_answered_as_predict_does(page, checkpoint, tmp_path):
    video = write_video(tmp_path / "x.mp4", frames=36, size=(96, 64))
    script(page, WATCH_PICTURES)
    expected = load_model(checkpoint, "cpu").predict(video, topk=5)
    page.find_element("css selector", "#file").send_keys(str(video))
    answer = wait_for("an answer", lambda: script(page, "return page.state.answer"))
    classes = load_model(checkpoint, "cpu").classes
    found = dict(zip(classes, answer["probabilities"], strict=True))
    assert max(found, key=found.get) == expected.label
    for label, probability in zip(expected.labels, expected.probabilities, strict=True):
        assert found[label] == pytest.approx(probability, abs=0.02)  # the browser's colors are its own
    status = script(page, "return document.getElementById('status').textContent")
    assert status == f"x.mp4: {expected.label}"
    behind = script(page, "return self.behind")
    assert len(behind) == 2 * 4
    assert all(0 <= seconds < 1 / 24 for seconds in behind)  # a browser says "seeked" before it shows the picture


def test_what_is_no_video_is_a_line(page, tmp_path):
    (tmp_path / "text.mp4").write_text("I am no video")
    page.find_element("css selector", "#file").send_keys(str(tmp_path / "text.mp4"))
    line = wait_for("a line", lambda: script(page, "return page.state.error"))
    assert line == "text.mp4: not a video that this browser plays"


@pytest.mark.parametrize(("side", "size"), [(48, 32), (97, 32), (32, 32), (20, 32), (240, 112)])
def test_pixels_are_resized_to_the_bit(page, side, size):
    rgba = np.random.default_rng(side).integers(0, 256, (side, side, 4), dtype=np.uint8)
    given = base64.b64encode(rgba.tobytes()).decode()
    found = script(page, """
        const rgba = Uint8Array.from(atob(given[0]), (letter) => letter.charCodeAt(0));
        return [...tools.resizedPlanes(rgba, given[1], given[2])]""", given, side, size)  # fmt: skip
    expected = resized(rgba[..., :3], size).transpose(2, 0, 1)
    assert (np.array(found, np.uint8).reshape(3, size, size) == expected).all()


def test_crops_and_times_are_the_packages(page):
    for width, height, count, short in [(97, 64, 3, 40), (64, 97, 3, 32), (61, 61, 1, 35), (640, 480, 1, 256)]:
        rules = {"size": 32, "short_side": short}
        found = script(page, "return tools.cropBoxes(...given)", width, height, rules, count)
        expected = [(box.left, box.top, box.height) for box in _fixed_boxes(32, short, count, height, width)]
        assert [(box["left"], box["top"], box["side"]) for box in found] == expected
    for sampler in (TimeSampler(8, 2 / 15, num_clips=3), TimeSampler(5, 0.1, "segments", 2),
                    TimeSampler(8, 0.1, num_clips=2, single_frame=True)):  # fmt: skip
        rules = {"num_frames": sampler.num_frames, "step_seconds": sampler.step, "sampling": sampler.mode,
                 "views_in_time": sampler.num_clips, "single_frame": sampler.single_frame}  # fmt: skip
        for duration in (0.3, 7.7):
            found = script(page, "return tools.clipTimes(...given)", duration, rules)
            np.testing.assert_allclose(found, sampler(duration), rtol=0, atol=1e-6)


# How fast ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("LOOKUPVIT_WEB" not in os.environ, reason="LOOKUPVIT_WEB names a folder of export --format web")
def test_seconds_of_a_decision(tmp_path):
    psutil = pytest.importorskip("psutil")
    folder = Path(os.environ["LOOKUPVIT_WEB"])
    flags = [*FAKE, f"--use-file-for-fake-video-capture={camera(tmp_path / 'camera.y4m')}"]
    with hosted(folder) as address, chromium(tmp_path, 600, flags) as driver:
        opened(driver, address)

        def state():
            browser = psutil.Process(driver.service.process.pid).children(recursive=True)
            times = [process.cpu_times() for process in browser]
            return sum(one.user + one.system for one in times), time.monotonic()

        def since(before):
            return [after - first for after, first in zip(state(), before, strict=True)]

        answer = """
            const size = page.state.facts.input.shape.slice(1).reduce((all, one) => all * one);
            for (let n = 0; n < given[0]; n++) await page.answerClip(new Uint8Array(size))"""
        script(driver, answer, 3)
        before = state()
        script(driver, answer, 20)
        cpu, clock = since(before)
        print(f"\nmodel alone: {20 / clock:.1f} clips/s, {cpu / 20:.3f} s of processor time each")
        script(driver, "await page.startCamera()")
        wait_for("decisions", lambda: script(driver, "return page.state.decisions") >= 3, 120)
        before, first = state(), script(driver, "return page.state.decisions")
        time.sleep(20)
        (every, clock), count = since(before), script(driver, "return page.state.decisions") - first
        print(f"camera: {count / clock:.1f} decisions/s, {every / count:.3f} s each, of which all but the model takes "
              f"{every / clock - count / clock * cpu / 20:.3f} s a second")  # fmt: skip
