"""One writer at a time: two real processes, kill -9, other machines by their heartbeats."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lookupvit_video.processes import lock as lock_module
from lookupvit_video.processes.lock import InUseError, Owner, only_writer
from tests.small import started

HOLD = """
import os, sys, time
from lookupvit_video.processes import lock
lock.BEAT = 0.1
with lock.only_writer(sys.argv[1], "the folder", "stop it"):
    if "fork" in sys.argv and not os.fork():
        time.sleep(60)
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def holder(path, seconds=60, *words):
    command = [sys.executable, "-c", HOLD, path, seconds, *words]
    with started(command, 90, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "in\n"
        yield process


def take(path):
    return only_writer(path, "OUTPUT_DIR runs/x", "choose another OUTPUT_DIR or stop it")


def record(path, **changes):
    """Write the record of a process on another machine with a fresh heartbeat."""
    now = time.time()
    owner = Owner("token", 7, "node2", "node2 boot ns", "123", now, now)
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(owner, **changes))).ljust(1023) + "\n")


def test_a_second_process_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.2)
    with holder(tmp_path / ".lock") as process:
        who = rf"process {process.pid} on {socket.gethostname()} is writing there since 20\d\d-.*"
        with pytest.raises(InUseError, match=rf"OUTPUT_DIR runs/x: {who}; choose another"), take(tmp_path / ".lock"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        assert process.poll() is None


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_after_kill_9_the_next_one_begins_at_once_even_if_a_worker_outlives_it(tmp_path, words):
    with holder(tmp_path / ".lock", 60, *words) as process:
        process.kill()
        process.wait(60)
        with take(tmp_path / ".lock"):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_leaving_is_waited_for_longer_after_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.0)
    with holder(tmp_path / ".lock", 1.5):
        with pytest.raises(InUseError), take(tmp_path / ".lock"):
            pass
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        with take(tmp_path / ".lock"):
            pass


def test_folders_made_for_nothing_are_removed(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="no video"), take(tmp_path / "runs" / "a" / "b" / ".lock"):
        raise ValueError("no video")
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]  # was there before
    assert list((tmp_path / "runs").iterdir()) == []
    with take(tmp_path / "runs" / "a" / "b" / ".lock"):
        (tmp_path / "runs" / "a" / "log").write_text("kept")
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["log"]


def test_one_process_holds_it_once(tmp_path):
    with take(tmp_path / ".lock"), pytest.raises(InUseError, match="this process"), take(tmp_path / "." / ".lock"):
        pass
    with take(tmp_path / ".lock"):
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads Linux' start times of processes")
@pytest.mark.parametrize("locks", [True, False])
def test_without_locks_of_the_file_system_the_process_itself_tells(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.2)
    monkeypatch.setattr(lock_module, "SETTLE", 0.05)
    if not locks:
        monkeypatch.setattr(lock_module, "_kernel_lock", lambda descriptor: None)
    here = {"machine": lock_module._machine(), "host": socket.gethostname(), "pid": os.getpid()}
    record(tmp_path / ".lock", **here, started=lock_module._start_of(os.getpid()))
    with pytest.raises(InUseError, match=f"process {os.getpid()} on "), take(tmp_path / ".lock"):
        pass
    record(tmp_path / ".lock", **here, started="1")  # its id is another process's now
    with take(tmp_path / ".lock"):
        pass
    with subprocess.Popen(["true"]) as dead:
        dead.wait(60)
    record(tmp_path / ".lock", **{**here, "pid": dead.pid}, started="")
    with take(tmp_path / ".lock"):
        pass
    (tmp_path / ".lock").write_text("torn")
    with take(tmp_path / ".lock"):
        pass


def test_of_two_without_locks_one_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_kernel_lock", lambda descriptor: None)
    monkeypatch.setattr(lock_module, "SETTLE", 0.3)
    threading.Timer(0.1, record, [tmp_path / ".lock"], {"beat": 0.0, "host": "node3"}).start()
    monkeypatch.setattr(lock_module, "_shows_life", lambda path, owner, what: True)
    with pytest.raises(InUseError, match="process 7 on node3"), take(tmp_path / ".lock"):
        pass


def test_another_machine_is_believed_by_its_signs_of_life(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock_module, "LOST", 1.0)
    monkeypatch.setattr(lock_module, "PATIENCE", 0.5)  # shorter than LOST, as by default
    monkeypatch.setattr(lock_module, "SETTLE", 0.05)
    path = tmp_path / ".lock"
    record(path)
    threading.Timer(0.3, record, [path], {"beat": time.time() + 9}).start()
    with pytest.raises(InUseError, match="process 7 on node2 is writing there since"), take(path):
        pass
    assert "waiting up to 1 s for its heartbeat" in caplog.text
    record(path)
    began = time.monotonic()
    with take(path):  # it gives none: a lost node
        assert 0.9 < time.monotonic() - began < 20
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()
    monkeypatch.setattr(lock_module, "LOST", 60.0)
    record(path, beat=time.time() - 601)
    with take(path):  # and this one gave its last long ago
        pass


def test_one_that_was_paused_and_replaced_leaves_without_writing(tmp_path):
    with holder(tmp_path / ".lock") as process:
        process.send_signal(signal.SIGSTOP)
        (tmp_path / ".lock").unlink()
        record(tmp_path / ".lock")
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == 1
        assert process.stderr.read() == (
            "the folder: another process took over, since this one had no heartbeat; leaving\n"
        )
        assert json.loads((tmp_path / ".lock").read_text())["token"] == "token"


def test_signs_of_life_come(tmp_path):
    with holder(tmp_path / ".lock"):
        first = json.loads((tmp_path / ".lock").read_text())["beat"]
        end = time.monotonic() + 30
        while json.loads((tmp_path / ".lock").read_text() or "{}").get("beat", first) == first:
            assert time.monotonic() < end
            time.sleep(0.05)
