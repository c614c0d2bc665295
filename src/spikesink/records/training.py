"""The record of a training run: the recipe, the data, how it ended, and its curves as arrays."""

from typing import Any, ClassVar

from spikesink.records.base import Provenance, Record, Timing


class TrainingRun(Record):
    """Arrays: `step` and `loss_nats`, `learning_rate`, ... by name, one pair `NAME.step`, `NAME` for each curve."""

    file: ClassVar[str] = "training.json"
    arrays_file: ClassVar[str] = "curves.safetensors"
    command: ClassVar[str] = "spikesink train"

    kind: str = "training"
    name: str
    recipe: dict[str, Any]
    recipe_sha256: str
    parameters: int
    steps: int
    tokens: int
    tokens_per_s: float
    """Of this process group, over the steps since it started; evaluation, monitor and saving are in the time."""
    processes: int
    loss_nats: float
    """Average of the last logged steps."""
    held_out_loss_nats: float
    anatomy: dict[str, float]
    """Last readings of the monitor."""
    provenance: Provenance
    timing: Timing
