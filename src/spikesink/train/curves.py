"""What a run logs: a JSONL that a resumed run goes on with as if it had never stopped, progress, and arrays."""

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
    """One line per logged step: `step` and loss, gradient norm, learning rate, held-out loss, readings."""

    def __init__(self, path: Path, first_step: int, steps: int, progress: Progress, *, writes: bool) -> None:
        self.path, self.steps, self.progress, self.writes = path, steps, progress, writes
        self.lines = [line for line in _read(path) if line["step"] <= first_step]
        if writes:
            # What a killed run logged after its last checkpoint will be logged again.
            with _written(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        progress("train", first_step, steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        kept = {name: value for name, value in (logs or {}).items() if name in KEPT or name.startswith(PREFIX)}
        if not kept:
            return
        line = {"step": state.global_step, **kept}
        self.lines.append(line)
        if self.writes:
            with _written(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress("train", state.global_step, self.steps)

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


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The run's log '{path}' cannot be written: {error.strerror or error}. Free some space and go on with "
            "--resume."
        ) from error


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a killed run may leave half of one at the end."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        numbers = isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values())
        if not numbers or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines
