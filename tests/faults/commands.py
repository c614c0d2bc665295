"""The commands that are disturbed: how each is typed, what it leaves, and when two results are the same."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny import spiking, token_ids
from tiny_gguf import write_tiny_gguf
from tiny_recipe import CONTENT

TIMED = ("timing", "tokens_per_s", "seconds_saved", "resumed_from")
"""What may differ between two runs of the same command."""
RECIPE = {
    **CONTENT,
    "training": {"steps": 20, "batch_size": 4},
    "monitor": {"every": 5, "sequences": 4},
    "running": {"log_every": 1, "eval_every": 7, "save_every": 3, "keep": 2, "threads": 1},
}


GRID = {
    "about": "Does the norm matter?",
    "baseline": "plain",
    "variants": {"plain": {"summary": "the base"}, "dyt": {"summary": "no norm", "set": {"model.norm": "dyt"}}},
}


@dataclass(frozen=True)
class Command:
    """One command line and what it makes in `out`."""

    name: str
    arguments: Callable[[Path, Path], list[str]]
    """Of the folder with the inputs and the folder of the results."""
    result: Callable[[Path], dict[str, Any]]
    """What must be the same, by name; raises where something is there and is not whole."""
    finished: Callable[[Path], bool]
    """Whether the result is there."""
    again: Callable[[Path], list[str]] = lambda out: []
    """Options with which the command goes on."""


def write_inputs(folder: Path) -> None:
    """A tiny model that spikes, ids, a recipe, a grid and a GGUF file."""
    spiking(num_hidden_layers=4).save_pretrained(folder / "model")
    np.save(folder / "ids.npy", token_ids(sequences=8, tokens=40).numpy())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    write_tiny_gguf(folder / "tiny.gguf")


def _source(inputs: Path) -> list[str]:
    return [str(inputs / "model"), "--tokens", str(inputs / "ids.npy")]


def without_timing(content: Any) -> Any:
    """A JSON tree without what may differ."""
    if isinstance(content, dict):
        return {name: without_timing(value) for name, value in content.items() if name not in TIMED}
    return [without_timing(value) for value in content] if isinstance(content, list) else content


def _record(kind_name: str) -> Callable[[Path], dict[str, Any]]:
    def result(out: Path) -> dict[str, Any]:
        from spikesink.records import Anatomy, TrainingRun
        from spikesink.records.interventions import Interventions

        kind = {"anatomy": Anatomy, "interventions": Interventions, "training": TrainingRun}[kind_name]
        if not (out / kind.file).exists():
            return {}
        record = kind.read(out)
        return {
            kind.file: without_timing(json.loads(record.to_json())),
            kind.arrays_file: (out / kind.arrays_file).read_bytes(),
        }

    return result


def _trained(out: Path) -> dict[str, Any]:
    """The record, the loss curve, the final weights and the held-out ids, each if it is there."""
    from safetensors.numpy import load_file

    from spikesink.train import checkpoints

    parts = _record("training")(out)
    if parts:
        parts["log.jsonl"] = (out / "log.jsonl").read_bytes()
    if (out / "model").exists():
        assert (out / "model" / "tokenizer.json").exists(), "a model without its tokenizer"
        weights = load_file(out / "model" / "model.safetensors")
        parts["model"] = {name: array.tobytes() for name, array in weights.items()}
    if (out / "held_out.npy").exists():
        parts["held_out.npy"] = np.load(out / "held_out.npy").tolist()
    if (out / "recipe.yaml").exists():
        parts["recipe.yaml"] = yaml.safe_load((out / "recipe.yaml").read_text())
    newest = checkpoints.newest_complete(out / "checkpoints")
    if newest is not None:
        load_file(newest / "model.safetensors")
    return parts


def _studied(out: Path) -> dict[str, Any]:
    """Every cell's record and the table in its four forms, each if it is there; the JSON form grows cell by cell.

    A cell that failed has a record that says so, no result: the same command tries it again.
    """
    from spikesink.records.study import CellRecord, StudyRecord

    results = out / "results"
    parts: dict[str, Any] = {}
    for path in (results / "grid-tiny").glob("*.json"):
        record = CellRecord.read_file(path)
        if record.status != "failed":
            parts[path.name] = without_timing(json.loads(record.to_json()))
    table = results / "grid-tiny.json"
    cells = 0
    if table.exists():
        study = StudyRecord.read_file(table)
        cells = len(study.cells)
        if cells == len(GRID["variants"]) * 2 and not study.errors:
            parts[table.name] = without_timing(json.loads(study.to_json()))
    # Of the text forms only the last, complete one can be compared.
    if table.name in parts and len(parts) == cells + 1:
        forms = [results / f"grid-tiny.{form}" for form in ("md", "csv", "tex")]
        if all(path.exists() for path in forms):
            parts["forms"] = [path.read_text() for path in forms]
    return parts


def _has(file: str) -> Callable[[Path], bool]:
    return lambda out: (out / file).exists()


SCAN = Command(
    "scan",
    lambda inputs, out: ["scan", *_source(inputs), "--out", str(out)],
    _record("anatomy"),
    _has("anatomy.json"),
    lambda out: ["--force"],
)
ANATOMY = Command(
    "scan --measure all",
    lambda inputs, out: ["scan", *_source(inputs), "--measure", "all", "--out", str(out)],
    _record("anatomy"),
    _has("anatomy.json"),
    lambda out: ["--force"],
)
INTERVENE = Command(
    "intervene",
    lambda inputs, out: [
        *("intervene", *_source(inputs), "--held-out", "3", "--draws", "1"),
        *("--which", "core,quantisation", "--out", str(out)),
    ],
    _record("interventions"),
    _has("interventions.json"),
    lambda out: ["--force"],
)
TRAIN = Command(
    "train",
    lambda inputs, out: ["train", str(inputs / "recipe.yaml"), "--out", str(out)],
    _trained,
    _has("training.json"),
    lambda out: ["--resume"] if (out / "recipe.yaml").exists() else [],
)
GGUF = Command(
    "scan of a GGUF file (its cache)",
    lambda inputs, out: ["scan", str(inputs / "tiny.gguf"), *_source(inputs)[1:], "--out", str(out)],
    _record("anatomy"),
    _has("anatomy.json"),
    lambda out: ["--force"],
)
STUDY = Command(
    "study",
    lambda inputs, out: [
        *("study", str(inputs / "grid.yaml"), "--preset", str(inputs / "recipe.yaml"), "--set", "training.steps=4"),
        *("--seeds", "2", "--jobs", "1", "--out", str(out / "results"), "--work", str(out / "work")),
    ],
    _studied,
    _has("results/grid-tiny.tex"),
)
COMMANDS = (SCAN, ANATOMY, INTERVENE, TRAIN, GGUF, STUDY)
