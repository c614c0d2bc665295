"""The anatomy next to the loss: a callback for any Hugging Face Trainer, and a monitor for a plain loop.

Every N steps, on a fixed batch: spike, max / median, sink ratio and first-token importance, of the model and of each
layer, under names like `spikesink/sink_ratio` and `spikesink/layer_3/spike`.
"""

import json
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback

from spikesink.access.load import unwrapped
from spikesink.analyse.readings import AnatomySums, anatomy_sums, merged
from spikesink.analyse.scan import accessed_model
from spikesink.data.tokens import Tokens, as_array
from spikesink.errors import InputError, NumericError

PREFIX = "spikesink/"


class AnatomyMonitor:
    """Readings of a model that is being trained.

    ids: fixed probe sequences (sequence, token), the same on every rank; ranks share them out and merge. every: steps
    between readings. path: a JSONL that gets one line a reading, with the number of its run: several
    may append to one file. The model is verified once, here, and left as it was after each reading: mode, attention
    backend, gradients and random state. Raises InputError for ids that the model cannot take, and what `access` raises
    for a model that cannot be measured.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: Tensor | np.ndarray | list[list[int]],
        *,
        every: int = 50,
        epsilon: float = 0.3,
        batch_size: int | None = None,
        path: Path | str | None = None,
    ) -> None:
        given = as_array(ids, "Probe ids")
        if given.ndim != 2 or given.shape[0] < 1 or given.shape[1] < 2:
            raise InputError(f"Probe ids have shape {given.shape}; expected (sequences, tokens), 2 tokens or more.")
        tokens = Tokens.from_ids(given, "probe ids")
        if every < 1:
            raise InputError(f"every is {every}; expected at least 1 step.")
        self.every, self.epsilon, self.batch_size = every, epsilon, batch_size
        self.path = Path(path) if path is not None else None
        self._run: int | None = None
        self.ids = torch.from_numpy(np.require(tokens.ids, requirements=["C", "W"]))
        self._accessed = accessed_model(model, tokens)

    @property
    def model(self) -> nn.Module:
        """The model that is watched, without what wraps it."""
        return self._accessed.model

    def __call__(self, step: int) -> dict[str, float] | None:
        """The readings if this step is one to read at, else None; call it on every rank.

        A reading that fails is a warning and None: it never ends the training that it watches.
        """
        if step % self.every:
            return None
        try:
            return self.read(step)
        except Exception as error:
            warnings.warn(f"No reading at step {step}: {type(error).__name__}: {error}", stacklevel=2)
            return None

    def read(self, step: int) -> dict[str, float]:
        """Measure now. Raises NumericError where the weights or activations are not finite."""
        sums = self._measured()
        readings = {f"{PREFIX}{name}": value for name, value in sums.readings().items()}
        if self.path is not None and _rank_and_world()[0] == 0:
            if self._run is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._run = _next_run(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run": self._run, "step": step, **readings}) + "\n")
        return readings

    def _measured(self) -> AnatomySums:
        rank, world = _rank_and_world()
        if world == 1 or len(self.ids) < world:
            return self._probe(self.ids)
        parts: list[Any] = [None] * world
        try:
            share: AnatomySums | str = self._share(rank, world)
        except Exception as error:
            # Said to the others, who wait for it.
            share = f"{type(error).__name__}: {error}"
        torch.distributed.all_gather_object(parts, share)
        failed = next((part for part in parts if isinstance(part, str)), None)
        if failed is not None:
            raise NumericError(failed)
        return merged(parts)

    def _share(self, rank: int, world: int) -> AnatomySums:
        """What this rank measures, so that every sequence counts once whatever the number of ranks."""
        whole = len(self.ids) // world * world
        share = self._probe(self.ids[:whole][rank::world])
        if whole == len(self.ids):
            return share
        # Sharded models must run in step: a rank that no sequence is left for runs one that does not count.
        left = whole + rank
        last = self._probe(self.ids[min(left, len(self.ids) - 1)][None])
        return merged([share, last]) if left < len(self.ids) else share

    def _probe(self, ids: Tensor) -> AnatomySums:
        sums = anatomy_sums(self._accessed, ids, epsilon=self.epsilon, batch_size=self.batch_size)
        # FSDP leaves the root gathered after a forward, for a backward that will not come here.
        for module in self._accessed.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return sums


class AnatomyCallback(TrainerCallback):
    """`Trainer(..., callbacks=[AnatomyCallback(ids, every=50)])`: readings go to `trainer.log`, so to every tracker.

    `attach(trainer)` does the same for a trainer that is there already, and verifies its model at once, before the
    trainer wraps it. It never opens a tracker itself, and never ends a training: what cannot be measured is a warning.
    """

    def __init__(
        self,
        ids: Tensor | np.ndarray | list[list[int]],
        *,
        every: int = 50,
        epsilon: float = 0.3,
        batch_size: int | None = None,
        path: Path | str | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"every": every, "epsilon": epsilon, "batch_size": batch_size, "path": path}
        self._ids = ids
        self.monitor: AnatomyMonitor | None = None
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> "AnatomyCallback":
        """Verify the trainer's model and watch what it trains from now on.

        Raises InputError for the ids, VerificationError and UnsupportedModelError for the model.
        """
        # Before the trainer wraps the model: a wrapper may change its precision, and verification is exact.
        self._watch(trainer)
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def _watch(self, trainer: Trainer) -> None:
        assert trainer.model is not None, "a trainer has a model, or makes one when it is made"
        self.monitor = AnatomyMonitor(trainer.model, self._ids, **self._options)
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer if self._trainer is not None else _trainer_of(state)
        try:
            if trainer is None or trainer.model is None:
                raise InputError("the trainer is not known; call attach(trainer).")
            # `model_init` makes another model for each training.
            if self.monitor is None or self.monitor.model is not unwrapped(trainer.model):
                self._watch(trainer)
        except Exception as error:
            self.monitor = None
            warnings.warn(f"The training is not watched: {type(error).__name__}: {error}", stacklevel=2)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.monitor is None or self._trainer is None or self._trainer.state is not state:
            return
        readings = self.monitor(state.global_step)
        if readings is not None:
            # Logging clears the flag by which the trainer would log its own loss at this step.
            should_log = control.should_log
            self._trainer.log(dict(readings))
            control.should_log = should_log


def _trainer_of(state: Any) -> Trainer | None:
    """The trainer that calls us, which callbacks are not handed: it is further up the stack, with this state."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and caller.state is state:
            return caller
        frame = frame.f_back
    return None


def _next_run(path: Path) -> int:
    """The number of a run that begins to append to this file: one more than those that did before."""
    if not path.exists():
        return 1
    text = path.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        # A killed run's last line stays one of its own.
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    runs = [0]
    for line in text.splitlines():
        with suppress(ValueError, AttributeError):
            runs.append(int(json.loads(line).get("run", 1)))
    return max(runs) + 1


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
