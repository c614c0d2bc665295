"""A recipe that trains in a second: pairwise different sizes, every interval exercised."""

import json
from pathlib import Path

from spikesink.train.recipe import Recipe

CONTENT = {
    "name": "tiny",
    "model": {
        "vocab_size": 12, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 6, "max_positions": 10,
        "ffn": {"kind": "swiglu", "d_ffn": 20},
    },
    "data": {"source": {"kind": "bigram_backcopy", "triggers": 2}, "seq_len": 9, "held_out": 6},
    "optimiser": {"lr": 0.01, "warmup_steps": 3},
    "training": {"steps": 12, "batch_size": 4},
    "monitor": {"every": 0},
    "running": {"log_every": 1, "eval_every": 0, "save_every": 3, "keep": 9, "threads": 1},
}  # fmt: skip


def tiny_recipe(*changes: str) -> Recipe:
    return Recipe.read(CONTENT, list(changes))


def losses(out: Path) -> dict[int, float]:
    """Loss by step from a run's log."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
