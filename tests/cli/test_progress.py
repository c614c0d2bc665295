"""Ctrl-C ends a command also where a library swallows it; without a terminal a line now and then says how far it is."""

import inspect
import os
import signal
import sys
import threading
from types import ModuleType

import pytest

import spikesink
from spikesink import observer
from spikesink.access.verify import verify_all
from spikesink.cli import progress
from spikesink.cli.progress import progress_bar
from spikesink.observer import notebook_progress


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Test runners and shells in the background change what SIGINT does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallowed():
    """As a callback of compiled code or a bare `except` does."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(1)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("no signal came")


def test_a_swallowed_ctrl_c_is_raised_by_the_next_report():
    with progress_bar() as report:
        report("scan", 0, 2)
        swallowed()
        with pytest.raises(KeyboardInterrupt):
            report("scan", 1, 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_one_nothing_is_raised_and_other_handlers_stay():
    def mine(number, frame):
        pass

    signal.signal(signal.SIGINT, mine)
    with progress_bar() as report:
        report("scan", 1, 1)
        assert signal.getsignal(signal.SIGINT) is mine


def test_without_a_terminal_a_line_every_half_minute(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress._Lines()
    for done in range(4):
        lines.report("scan", done, 9)
    assert capsys.readouterr() == ("", "scan: 1 of 9\nscan: 3 of 9\n")
    assert progress.EVERY_S <= 30
    monkeypatch.undo()
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with progress_bar() as report:
        report("scan", 5, 9)
    assert capsys.readouterr() == ("", "scan: 5 of 9\n"), "a pipe is no terminal"


def test_a_notebook_shows_a_bar_by_stage_and_others_nothing(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    notebook_progress("scan", 1, 2)
    assert capsys.readouterr().err == "" and observer._BARS == {}
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    notebook_progress("scan", 1, 4)
    notebook_progress("learn constants", 1, 9)
    assert list(observer._BARS) == ["scan", "learn constants"]
    notebook_progress("scan", 4, 4)
    notebook_progress("learn constants", 9, 9)
    said = capsys.readouterr().err
    assert "scan:  25%" in said and "4/4" in said and observer._BARS == {}


def test_what_users_call_shows_bars():
    for call in (spikesink.scan, spikesink.find, spikesink.dissociate, spikesink.load, verify_all):
        assert inspect.signature(call).parameters["progress"].default is notebook_progress
