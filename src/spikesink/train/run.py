"""From a recipe to a trained, saved and recorded model; resumable at any step."""

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from spikesink.access.checkpoint import MODEL
from spikesink.atomic import replace_folder, write_atomically
from spikesink.errors import InputError, OutputError, short
from spikesink.observer import Progress, no_progress
from spikesink.records import Provenance, Timing, TrainingRun, package_versions
from spikesink.train import checkpoints
from spikesink.train.monitor import AnatomyCallback
from spikesink.train.recipe import Recipe
from spikesink.train.sharding import GIB, STATE_BYTES, check_sharded, count_parameters
from spikesink.train.streams import Stream, open_stream
from spikesink.train.trainer import Curves, RecipeTrainer
from spikesink.zoo import SpikesinkDecoderForCausalLM, build

CHECKPOINTS = "checkpoints"
RECIPE = "recipe.yaml"
HELD_OUT = "held_out.npy"
LOG = "log.jsonl"


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    allow_changed: bool = False,
    progress: Progress = no_progress,
) -> TrainingRun:
    """Train the recipe's model in `out`; returns the record that lies there.

    The folder gets `model/` (what `spikesink scan` reads), `held_out.npy` (token ids to scan it on), `log.jsonl`,
    `recipe.yaml`, `checkpoints/` and the record. resume: go on from the newest complete checkpoint, from the start
    if there is none. Raises InputError, OutputError and NumericError.
    """
    started = time.perf_counter()
    # The library's own bars, one for every checkpoint, would write over ours.
    transformers.utils.logging.disable_progress_bar()
    root = out / CHECKPOINTS
    checkpoint = _starting_point(recipe, out, resume=resume, allow_changed=allow_changed)
    check_memory(recipe)
    if recipe.running.threads:
        torch.set_num_threads(recipe.running.threads)
    stream = open_stream(recipe, progress)
    if checkpoint is not None:
        checkpoints.check_text(checkpoint, stream.provenance["source_sha256"], allow_changed=allow_changed)
    trainer = RecipeTrainer(recipe, fresh_model(recipe, stream), stream, root)
    main = trainer.is_world_process_zero()
    if main:
        checkpoints.discard_newer(root, checkpoint)
        _write_inputs(recipe, stream, out)
    if recipe.monitor.every:
        probe_ids = torch.from_numpy(stream.held_out[: recipe.monitor.sequences])
        AnatomyCallback(probe_ids, every=recipe.monitor.every).attach(trainer)
    first_step = checkpoints.step_of(checkpoint) if checkpoint is not None else 0
    curves = Curves(out / LOG, progress, writes=main)
    trainer.add_callback(curves)
    if recipe.training.fsdp:
        trainer.add_callback(check_sharded())
    # Not the trainer's own figure, which a clock that is set back makes negative.
    begun = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    seconds = time.perf_counter() - begun
    held_out = curves.at("eval_loss", recipe.training.steps) or trainer.evaluate()["eval_loss"]
    _save_model(trainer, stream, out)
    record = _record(recipe, stream, trainer, curves, held_out, seconds, started, first_step)
    if main:
        record.save(out, force=True)
    return record


def fresh_model(recipe: Recipe, stream: Stream) -> SpikesinkDecoderForCausalLM:
    """The model of a recipe: a pretrained one, or with the weights of its seed."""
    torch.manual_seed(recipe.training.seed)
    if recipe.pretrained is not None:
        from spikesink.train.pretrained import pretrained_model

        return pretrained_model(recipe.pretrained, recipe.model, stream.sample)
    tokenizer = stream.tokenizer
    return build(recipe.model, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)


def _starting_point(recipe: Recipe, out: Path, *, resume: bool, allow_changed: bool) -> Path | None:
    """The checkpoint to go on from. Raises where a run is in the way, or is another's."""
    root = out / CHECKPOINTS
    if not resume:
        if (out / RECIPE).exists():
            raise OutputError(f"'{out}' already holds a run; pass --resume to go on with it, or another --out.")
        return None
    if not (out / RECIPE).exists():
        raise InputError(f"There is no run to resume in '{out}'; leave --resume out to start one.")
    checkpoint = checkpoints.newest_undamaged(root)
    if checkpoint is not None:
        checkpoints.check_recipe(checkpoint, recipe, allow_changed=allow_changed)
    return checkpoint


def check_memory(recipe: Recipe) -> None:
    """Refuse on a CPU what cannot fit: the system would end the process, or swap for hours."""
    if torch.cuda.is_available() or recipe.training.fsdp:
        return
    parameters, _ = count_parameters(recipe)
    needed, available = STATE_BYTES * parameters, psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"{parameters:,} parameters need {needed / GIB:.1f} GiB for weights, gradients and optimiser; "
            f"{available / GIB:.1f} GiB are free. Choose a smaller model, or see --plan for GPUs."
        )


def _save_model(trainer: RecipeTrainer, stream: Stream, out: Path) -> None:
    """The final model with its tokenizer, whole or absent; every rank takes part in gathering it."""
    if not trainer.is_world_process_zero():
        trainer.save_final(out / MODEL)
        return

    def fill(folder: Path) -> None:
        trainer.save_final(folder)
        stream.tokenizer.save_pretrained(folder)

    try:
        replace_folder(out / MODEL, fill)
    # Each library has its own exception for a full disk.
    except Exception as error:
        raise OutputError(
            f"The model could not be written to '{out / MODEL}' ({short(error)}). Free some space and go on "
            "with --resume."
        ) from error


def _write_inputs(recipe: Recipe, stream: Stream, out: Path) -> None:
    held_out = io.BytesIO()
    np.save(held_out, stream.held_out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / RECIPE, recipe.to_yaml().encode())
        write_atomically(out / HELD_OUT, held_out.getvalue())
    except OSError as error:
        raise OutputError(f"The run's folder '{out}' cannot be written: {error.strerror}.") from error


def _record(
    recipe: Recipe,
    stream: Stream,
    trainer: RecipeTrainer,
    curves: Curves,
    held_out: float,
    seconds: float,
    started: float,
    first_step: int,
) -> TrainingRun:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    steps = recipe.training.steps
    new_tokens = (steps - first_step) * recipe.training.batch_size * recipe.data.seq_len
    return TrainingRun(
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256(),
        parameters=model.num_parameters(),
        steps=steps,
        tokens=recipe.tokens,
        tokens_per_s=new_tokens / seconds if seconds else 0.0,
        processes=trainer.args.world_size,
        loss_nats=curves.last("loss"),
        held_out_loss_nats=float(held_out),
        anatomy=curves.last_readings(),
        provenance=Provenance(
            model={"name": recipe.name, "model_type": model.config.model_type},
            tokens={**stream.provenance, "seq_len": recipe.data.seq_len, "bos": recipe.data.bos},
            versions=package_versions(),
            settings={
                "device": str(trainer.args.device),
                "precision": recipe.precision,
                "resumed_from": first_step,
                "cores": os.cpu_count(),
            },
        ),
        timing=Timing.now(forward_s=seconds, total_s=time.perf_counter() - started),
        arrays=curves.arrays(),
    )
