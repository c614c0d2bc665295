"""Where cells run: processes of this machine, or a Ray cluster. Both try a failed cell once more, and drop none."""

import json
import logging
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from spikesink.errors import InputError
from spikesink.measures import resolve
from spikesink.observer import Progress, no_progress
from spikesink.records import JsonRecord
from spikesink.records.study import CellRecord
from spikesink.study.cell import device_with, failed, pack
from spikesink.study.worker import LOG

ATTEMPTS = 2
CONNECT_S = 5.0
ANSWER_S = 60.0
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Kind:
    """What an executor must know of the cells that it runs; a cell has a `name`, which is that of its folder."""

    runner: str
    """`module:function` that a process or task calls with the packed cell, its folder and a progress callback."""
    pack: Callable[[Any, int], str]
    """The cell, and how many CPU threads it has, as text."""
    record: type[JsonRecord]
    """What the runner returns; it has a field `attempts`."""
    failed: Callable[[Any, str, int], Any]
    """The record of a cell that could not be run: the cell, why, and after how many attempts."""
    stage: str
    """The stage whose progress is shown."""
    reuse: bool = False
    """Whether a process of this machine runs one cell after another, so that what it costs to start is paid once."""
    memory: Callable[[Any], int] = lambda cell: 0
    """Bytes that a cell takes, for which Ray looks for room; 0 where that is not known."""


TRAINING = Kind("spikesink.study.cell:run_packed", pack, CellRecord, failed, "train")
"""The cells of a study."""


class Executor(Protocol):
    """Runs cells, each in its folder, and yields their records as they come."""

    threads: int
    """CPU threads of a cell, a part of its identity; 0 where torch chooses."""
    device: str
    """`cpu` or `cuda`, where a cell is trained; a part of its identity as well."""

    def machines(self, ask: Callable[[], Answer]) -> list[Answer]:
        """What a function says on each machine that cells may run on."""
        ...

    def run(self, cells: list[Any], folder: Path, progress: Progress) -> Iterator[Any]: ...


@dataclass
class Slot:
    """Room for one cell at a time."""

    gpu: int | None
    process: Any = None
    """One that waits for its next cell."""


class CellFailedError(Exception):
    """A cell ended without a record; the message says how."""


