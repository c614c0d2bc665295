"""One cell: train the variant, or go on training it, scan it on held-out text, and say what came out.

What trains and measures is imported where a cell runs, since whoever hands out cells needs none of it.
"""

import json
import os
import shutil
import time
import warnings
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from spikesink.atomic import data_sha256, write_atomically
from spikesink.errors import NumericError, RecordError
from spikesink.observer import Progress
from spikesink.records import Anatomy, Provenance, Timing, TrainingRun, package_versions
from spikesink.records.study import CellFunction, CellRecord, Curve, Measured
from spikesink.records.training import thinned
from spikesink.study.grid import Cell
from spikesink.train.recipe import Recipe

SINK_TOKENS = 64
"""Sinks are measured at this length, as in the paper."""
BEGUN = "cell.json"
"""What the run of a cell's folder is made of."""
CURVE_POINTS = 150
CURVES = {
    "loss": "loss_nats",
    "spikesink/spike": "spike",
    "spikesink/max_over_median": "max_over_median",
    "spikesink/sink_ratio": "sink_ratio",
    "spikesink/first_token_importance": "first_token_importance",
}


def pack(cell: Cell, threads: int) -> str:
    """The cell as one line of JSON, with this number of CPU threads: nothing about its result but rounding."""
    running = cell.recipe.running.model_copy(update={"threads": threads})
    cell = replace(cell, recipe=cell.recipe.model_copy(update={"running": running}))
    content = {field.name: getattr(cell, field.name) for field in fields(cell)}
    return json.dumps(content, default=lambda recipe: recipe.model_dump(mode="json"))


def run_packed(text: str, folder: Path, progress: Progress) -> CellRecord:
    """`run_cell` of what `pack` wrote."""
    content = json.loads(text)
    recipes = {name: Recipe.parse(content[name]) for name in ("recipe", "base")}
    return run_cell(Cell(**{**content, **recipes}), folder, progress)


def run_cell(cell: Cell, folder: Path, progress: Progress) -> CellRecord:
    """Train and measure in `folder`, going on with what lies there; only one process at a time does.

    Raises SpikesinkError where the cell cannot be run; a loss or an activation that is not finite is a result.
    """
    import torch

    from spikesink.train.run import CHECKPOINTS
    from spikesink.train.streams import source_sha256

    started = time.perf_counter()
    on_gpu = torch.cuda.is_available()
    trained_on = {"device": device_with(on_gpu), "gpu": torch.cuda.get_device_name() if on_gpu else None}
    folder.mkdir(parents=True, exist_ok=True)
    # The lock goes with its holder, however that ends.
    with FileLock(folder / ".lock"):
        try:
            run = _trained(cell.recipe, folder, str(trained_on["device"]), progress)
            measured = _measured(cell, folder, progress)
            function = measured_function(cell, folder, progress)
        except NumericError as error:
            text = source_sha256(cell.recipe)
            return _record(cell, started, trained_on, text, status="diverged", error=str(error))
        # What a resumed run would need; the model stays.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        # What it was trained on, which a run that was finished before need not share with the text as it is now.
        text = run.provenance.tokens.get("source_sha256")
        return _record(
            cell, started, trained_on, text, parameters=run.parameters, measured=measured, function=function,
            curves=_curves(run.arrays),
        )  # fmt: skip


def _trained(recipe: Recipe, folder: Path, device: str, progress: Progress) -> TrainingRun:
    """The training record of the folder, made or finished where it is not there yet; what was begun by another recipe,
    on another text or device or with another number of threads is no part of this cell, and begun anew."""
    from spikesink.train.run import CHECKPOINTS, MODEL, RECIPE, train
    from spikesink.train.streams import source_sha256

    made_of = {
        "recipe_sha256": recipe.sha256(), "source_sha256": source_sha256(recipe), "device": device,
        "threads": recipe.running.threads,
    }  # fmt: skip
    identity, begun = json.dumps(made_of), folder / BEGUN
    if not begun.exists() or begun.read_text(encoding="utf-8") != identity:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for file in (RECIPE, TrainingRun.file):
            (folder / file).unlink(missing_ok=True)
        write_atomically(begun, identity.encode())
    if (folder / TrainingRun.file).exists() and (folder / MODEL).is_dir():
        with suppress(RecordError):
            return TrainingRun.read(folder)
    return train(recipe, folder, resume=(folder / RECIPE).exists(), progress=progress)


def _measured(cell: Cell, folder: Path, progress: Progress) -> Measured:
    """Sinks on the first tokens, spikes and perplexity on the whole context, of sequences that no cell trained on."""
    import torch

    from spikesink.access import load
    from spikesink.analyse.passes import stream
    from spikesink.analyse.scan import scan
    from spikesink.data.tokens import Tokens
    from spikesink.study.shape import SpikeShape
    from spikesink.train.run import MODEL
    from spikesink.train.streams import open_stream

    held_out = open_stream(cell.base, progress).held_out
    model = load(str(folder / MODEL))
    context = scan(model, Tokens.from_ids(held_out), progress=progress)
    short = held_out[:, :SINK_TOKENS]
    sinks = context if short.shape == held_out.shape else scan(model, Tokens.from_ids(short), progress=progress)
    context.save(folder / "scan", force=True)
    shape = SpikeShape()
    stream(model, torch.from_numpy(held_out), [shape], stage="shape of the spikes", progress=progress)
    return measured(context, sinks, held_out.size, shape.compute())


