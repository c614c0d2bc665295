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
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from spikesink.access.protocol import Progress, no_progress
from spikesink.errors import InputError
from spikesink.records.study import CellRecord
from spikesink.study.cell import failed, run_cell
from spikesink.study.grid import Cell
from spikesink.study.worker import pack, unpack

ATTEMPTS = 2
LOG = "worker.log"
CONNECT_S = 5.0


class Executor(Protocol):
    """Runs cells, each in its folder, and yields their records as they come."""

    threads: int
    """CPU threads of a cell, a part of its identity; 0 where torch chooses."""

    def run(self, cells: list[Cell], folder: Path, progress: Progress) -> Iterator[CellRecord]: ...


class CellFailedError(Exception):
    """A cell ended without a record; the message says how."""


class Local:
    """`jobs` processes at a time, one for each core or GPU, with the machine's threads shared out."""

    def __init__(self, jobs: int | None = None, gpus: int = 0, threads: int | None = None) -> None:
        cores = os.cpu_count() or 1
        self.jobs = jobs or gpus or cores
        self.threads = threads or max(1, cores // self.jobs)
        self.slots: queue.Queue[int | None] = queue.Queue()
        for slot in range(self.jobs):
            self.slots.put(slot % gpus if gpus else None)
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def run(self, cells: list[Cell], folder: Path, progress: Progress) -> Iterator[CellRecord]:
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

    def _tried(self, cell: Cell, folder: Path, progress: Progress) -> CellRecord:
        return _twice(cell, lambda: self._once(cell, folder, progress))

    def _once(self, cell: Cell, folder: Path, progress: Progress) -> CellRecord:
        if self.stopped:
            raise CellFailedError("the study was stopped")
        gpu = self.slots.get()
        try:
            return self._in_process(cell, folder, progress, gpu)
        finally:
            self.slots.put(gpu)

    def _in_process(self, cell: Cell, folder: Path, progress: Progress, gpu: int | None) -> CellRecord:
        folder.mkdir(parents=True, exist_ok=True)
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        device = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        command = [sys.executable, "-m", "spikesink.study.worker", str(folder)]
        with (folder / LOG).open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0,
                env={**os.environ, **threads, **device},
            )  # fmt: skip
            self.running.add(process)
            try:
                return _listen(process, with_threads(cell, self.threads), folder, progress)
            finally:
                self.running.discard(process)


def _listen(process: Any, cell: Cell, folder: Path, progress: Progress) -> CellRecord:
    """Hand the cell over, pass progress on, and return the record. Raises CellFailedError."""
    said: dict[str, Any] = {}
    try:
        process.stdin.write(pack(cell))
        process.stdin.close()
        for line in process.stdout:
            said = json.loads(line)
            if "progress" in said:
                stage, done, total = said["progress"]
                if stage == "train":
                    progress(cell.name, done, total)
    except (BrokenPipeError, ValueError):
        # Its exit code says more.
        pass
    code = process.wait()
    if code == 0 and "record" in said:
        return CellRecord.model_validate(said["record"])
    if "error" in said:
        raise CellFailedError(said["error"])
    last = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise CellFailedError(f"the process ended with {code}" + (f": {last[0][:300]}" if last else ""))


class Ray:
    """Every cell a task of a Ray cluster; tasks of a node that is lost run again elsewhere.

    On a folder that all nodes share, a cell goes on from its last checkpoint; otherwise it starts again.
    """

    LOST_NODES = 20

    def __init__(self, address: str | None = None, threads: int = 1, gpus: float = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("The ray executor needs Ray; pip install 'spikesink[cluster]'.") from error
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"No Ray cluster answers at '{address}': {error}.") from error
        self.ray, self.threads = ray, threads
        self.task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=self.LOST_NODES)(_ray_task)

    def run(self, cells: list[Cell], folder: Path, progress: Progress) -> Iterator[CellRecord]:
        place = folder.absolute()
        waiting = {self._submit(cell, place): (cell, 1) for cell in cells}
        progress("cells on Ray", 0, len(cells))
        while waiting:
            (ready,), _ = self.ray.wait(list(waiting), num_returns=1)
            cell, attempt = waiting.pop(ready)
            try:
                record = CellRecord.model_validate_json(self.ray.get(ready))
            except self.ray.exceptions.RayError as error:
                if attempt < ATTEMPTS:
                    waiting[self._submit(cell, place)] = (cell, attempt + 1)
                    continue
                record = failed(cell, str(error).strip().splitlines()[-1], attempt)
            progress("cells on Ray", len(cells) - len(waiting), len(cells))
            yield record

    def _submit(self, cell: Cell, place: Path) -> Any:
        return self.task.remote(pack(with_threads(cell, self.threads)), str(place / cell.name))


def _check_reachable(address: str | None) -> None:
    """Ray itself would try an address that nobody answers at for minutes. Raises InputError."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise InputError(f"No Ray cluster answers at '{address}': {error}.") from error


def _ray_task(packed: str, folder: str) -> str:
    return run_cell(unpack(packed), Path(folder), no_progress).to_json()


def _twice(cell: Cell, once: Callable[[], CellRecord]) -> CellRecord:
    """Run a cell, and once more where it failed; what fails again is a record that says so."""
    error = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return once().model_copy(update={"attempts": attempt})
        except CellFailedError as problem:
            error = str(problem)
    return failed(cell, error, ATTEMPTS)


def with_threads(cell: Cell, threads: int) -> Cell:
    """The cell with this number of CPU threads, which changes nothing about its result but rounding."""
    running = cell.recipe.running.model_copy(update={"threads": threads})
    return replace(cell, recipe=cell.recipe.model_copy(update={"running": running}))
