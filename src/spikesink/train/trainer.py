"""The Hugging Face Trainer with what a recipe needs: data in order, decay on matrices, whole checkpoints, the log."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from spikesink.atomic import write_atomically
from spikesink.errors import InputError, NumericError, OutputError
from spikesink.observer import Progress
from spikesink.train import checkpoints
from spikesink.train.monitor import PREFIX
from spikesink.train.recipe import Recipe
from spikesink.train.sharding import not_sharded
from spikesink.train.streams import Samples, Stream

SHORT = 128
"""Tokens of a sequence up to which fused attention in bf16 is slower on a CPU than matrix products (LOG.md, 27 November
2026: forward and backward took 3.3, 5 and 2.7 times as long at 32, 64 and 128 tokens, 1.1 at 256, 0.95 at 512)."""


class RecipeTrainer(Trainer):
    """A Trainer of one recipe; its checkpoints lie in `checkpoints/` of the run's folder."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel, stream: Stream, root: Path) -> None:
        self.recipe, self.root, self.stream = recipe, root, stream
        self.unchecked: list[tuple[int, Tensor]] = []
        training = recipe.training
        count = training.steps * training.batch_size
        loss = (training.loss_min, training.loss_max)
        held_out = stream.held_out
        if attends_by_products(recipe):
            model.set_attn_implementation("eager")
        super().__init__(
            model=model,
            args=arguments(recipe, root),
            train_dataset=Samples(stream.sample, count, *loss),
            eval_dataset=Samples(held_out.__getitem__, len(held_out), *loss),
            data_collator=default_data_collator,
        )
        self.remove_callback(PrinterCallback)
        share = self.args.per_device_train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        assert share == training.batch_size, "the processes do not share out one batch"

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        # Sample i is already a random one: order adds nothing, and position in the data is a plain number.
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed(model)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.unchecked.append((self.state.global_step + 1, loss))
        # Reading a loss waits for an accelerator: there they are looked at together, before they are logged or saved.
        if self._reads_losses(self.state.global_step + 1):
            self._check_losses()
        return loss

    def _reads_losses(self, step: int) -> bool:
        on_cpu = self.args.device.type == "cpu"
        return on_cpu or step % self.args.logging_steps == 0 or step == self.recipe.training.steps

    def _check_losses(self) -> None:
        losses = torch.stack([loss for _, loss in self.unchecked]).tolist()
        steps = [step for step, _ in self.unchecked]
        self.unchecked.clear()
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                self._refuse(loss, step)

    def _refuse(self, loss: float, step: int) -> None:
        size = self.recipe.training.batch_size
        first = (step - 1) * size
        raise NumericError(
            f"The loss is {loss} at step {step}, on samples {first} to {first + size - 1} (data.seed "
            f"{self.recipe.data.seed}). Lower optimiser.lr, lengthen optimiser.warmup_steps, or look at these samples; "
            "the last checkpoint is from before."
        )

    def save_final(self, folder: Path) -> None:
        """Write the whole model, gathered where it is sharded; on every rank."""
        state = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            self._save(str(folder), state_dict=state)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.root / f"{checkpoints.PREFIX}{self.state.global_step}"
        with checkpoints.saving(self.root, folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                checkpoints.mark_complete(folder, self.recipe, self.stream.provenance["source_sha256"])
                checkpoints.prune(self.root, self.recipe.running.keep)


def attends_by_products(recipe: Recipe) -> bool:
    """Whether attention is computed as matrix products here, because the fused one would take longer."""
    return recipe.precision == "bf16" and recipe.data.seq_len <= SHORT and not torch.cuda.is_available()


def decayed(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay acts on: matrices of linear maps and embeddings, nothing else."""
    return [
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    ]


def arguments(recipe: Recipe, root: Path) -> TrainingArguments:
    """The recipe as the Trainer's arguments for this number of processes. Raises InputError where it cannot be."""
    training, optimiser, running = recipe.training, recipe.optimiser, recipe.running
    on_gpu = torch.cuda.is_available()
    if training.fsdp and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise not_sharded("there is one process")
    missing = [name for name in running.trackers if find_spec(name) is None]
    if missing:
        raise InputError(f"running.trackers names {', '.join(missing)}, not installed; pip install 'spikesink[track]'.")
    args = TrainingArguments(
        output_dir=str(root),
        max_steps=training.steps,
        learning_rate=optimiser.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optimiser.min_lr_ratio},
        warmup_steps=optimiser.warmup_steps,
        adam_beta1=optimiser.betas[0],
        adam_beta2=optimiser.betas[1],
        adam_epsilon=optimiser.eps,
        weight_decay=optimiser.weight_decay,
        max_grad_norm=optimiser.grad_clip,
        seed=training.seed,
        bf16=recipe.precision == "bf16",
        torch_compile=training.compile and on_gpu,
        activation_checkpointing=training.activation_checkpointing and not training.fsdp,
        use_cpu=not on_gpu,
        # A run shorter than that still says how it ended.
        logging_steps=min(running.log_every, training.steps),
        # Zeroing a NaN would hide what the user must know.
        logging_nan_inf_filter=False,
        eval_strategy="steps" if running.eval_every else "no",
        eval_steps=running.eval_every or None,
        prediction_loss_only=True,
        save_steps=running.save_every,
        report_to=list(running.trackers) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        # Every parameter of every spec gets a gradient; looking for ones that do not costs a pass over the graph.
        ddp_find_unused_parameters=False,
        **_sharing(recipe),
    )
    return _share_out(recipe, args)


def _share_out(recipe: Recipe, args: TrainingArguments) -> TrainingArguments:
    """Split the batch over processes and accumulation steps, so that any number of processes sees the same batches."""
    batch, processes = recipe.training.batch_size, args.world_size
    if batch % processes:
        raise InputError(
            f"training.batch_size is {batch}, which {processes} processes cannot share equally; expected a multiple."
        )
    share = batch // processes
    micro = min(recipe.training.micro_batch or share, share)
    # A micro-batch that does not divide the share is lowered to the next that does.
    micro = max(size for size in range(1, micro + 1) if share % size == 0)
    args.per_device_train_batch_size = micro
    args.gradient_accumulation_steps = share // micro
    args.per_device_eval_batch_size = max(1, min(micro, math.ceil(recipe.data.held_out / processes)))
    return args


def _sharing(recipe: Recipe) -> dict[str, Any]:
    """FSDP2 with the plan of `sharding.shard`; it has activation checkpointing of its own, which gathers once less."""
    if not recipe.training.fsdp:
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": ["DecoderLayer"],
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": recipe.training.activation_checkpointing,
        },
    }


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
