"""The training log: a JSON line per logged step, which a resumed run continues, as arrays, and progress."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from spikesink.atomic import write_atomically
from spikesink.errors import OutputError
from spikesink.observer import Progress
from spikesink.train.monitor import PREFIX

KEPT = ("loss", "grad_norm", "learning_rate", "eval_loss")


class Curves(TrainerCallback):
    """One line per logged step: `step` and loss, gradient norm, learning rate, held-out loss, readings.

    The Trainer keeps what it logged in its state, which every checkpoint holds: the file and the arrays follow it.
    """

    def __init__(self, path: Path, progress: Progress, *, writes: bool) -> None:
        self.path, self.progress, self.writes = path, progress, writes
        self.lines: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lines = [line for logged in state.log_history if (line := _line(logged))]
        if self.writes:
            # What a killed run logged after its last checkpoint will be logged again.
            with _written(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        self.progress("train", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        line = _line(state.log_history[-1])
        if not line:
            return
        self.lines.append(line)
        if self.writes:
            with _written(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress("train", state.global_step, state.max_steps)

    def last(self, name: str) -> float:
        return next(float(line[name]) for line in reversed(self.lines) if name in line)

    def at(self, name: str, step: int) -> float | None:
        """What was logged at this very step, if anything."""
        return next((float(line[name]) for line in self.lines if name in line and line["step"] == step), None)

    def last_readings(self) -> dict[str, float]:
        reading = next((line for line in reversed(self.lines) if f"{PREFIX}spike" in line), {})
        return {name.removeprefix(PREFIX): value for name, value in reading.items() if name.startswith(PREFIX)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Per curve, `NAME` and `NAME.step`, each (point,)."""
        names = dict.fromkeys(name for line in self.lines for name in line if name != "step")
        arrays = {}
        for name in names:
            points = [(line["step"], line[name]) for line in self.lines if name in line]
            arrays[name] = np.array([value for _, value in points], dtype=np.float64)
            arrays[f"{name}.step"] = np.array([step for step, _ in points], dtype=np.int64)
        return arrays


def _line(logged: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an entry of the Trainer's history, with its step; nothing of one that has none of it."""
    kept = {name: logged[name] for name in sorted(logged) if name in KEPT or name.startswith(PREFIX)}
    return {"step": logged["step"], **kept} if kept else {}


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The run's log '{path}' cannot be written: {error.strerror or error}. Free some space and go on with "
            "--resume."
        ) from error
