"""What a graft is asked to do, as the recipes of the healed model and its control."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikesink.data.encode import Encoder
from spikesink.errors import InputError
from spikesink.train.pretrained import EMBEDDED, pretrained_spec, pretrained_tokenizer
from spikesink.train.recipe import Recipe
from spikesink.zoo.graft import check_graft

LEARNING_RATE = 2e-4
CURVE_POINTS = 5
"""Evaluations and monitor readings of a run."""


@dataclass(frozen=True)
class GraftSettings:
    """changes: `arrangement=sandwich` (of the model) or `training.batch_size=4` (of the recipe)."""

    model: str | None
    changes: tuple[str, ...]
    text: Path | None = None
    dataset: str | None = None
    steps: int = 100
    """0 replaces and measures, and trains nothing."""
    seq_len: int = 128
    sequences: int = 64
    """Held-out sequences that are evaluated."""
    bos: str = "auto"
    field: str | None = None
    tokens: Path | None = None
    """An .npy of token ids (sequences, seq_len) instead of a text."""
    chat_template: bool = False


def graft_recipes(settings: GraftSettings) -> tuple[Recipe, Recipe, dict[str, Any]]:
    """The recipe of the healing, that of its control, and what is replaced. Raises InputError."""
    name = settings.model or EMBEDDED
    base = pretrained_spec(name).model_dump(mode="json")
    content = {**_content(settings, name), "model": base}
    ours = [change if change.split(".")[0] in Recipe.model_fields else f"model.{change}" for change in settings.changes]
    healing = Recipe.read(content, ours)
    control = Recipe.read(content, [change for change in ours if not change.startswith("model.")])
    changed = check_graft(control.model, healing.model)
    return healing, control, {path: [_plain(value) for value in pair] for path, pair in changed.items()}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _content(settings: GraftSettings, name: str) -> dict[str, Any]:
    if settings.steps < 0:
        raise InputError(f"--steps is {settings.steps}; expected 0 (graft without healing) or more.")
    # A recipe has a step at least; without healing it only says which data and model are meant.
    steps = max(1, settings.steps)
    every = max(1, steps // CURVE_POINTS)
    batch = max(1, BATCH_TOKENS // settings.seq_len)
    return {
        "name": "graft",
        "pretrained": name,
        "data": {
            "source": _source(settings, steps * batch * settings.seq_len),
            "seq_len": settings.seq_len,
            "bos": _with_bos(settings, name),
            "held_out": settings.sequences,
        },
        "optimiser": {"lr": LEARNING_RATE, "warmup_steps": steps // 10, "weight_decay": 0.01},
        "training": {"steps": steps, "batch_size": batch, "precision": "auto"},
        "monitor": {"every": every, "sequences": 8},
        "running": {"log_every": 1, "eval_every": every, "save_every": 50, "keep": 1},
    }


def _source(settings: GraftSettings, tokens: int) -> dict[str, Any]:
    if settings.tokens is not None:
        return {"kind": "ids", "path": str(settings.tokens)}
    read = {"field": settings.field, "chat_template": settings.chat_template}
    if settings.text is not None:
        return {"kind": "text", "path": str(settings.text), **read}
    if settings.dataset is not None:
        # The tokenizer is the model's own, whatever stands here.
        return {"kind": "hub", "name": settings.dataset, "tokenizer": "", "tokens": tokens, **read}
    raise InputError(
        "Healing needs a text of its own: the default one is too small to train on. Give --text FILE, --dataset NAME "
        "or --tokens IDS.npy."
    )


def _with_bos(settings: GraftSettings, name: str) -> bool:
    """Whether sequences begin with BOS, as a scan decides it."""
    if settings.tokens is not None:
        return False
    return bool(Encoder(pretrained_tokenizer(name), settings.bos, settings.chat_template).prefix)


BATCH_TOKENS = 1024
"""Tokens of a step unless training.batch_size says otherwise."""
