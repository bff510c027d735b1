"""What the tests of whole runs share: real mp4 files, and a dense ViT that was trained on them."""

import signal
from multiprocessing.context import BaseContext
from unittest import mock

import pytest

from tests.small import make_videos, run_net, settings

# A shell starts what runs in its background deaf to Ctrl-C, and the processes of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SERVED = ("lookupvit_video.inference.predictor", "lookupvit_video.preparation.check")


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    """It starts once and imports what the first pool asks for: without torch, each later child would import it."""
    preload = BaseContext.set_forkserver_preload
    with mock.patch.object(BaseContext, "set_forkserver_preload", lambda self, names: preload(self, [*names, *SERVED])):
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_videos(folder)
    return folder


@pytest.fixture(scope="session")
def vit(data, tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("vit")
    done = run_net(settings(data, folder, MODEL__ARCH="vit", SOLVER__MAX_EPOCH=1, SOLVER__WARMUP_EPOCHS=0))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Names in any bytes are in what some tests print; pytest-xdist sends reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
