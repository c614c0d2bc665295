"""A grid on the tiny recipe of the training tests, and records made by hand."""

import json
from pathlib import Path

from tiny_recipe import CONTENT

from spikesink.records import Provenance, Timing
from spikesink.records.study import CellRecord, Measured
from spikesink.study.grid import Grid
from spikesink.train.recipe import Recipe

TINY = {
    **CONTENT,
    "monitor": {"every": 4, "sequences": 3},
    "running": {"log_every": 1, "eval_every": 0, "save_every": 3, "threads": 1},
}
GRID = Grid.parse(
    {
        "about": "Does anything change?",
        "baseline": "plain",
        "variants": {
            "plain": {
                "summary": "as it is", "paper": {"table": 5, "perplexity": 10.1, "sink_ratio": 0.46, "spike": 3818}
            },
            "wide": {"summary": "twice as wide", "scale": {"model.ffn.d_ffn": 2}},
            "dyt": {"summary": "DynamicTanh", "set": {"model.norm": "dyt"}},
        },
    }
)  # fmt: skip


class InProcess:
    """Runs cells here, one after the other: a process of their own takes longer to start than they take to train."""

    threads = TINY["running"]["threads"]
    device = "cpu"

    def run(self, cells, folder, progress):
        from spikesink.study.cell import run_cell

        for cell in cells:
            yield run_cell(cell, folder / cell.name, progress)


def base(*changes: str) -> Recipe:
    return Recipe.read(TINY, list(changes))


def record(variant: str, seed: int, *, status: str = "finished", **figures: float) -> CellRecord:
    """A record by hand; figures that are not given are 1."""
    measured = None
    if status == "finished":
        given = {"heads": 6, "sink_heads": 1, "has_spikes": True, "has_sinks": True, "massive_count": 1, **figures}
        named = {name: given.get(name, 1.0) for name in Measured.model_fields}
        # Plain attention has no other place than tokens.
        measured = Measured.model_validate({**named, "virtual_mass": figures.get("virtual_mass")})
    return CellRecord(
        study="s", preset="tiny", variant=variant, seed=seed, status=status,
        error=None if status == "finished" else "lost", recipe={}, recipe_sha256="0", parameters=7, tokens=11,
        measured=measured, provenance=Provenance(model={}, tokens={}, versions={}, settings={}),
        timing=Timing(created="", load_s=0, forward_s=0, total_s=0),
    )  # fmt: skip


def without_timing(path: Path) -> dict:
    content = json.loads(path.read_text())
    del content["timing"]
    return content
