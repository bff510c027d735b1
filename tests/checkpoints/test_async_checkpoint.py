"""When checkpoints are due, and that one after the other is written in the background."""

import threading

import pytest

from lookupvit_video.checkpoints import async_checkpoint as saving
from lookupvit_video.checkpoints.async_checkpoint import Saver
from lookupvit_video.checkpoints.checkpoint import checkpoint_path
from lookupvit_video.config import load_config
from tests.small import settings

PATIENCE = 20  # seconds after which a test that waits for a thread fails


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test moves: clock[0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def written(monkeypatch):
    """Have files written as text; a list of their names as they are complete."""
    names = []

    def save(path, text="", gate=None, error=None):
        if gate:
            assert gate.wait(PATIENCE)
        if error:
            raise error
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        names.append(path.name)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    return names


@pytest.fixture
def saver_of(tmp_path):
    made = []

    def make(enabled=True, **changes):
        train = load_config("tests/small.yaml", settings("", tmp_path, **changes)).TRAIN
        made.append(Saver(tmp_path, steps=train.CHECKPOINT_STEPS, minutes=train.CHECKPOINT_MINUTES,
                          keep=train.KEEP_CHECKPOINTS, enabled=enabled))  # fmt: skip
        return made[-1]

    yield make
    for saver in made:
        saver.close()


def test_due_every_so_many_steps(saver_of):
    saver = saver_of(TRAIN__CHECKPOINT_STEPS=3)
    assert [step for step in range(1, 11) if saver.due_by_steps(step)] == [3, 6, 9]
    assert saver_of(enabled=False, TRAIN__CHECKPOINT_STEPS=3).due_by_steps(3)  # the same in all processes
    never = saver_of(TRAIN__CHECKPOINT_STEPS=0)
    assert not any(never.due_by_steps(step) for step in range(1, 11))
    always = saver_of(TRAIN__CHECKPOINT_STEPS=1)
    assert all(always.due_by_steps(step) for step in range(1, 11))


def test_due_some_minutes_after_the_last_training_checkpoint(saver_of, clock, written, tmp_path):
    saver = saver_of(TRAIN__CHECKPOINT_MINUTES=2.0)
    for begin in (1000, 1200):
        for seconds, due in ((0, False), (2, False), (119.9, False), (120, True), (1e6, True)):
            clock[0] = begin + seconds
            assert saver.due_by_clock() == due, seconds
        clock[0] = 1150
        saver.write(tmp_path / "best.pt", {}, is_training_checkpoint=False)
        assert saver.due_by_clock() == (begin == 1000)  # it is no training checkpoint
        clock[0] = 1200
        saver.write(checkpoint_path(tmp_path, 3), {}, is_training_checkpoint=True)
        assert not saver.due_by_clock()
    saver.wait()


def test_the_main_process_has_the_clock_and_no_minutes_are_never(saver_of, clock):
    others, never = saver_of(enabled=False, TRAIN__CHECKPOINT_MINUTES=2.0), saver_of(TRAIN__CHECKPOINT_MINUTES=0.0)
    clock[0] += 1e6
    assert not others.due_by_clock()
    assert not never.due_by_clock()


def test_other_processes_write_and_remove_nothing(saver_of, written, tmp_path):
    (tmp_path / ".best.77.tmp.pt").write_bytes(b"half")
    saver = saver_of(enabled=False)
    saver.write(tmp_path / "best.pt", {}, is_training_checkpoint=False)
    saver.write(checkpoint_path(tmp_path, 1), {}, is_training_checkpoint=True)
    saver.check()
    saver.wait()
    assert written == []
    assert [path.name for path in tmp_path.rglob("*")] == [".best.77.tmp.pt"]


def test_the_main_process_removes_what_a_killed_run_left_half_written(saver_of, tmp_path):
    (tmp_path / ".best.77.tmp.pt").write_bytes(b"half")
    saver_of()
    assert list(tmp_path.iterdir()) == []


def test_old_training_checkpoints_go_when_a_new_one_is_there(saver_of, written, tmp_path):
    saver = saver_of(TRAIN__KEEP_CHECKPOINTS=2)
    for step in range(1, 5):
        saver.write(checkpoint_path(tmp_path, step), {"text": str(step)}, is_training_checkpoint=True)
        saver.wait()
        kept = sorted(path.read_text() for path in (tmp_path / "checkpoints").iterdir())
        assert kept == [str(n) for n in range(max(1, step - 1), step + 1)]
    for step in (5, 6, 7):
        checkpoint_path(tmp_path, step).write_text("")
    saver.write(tmp_path / "best.pt", {}, is_training_checkpoint=False)
    saver.wait()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5  # a result takes no training checkpoint's place


def test_nothing_is_removed_when_writing_fails(saver_of, written, tmp_path):
    saver = saver_of(TRAIN__KEEP_CHECKPOINTS=1)
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 2):
        checkpoint_path(tmp_path, step).write_text("")
    saver.write(checkpoint_path(tmp_path, 3), {"error": OSError("full")}, is_training_checkpoint=True)
    with pytest.raises(OSError, match="full"):
        saver.wait()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_training_continues_while_a_file_is_written_and_waits_before_the_next(saver_of, written, tmp_path):
    saver, gate = saver_of(), threading.Event()
    saver.write(tmp_path / "1.pt", {"gate": gate}, is_training_checkpoint=False)
    saver.check()  # it does not wait
    assert written == []
    threading.Timer(0.2, gate.set).start()
    saver.write(tmp_path / "2.pt", {}, is_training_checkpoint=False)
    assert written[0] == "1.pt"
    saver.wait()
    assert written == ["1.pt", "2.pt"]
    saver.wait()  # nothing is left to wait for
    saver.check()


def test_close_waits(saver_of, written, tmp_path):
    saver, gate = saver_of(), threading.Event()
    saver.write(tmp_path / "1.pt", {"gate": gate}, is_training_checkpoint=False)
    threading.Timer(0.2, gate.set).start()
    saver.close()
    assert written == ["1.pt"]


@pytest.mark.parametrize("call", ["check", "wait", "write"])
def test_a_failure_is_raised_once_by_what_comes_next(saver_of, written, tmp_path, call):
    saver, gate = saver_of(), threading.Event()
    gate.set()
    saver.write(tmp_path / "1.pt", {"error": OSError("disk full"), "gate": gate}, is_training_checkpoint=False)
    pending = saver._pending
    assert isinstance(pending.exception(PATIENCE), OSError)
    with pytest.raises(OSError, match="disk full"):
        saver.write(tmp_path / "2.pt", {}, is_training_checkpoint=False) if call == "write" else getattr(saver, call)()
    saver.check()
    saver.wait()
    saver.write(tmp_path / "3.pt", {}, is_training_checkpoint=False)
    saver.wait()
    assert written == ["3.pt"]
