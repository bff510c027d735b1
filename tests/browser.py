"""A real browser without a window, and processes that are gone when a test is over, however it ends."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --disable-crash-reporter --disable-breakpad
    --no-default-browser-check --hide-scrollbars --window-size=1280,900""".split()


def end_group(process: subprocess.Popen[Any] | None, gently: float = 0.0) -> None:
    """End a process that leads a group, and the whole group with it.

    Args:
        gently: seconds between SIGTERM and SIGKILL.
    """
    if process is None:
        return
    if gently and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(gently)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@contextlib.contextmanager
def ended(process: Callable[[], subprocess.Popen[Any] | None], within: float, gently: float = 0.0) -> Iterator[None]:
    """End a process and its group after the block, or after some seconds: what waits for it then fails."""
    watchdog = threading.Timer(within, lambda: end_group(process()))
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        end_group(process(), gently)


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what a condition returns once that is true; the test fails where it never is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds} s")


def find_chromium() -> tuple[str, str]:
    """Return browser and driver; without them the test is skipped, but in CI it fails."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    why = "no Chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(why)
    pytest.skip(why)


@contextlib.contextmanager
def chromium(folder: Path, within: float = 240, flags: Sequence[str] = ()) -> Iterator[Any]:
    """Give a driver (Selenium's) of a new Chromium that keeps its files in a folder.

    Args:
        flags: further ones of its command line.
        within: seconds after which the browser is killed, whatever it is at.
    """
    browser, path = find_chromium()
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # Its sockets lie in TMPDIR, and the path of a socket may have 107 characters: pytest's folders are too deep.
    short = tempfile.TemporaryDirectory(prefix="c")
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": short.name}
    log = str(folder / "driver.log")
    service = webdriver.ChromeService(path, log_output=log, env=environment, popen_kw={"start_new_session": True})
    no_proxy = dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")
    with short, ended(lambda: getattr(service, "process", None), within):
        with mock.patch.dict(os.environ, no_proxy):  # the driver is on this machine
            driver = webdriver.Chrome(options=options, service=service)
        driver.set_page_load_timeout(30)
        driver.set_script_timeout(30)
        yield driver


def requested(driver: Any) -> set[str]:
    """Return the addresses that the browser has asked for since the last call, without those of data in the page."""
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [message["params"]["request"]["url"] for message in sent if message["method"] == "Network.requestWillBeSent"]
    return {url for url in urls if not url.startswith(("data:", "blob:", "chrome:"))}
