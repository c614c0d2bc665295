"""Running a function on hostile input in a forked process of its own: CPU time and memory are bounded, and a crash, a
loop or a full memory is an outcome like any other."""

import os
import resource
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from spikesink.errors import SpikesinkError

CPU_SECONDS = 5
"""Of the process's own time, so that a busy machine changes nothing; by the clock only what sleeps forever is ended."""
WALL_SECONDS = 900
MEMORY = 2**30
"""Address space beyond what the process has when it is forked."""
GOOD = ("accepted", "refused")


@dataclass(frozen=True)
class Outcome:
    """accepted, refused (a SpikesinkError), raised (anything else), hung, or died."""

    kind: str
    text: str = ""


def contained(function: Callable[[], object], memory: int = MEMORY) -> Outcome:
    """What becomes of one call."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _limit(memory)
        kind, text = _called(function)
        os.write(writing, f"{kind}\n{text[-30_000:]}".encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    try:
        content = _read(reading)
    finally:
        os.close(reading)
        if content is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if content is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Outcome("hung")
    if not content:
        return Outcome("died", f"status {status}")
    kind, _, text = content.decode(errors="replace").partition("\n")
    return Outcome(kind, text)


def _limit(memory: int) -> None:
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + memory, has + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries that complain on stderr would fill the screen of a long run.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _called(function: Callable[[], object]) -> tuple[str, str]:
    try:
        function()
    except SpikesinkError as error:
        return "refused", str(error)
    except BaseException:
        return "raised", traceback.format_exc()
    return "accepted", ""


def _read(pipe: int) -> bytes | None:
    """All that comes through the pipe; None where it takes too long."""
    parts = []
    while True:
        ready, _, _ = select.select([pipe], [], [], WALL_SECONDS)
        if not ready:
            return None
        part = os.read(pipe, 2**16)
        if not part:
            return b"".join(parts)
        parts.append(part)