class Local:
    """`jobs` processes at a time, one for each core or GPU, with the machine's threads shared out.

    admit: a context that a cell's process waits for and lives in, such as its share of the memory.
    """

    def __init__(
        self,
        jobs: int | None = None,
        gpus: int = 0,
        threads: int | None = None,
        *,
        kind: Kind = TRAINING,
        admit: Callable[[Any], AbstractContextManager] = lambda cell: nullcontext(),
    ) -> None:
        self.kind, self.admit = kind, admit
        cores = os.cpu_count() or 1
        self.jobs = jobs or gpus or cores
        self.threads = threads or max(1, cores // self.jobs)
        self.device = device_with(gpus)
        self.slots: queue.Queue[Slot] = queue.Queue()
        for index in range(self.jobs):
            self.slots.put(Slot(index % gpus if gpus else None))
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def machines(self, ask: Callable[[], Answer]) -> list[Answer]:
        """This one's answer."""
        return [ask()]

    def run(self, cells: list[Any], folder: Path, progress: Progress) -> Iterator[Any]:
        pool = ThreadPoolExecutor(self.jobs)
        try:
            waiting = [pool.submit(self._tried, cell, folder / cell.name, progress) for cell in cells]
            for done in as_completed(waiting):
                yield done.result()
        finally:
            self.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self.running):
                process.terminate()
                process.wait()

    def _tried(self, cell: Any, folder: Path, progress: Progress) -> Any:
        """Run a cell, and once more where it failed; what fails again is a record that says so."""
        error = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(cell, folder, progress).model_copy(update={"attempts": attempt})
            except CellFailedError as problem:
                error = str(problem)
        return self.kind.failed(cell, error, ATTEMPTS)

    def _once(self, cell: Any, folder: Path, progress: Progress) -> Any:
        slot = self.slots.get()
        try:
            with self.admit(cell):
                if self.stopped:
                    raise CellFailedError("it was stopped")
                return self._in_process(cell, folder, progress, slot)
        finally:
            self.slots.put(slot)

    def _in_process(self, cell: Any, folder: Path, progress: Progress, slot: Slot) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOG
        log.unlink(missing_ok=True)
        process, slot.process = slot.process or self._started(log, slot.gpu), None
        try:
            record = self._listen(process, cell, log, progress)
            if self.kind.reuse:
                slot.process = process
            return record
        finally:
            if slot.process is None:
                with suppress(OSError):
                    process.stdin.close()
                process.wait()
                self.running.discard(process)

    def _started(self, log: Path, gpu: int | None) -> Any:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        device = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        with log.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "spikesink.study.worker", self.kind.runner], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0,
                env={**os.environ, **threads, **device},
            )  # fmt: skip
        self.running.add(process)
        return process

    def _listen(self, process: Any, cell: Any, log: Path, progress: Progress) -> Any:
        """Hand the cell over, pass progress on, and return the record. Raises CellFailedError."""
        said: dict[str, Any] = {}
        try:
            process.stdin.write(json.dumps([str(log.parent), self.kind.pack(cell, self.threads)]) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                if "progress" not in said:
                    break
                stage, done, total = said["progress"]
                if stage == self.kind.stage:
                    progress(cell.name, done, total)
        except (BrokenPipeError, ValueError):
            # Its exit code says more.
            pass
        if "record" in said:
            return self.kind.record.model_validate(said["record"])
        if "error" in said:
            raise CellFailedError(said["error"])
        code = process.wait()
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise CellFailedError(f"the process ended with {code}" + (f": {last[0][:300]}" if last else ""))


class Ray:
    """Every cell a task of a Ray cluster; tasks of a node that is lost run again elsewhere.

    On a folder that all nodes share, a cell goes on from its last checkpoint; otherwise it starts again.
    """

    LOST_NODES = 20

    def __init__(self, address: str | None = None, threads: int = 1, gpus: float = 0, *, kind: Kind = TRAINING) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("The ray executor needs Ray; pip install 'spikesink[cluster]'.") from error
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"No Ray cluster answers at '{address}': {error}.") from error
        self.ray, self.threads, self.gpus, self.kind = ray, threads, gpus, kind
        self.device = device_with(gpus)
        self.task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=self.LOST_NODES)(_ray_task)

    def machines(self, ask: Callable[[], Answer]) -> list[Answer]:
        """The answers of the nodes that may run a cell; one that says nothing in a minute is left out."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in self._nodes()]
        task = self.ray.remote(num_cpus=0, num_gpus=self.gpus, max_retries=0)(ask)
        asked = [task.options(scheduling_strategy=place).remote() for place in places]
        ready = self.ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)[0] if asked else []
        answers = []
        for each in ready:
            with suppress(self.ray.exceptions.RayError):
                answers.append(self.ray.get(each))
        return answers

    def _nodes(self) -> list[dict[str, Any]]:
        needs = {"CPU": self.threads, "GPU": self.gpus}
        return [
            node
            for node in self.ray.nodes()
            if node["Alive"] and all(node["Resources"].get(name, 0) >= least for name, least in needs.items())
        ]

    def run(self, cells: list[Any], folder: Path, progress: Progress) -> Iterator[Any]:
        place = folder.absolute()
        waiting = {self._submit(cell, place): (cell, 1) for cell in cells}
        progress("cells on Ray", 0, len(cells))
        while waiting:
            (ready,), _ = self.ray.wait(list(waiting), num_returns=1)
            cell, attempt = waiting.pop(ready)
            try:
                record = self.kind.record.model_validate_json(self.ray.get(ready))
                record = record.model_copy(update={"attempts": attempt})
            except self.ray.exceptions.RayError as error:
                if attempt < ATTEMPTS:
                    waiting[self._submit(cell, place)] = (cell, attempt + 1)
                    continue
                record = self.kind.failed(cell, str(error).strip().splitlines()[-1], attempt)
            progress("cells on Ray", len(cells) - len(waiting), len(cells))
            yield record

    def _submit(self, cell: Any, place: Path) -> Any:
        # What no node has, Ray would wait for without end. On GPUs a cell's share of them is its limit.
        most = 0 if self.gpus else max((int(node["Resources"].get("memory", 0)) for node in self._nodes()), default=0)
        task = self.task.options(memory=min(self.kind.memory(cell), most) or None)
        return task.remote(self.kind.runner, self.kind.pack(cell, self.threads), str(place / cell.name))


def _check_reachable(address: str | None) -> None:
    """Ray itself would try an address that nobody answers at for minutes. Raises InputError."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise InputError(f"No Ray cluster answers at '{address}': {error}.") from error


def _ray_task(runner: str, packed: str, folder: str) -> str:
    return resolve(runner)(packed, Path(folder), no_progress).to_json()
