"""Ctrl-C ends a command also where a library swallows it."""

import os
import signal
import threading

import pytest

from spikesink.cli.progress import progress_bar


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
    before = signal.getsignal(signal.SIGINT)
    with progress_bar() as report:
        report("scan", 0, 2)
        swallowed()
        with pytest.raises(KeyboardInterrupt):
            report("scan", 1, 2)
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler


def test_without_one_nothing_is_raised_and_other_handlers_stay():
    mine = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    try:
        with progress_bar() as report:
            report("scan", 1, 1)
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
