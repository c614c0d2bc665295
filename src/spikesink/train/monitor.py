"""The anatomy next to the loss: a callback for any Hugging Face Trainer, and a monitor for a plain loop.

Every N steps, on a fixed batch: spike, max / median, sink ratio and first-token importance, of the model and of each
layer, under names like `spikesink/sink_ratio` and `spikesink/layer_3/spike`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainerCallback

from spikesink.access import access
from spikesink.analyse.probe import ProbeSums, merged, probe
from spikesink.errors import InputError

PREFIX = "spikesink/"


class AnatomyMonitor:
    """Readings of a model that is being trained.

    ids: fixed probe sequences (sequence, token), the same on every rank; ranks share them out and merge. every: steps
    between readings. path: a JSONL that gets one line a reading. The model is verified once, here, and left as it
    was after each reading: mode, attention backend, gradients and random state.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        *,
        every: int = 50,
        epsilon: float = 0.3,
        batch_size: int | None = None,
        path: Path | str | None = None,
    ) -> None:
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise InputError(
                f"Probe ids have shape {tuple(ids.shape)}; expected (sequences, tokens), 2 tokens or more."
            )
        if every < 1:
            raise InputError(f"every is {every}; expected at least 1 step.")
        self.every, self.epsilon, self.batch_size = every, epsilon, batch_size
        self.path = Path(path) if path is not None else None
        self.ids = ids
        self._accessed = access(model)

    def __call__(self, step: int) -> dict[str, float] | None:
        """The readings if this step is one to read at, else None; call it on every rank."""
        return self.read(step) if step % self.every == 0 else None

    def read(self, step: int) -> dict[str, float]:
        """Measure now."""
        sums = self._measured()
        readings = {f"{PREFIX}{name}": value for name, value in sums.readings().items()}
        if self.path is not None and _rank_and_world()[0] == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **readings}) + "\n")
        return readings

    def _measured(self) -> ProbeSums:
        rank, world = _rank_and_world()
        if world == 1 or len(self.ids) < world:
            return self._probe(self.ids)
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, self._share(rank, world))
        return merged(parts)

    def _share(self, rank: int, world: int) -> ProbeSums:
        """What this rank measures, so that every sequence counts once whatever the number of ranks."""
        whole = len(self.ids) // world * world
        share = self._probe(self.ids[:whole][rank::world])
        if whole == len(self.ids):
            return share
        # Sharded models must run in step: a rank that no sequence is left for runs one that does not count.
        left = whole + rank
        last = self._probe(self.ids[min(left, len(self.ids) - 1)][None])
        return merged([share, last]) if left < len(self.ids) else share

    def _probe(self, ids: Tensor) -> ProbeSums:
        sums = probe(self._accessed, ids, epsilon=self.epsilon, batch_size=self.batch_size)
        # FSDP leaves the root gathered after a forward, for a backward that will not come here.
        for module in self._accessed.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return sums


class AnatomyCallback(TrainerCallback):
    """`AnatomyCallback(ids, every=50).attach(trainer)`: readings go through `trainer.log`, so to every tracker it has.

    Callbacks are not handed the trainer, and reporters run before user callbacks, hence `attach`. It never opens a
    tracker itself.
    """

    def __init__(
        self,
        ids: Tensor,
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
        """Verify the trainer's model and watch it from now on. Raises VerificationError and UnsupportedModelError."""
        # Before the trainer wraps the model: a wrapper may change its precision, and verification is exact.
        self.monitor = AnatomyMonitor(trainer.model, self._ids, **self._options)  # type: ignore[arg-type]
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.monitor is None or self._trainer is None or self._trainer.state is not state:
            return
        readings = self.monitor(state.global_step)
        if readings is not None:
            # Logging clears the flag by which the trainer would log its own loss at this step.
            should_log = control.should_log
            self._trainer.log(dict(readings))
            control.should_log = should_log


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
