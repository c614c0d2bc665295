"""Commands in forked children of a process that has imported everything: starting one takes milliseconds, so that fifty
kills are a matter of a minute, and every kill falls into the command's own work."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT = 1800
"""Seconds; far beyond what any command takes, since a busy machine may give it a hundredth of a core."""


def import_everything() -> None:
    """What the commands import when they first need it."""
    import importlib

    for name in (
        "accelerate", "pyarrow.parquet", "safetensors.numpy", "safetensors.torch", "scipy.linalg", "torch._dynamo",
        "transformers.models.llama.modeling_llama", "spikesink.analyse.interventions", "spikesink.cli.main",
        "spikesink.data.corpus", "spikesink.data.tokens", "spikesink.report.terminal", "spikesink.train.run",
        "spikesink.zoo",
        "spikesink.study.run", "spikesink.study.cell", "spikesink.study.worker",
    ):  # fmt: skip
        importlib.import_module(name)
    fork_workers()


class Child:
    """One command under way; what it prints goes to `log`."""

    def __init__(self, arguments: list[str], log: Path, before: Callable[[], None] = lambda: None) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            _as_started_afresh()
            os._exit(_run(arguments, log, before))

    def kill_after(self, cpu_s: float) -> bool:
        """SIGKILL once it has computed for so long; False if it was through by then.

        Its own time, not the wall's, is what tells how far it has come on a busy machine.
        """
        deadline = time.monotonic() + TIMEOUT
        while cpu_used(self.pid) < cpu_s and time.monotonic() < deadline:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it; a hanging command is killed."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.cpu_s = usage.ru_utime + usage.ru_stime
                return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"hung for {TIMEOUT} s: {self.output()}")

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


def _as_started_afresh() -> None:
    """Signals do what they do to any process; and a soak that is stopped leaves nothing running (PR_SET_PDEATHSIG)."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def cpu_used(pid: int) -> float:
    """Seconds that a process and its children, live or ended, have computed so far."""
    ticks = 0
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            ticks += sum(sum(_ticks(int(child))[:2]) for child in children.read_text().split())
        ticks += sum(_ticks(pid))
    except (OSError, IndexError):
        pass
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> list[int]:
    """User and system time, of itself and of children that were waited for."""
    return [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]]


def _run(arguments: list[str], log: Path, before: Callable[[], None]) -> int:
    """In the child: the command line as typed, its streams in a file; returns the exit code."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["spikesink", *arguments]
    code = 0
    try:
        before()
        from spikesink.cli.main import run

        run()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def ran(arguments: list[str], log: Path, before: Callable[[], None] = lambda: None) -> tuple[int, str, float]:
    """Exit code, what was printed, and seconds of computing of a command that is left alone."""
    child = Child(arguments, log, before)
    code = child.wait()
    return code, child.output(), child.cpu_s


class ForkedWorker(subprocess.Popen):
    """In place of `subprocess.Popen` for the workers of a study: forked, so that they have imported everything."""

    def __init__(self, command: list[str], *, env: dict[str, str], stderr: Any, **_: Any) -> None:
        reading, writing = os.pipe(), os.pipe()
        self.returncode, self.args = None, command
        self.pid = os.fork()
        if self.pid == 0:
            for handle, stream in ((reading[0], 0), (writing[1], 1), (stderr.fileno(), 2)):
                os.dup2(handle, stream)
            for handle in (*reading, *writing):
                os.close(handle)
            os._exit(_work(command, env))
        os.close(reading[0]), os.close(writing[1])
        self.stdin, self.stdout, self.stderr = open(reading[1], "w"), open(writing[0]), None  # noqa: SIM115
        self._child_created, self._communication_started = True, False
        self._waitpid_lock = threading.Lock()


def _work(command: list[str], environment: dict[str, str]) -> int:
    os.environ.update(environment)
    sys.argv = command[2:]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    try:
        from spikesink.study.worker import main

        main()
    except SystemExit as left:
        return int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def fork_workers() -> None:
    """From now on a study's workers are forked."""
    from spikesink.study import executors

    executors.subprocess = type("Forking", (), {"Popen": ForkedWorker, "PIPE": subprocess.PIPE})  # type: ignore[assignment]


@contextmanager
def small_disk(folder: Path, kilobytes: int):
    """A file system of its own of so many kB; the yielded function mounts it again with other options.

    Raises PermissionError where mounting is not allowed.
    """

    def mount(*options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            raise PermissionError(done.stderr.decode().strip())

    folder.mkdir(parents=True, exist_ok=True)
    mount("-o", f"size={kilobytes}k")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