def measured_function(cell: Cell, folder: Path, progress: Progress) -> CellFunction:
    """What spikes and sinks do in the model of the folder, at the length that sinks are measured at."""
    import torch

    from spikesink.access import load
    from spikesink.analyse.function import function_of
    from spikesink.train.run import MODEL
    from spikesink.train.streams import open_stream

    held_out = open_stream(cell.base, progress).held_out[:, :SINK_TOKENS]
    return function_of(load(str(folder / MODEL)), torch.from_numpy(np.ascontiguousarray(held_out)), progress)


def is_run_of(record: CellRecord, folder: Path) -> bool:
    """Whether the run in the folder is the record's, by its curves; warns where it is another (another processor's)."""
    same = False
    with suppress(RecordError):
        same = _curves(TrainingRun.read(folder).arrays) == record.curves
    if not same:
        warnings.warn(f"{folder} is of another run than its record, which is left as it is", stacklevel=2)
    return same


def measured(context: Anatomy, sinks: Anatomy, tokens: int, shape: dict[str, Any]) -> Measured:
    """The figures of a cell from the scan of the whole context, the one of the first tokens, and the spikes' shape."""
    spikes, of_sinks = context.summary, sinks.summary
    return Measured(
        perplexity=spikes.perplexity,
        sink_ratio=of_sinks.sink_ratio_sun2026,
        spike=spikes.spike,
        max_over_median=spikes.max_over_median,
        first_token_importance=sinks.sinks.first_key_importance,
        sink_ratio_gu2025=of_sinks.sink_ratio_gu2025,
        sink_heads=of_sinks.sink_head_count,
        heads=of_sinks.head_count,
        has_spikes=spikes.has_spikes,
        has_sinks=of_sinks.has_sinks,
        spike_token_share=context.spikes.token_count / tokens if spikes.has_spikes else 0.0,
        massive_count=spikes.massive_count,
        held_out_loss_nats=float(np.log(spikes.perplexity)),
        uniform_importance=sinks.sinks.uniform_first_key,
        virtual_mass=sinks.sinks.virtual_mass,
        **shape,
    )


def device_with(gpus: float) -> str:
    """Where a cell is trained that sees so many GPUs."""
    return "cuda" if gpus else "cpu"


def evaluation_sha256(base: Recipe) -> str:
    """What decides the held-out sequences: cells with the same can share a result."""
    data = base.data.model_dump(mode="json")
    if data["source"]["kind"] != "bigram_backcopy" and not data["source"].get("restarts"):
        # Text can begin again since 27 November 2026: so long as it does not, it is the text it was.
        data["source"].pop("restarts", None)
    content = {"data": data, "vocabulary": base.model.vocab_size}
    return data_sha256(content)


def failed(cell: Cell, error: str, attempts: int) -> CellRecord:
    """What stands in the table for a cell that could not be run."""
    return _record(cell, time.perf_counter(), {}, None, status="failed", error=error, attempts=attempts)


def _curves(arrays: dict[str, np.ndarray]) -> dict[str, Curve]:
    """The curves of interest, thinned to some points; the last stays."""
    curves = {}
    for name, ours in CURVES.items():
        if name not in arrays:
            continue
        kept = thinned(len(arrays[name]), CURVE_POINTS)
        value = [float(f"{number:.5g}") for number in arrays[name][kept]]
        curves[ours] = Curve(step=arrays[f"{name}.step"][kept].tolist(), value=value)
    return curves


def _record(
    cell: Cell, started: float, trained_on: dict[str, str | None], text: str | None, **outcome: object
) -> CellRecord:
    recipe = cell.recipe
    return CellRecord.model_validate(
        {
            "status": "finished",
            **outcome,
            "study": cell.study,
            "preset": cell.preset,
            "variant": cell.variant,
            "seed": cell.seed,
            "recipe": recipe.model_dump(mode="json", exclude={"running"}),
            "recipe_sha256": recipe.sha256(),
            "tokens": recipe.tokens,
            "provenance": Provenance(
                model={"name": cell.name, "model_type": "spikesink_decoder"},
                tokens={
                    "evaluation_sha256": evaluation_sha256(cell.base),
                    "source_sha256": text,
                    "sink_tokens": SINK_TOKENS,
                },
                versions=package_versions(),
                settings={
                    "threads": recipe.running.threads,
                    "cores": os.cpu_count(),
                    **trained_on,
                    "precision": recipe.precision,
                },
            ),
            "timing": Timing.now(total_s=time.perf_counter() - started),
        }
    )
