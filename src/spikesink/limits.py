"""Limits on untrusted code: panics of other libraries become errors, and time and memory are bounded."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

try:
    import resource
except ImportError:
    # Windows has none; there only time is bounded by what it has, which is nothing.
    resource = None


@contextmanager
def panics_raised() -> Iterator[None]:
    """A panic of a Rust extension (tokenizers, safetensors) as a RuntimeError; pyo3 raises it beside `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


@contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Python code that may take so many seconds and bytes: TimeoutError and MemoryError beyond.

    Time by the clock and in the main thread only, where signals arrive; memory as address space, where the system
    counts it (Linux), which is the whole process's: for one that does nothing else. Neither reaches into a compiled
    library that loops.
    """
    with _timed(seconds), _limited(memory):
        yield


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    waiting, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, waiting)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited(memory: int) -> Iterator[None]:
    used = _address_space()
    if resource is None or used is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, used + memory) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    """Bytes this process has mapped; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * (resource.getpagesize() if resource else 1)
    except OSError:
        return None
