"""Progress bars on stderr, so that stdout stays the result."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = 6
EVERY_S = 30.0
"""Seconds between lines where there is no terminal."""


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (stage, done, total) that keeps one bar per stage; bars vanish when the context closes.

    Of many stages, as in a study, those that are done make room.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    lines = None if console.is_terminal else _Lines()
    shown = Progress(*columns, console=console, transient=True, disable=lines is not None)
    with shown as bars, _ctrl_c_heard() as raise_if_pressed:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            raise_if_pressed()
            if lines is not None:
                lines.report(stage, done, total)
                return
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]
            if len(bars.tasks) > SHOWN:
                for finished in [task.id for task in bars.tasks if task.finished]:
                    bars.update(finished, visible=False)

        yield report


class _Lines:
    """A plain line on stderr now and then, for a batch job's log; nothing of what is over sooner."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def report(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


@contextmanager
def _ctrl_c_heard() -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt once Ctrl-C was pressed.

    The first KeyboardInterrupt may fall into a library's callback or a bare `except`, where it is lost.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    pressed = threading.Event()

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.default_int_handler(number, frame)

    def raise_if_pressed() -> None:
        if pressed.is_set() and threading.current_thread() is main:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield raise_if_pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
