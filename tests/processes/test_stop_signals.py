"""Signals are recorded while the block is active; tests/commands/test_run_command.py presses Ctrl-C twice."""

import os
import signal

import pytest

from lookupvit_video.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from lookupvit_video.processes.stop_signals import Stopped, StopSignals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_the_first_signal_is_recorded_and_the_handlers_of_before_come_back(name, capfd):
    before = signal.getsignal(getattr(signal, name))
    with StopSignals() as stop:
        assert (stop.name, stop.interrupted) == ("", False)
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (stop.name, stop.interrupted) == (name, name == "SIGINT")
    assert signal.getsignal(getattr(signal, name)) is before
    assert ("press Ctrl-C again" in capfd.readouterr().err) == (name == "SIGINT")


def test_other_processes_than_the_main_one_are_quiet(capfd):
    with StopSignals(quiet=True):
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_items_pass_until_a_signal_comes():
    with StopSignals() as stop:
        seen = []
        for item in stop.until_stopped(range(5)):
            seen.append(item)
            if item == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [0, 1, 2]


def test_the_exit_code_says_whether_it_was_ctrl_c():
    assert (Stopped("x").exit_code, Stopped("x", True).exit_code) == (EXIT_STOPPED, EXIT_INTERRUPTED)
