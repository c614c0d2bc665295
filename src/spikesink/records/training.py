"""The record of a training run: the recipe, the data, how it ended, and its curves as arrays."""

from typing import Any, ClassVar

from pydantic import Field

from spikesink.records.base import Frozen, Provenance, Record, Timing
from spikesink.records.intervals import Estimate


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


def thinned(count: int, most: int) -> slice:
    """Of so many points of a curve about so many to show: every n-th, such that the last stays."""
    stride = max(1, -(-count // most))
    return slice((count - 1) % stride, None, stride)


SPIKE_RATIO_MIN = 10.0
"""Norm of the first token over the median token's from which a grafted model is said to have a spike token."""


class GraftPoint(Frozen):
    """One model on the held-out text: loss, spikes, sinks, and what rounding its activations costs."""

    perplexity: Estimate
    losses_nats: list[float]
    """Mean loss of each held-out sequence, so that models can be compared pairwise."""
    spike: float
    """Largest magnitude of the residual stream."""
    max_over_median: float
    norm_ratio: float
    """Norm of the first token's residual over the median token's, mean over sequences, in the block where it is
    largest."""
    sink_ratio: float
    first_key_importance: float
    """Attention that the first key gets from the queries behind it, mean over heads; 1 / position is no preference."""
    int8_nats: Estimate
    """Loss that int8 with one scale per tensor adds at the input of every linear map."""
    fp8_nats: Estimate
    """The same for float8 e4m3."""


class FunctionShift(Frozen):
    """How far the graft moved the function before any training, on held-out text."""

    kl_nats: float
    """Mean Kullback-Leibler divergence of the next-token distributions from the original's."""
    top1_kept: float
    """Share of positions at which both have the same most likely token."""


class GraftRecord(Record):
    """Arrays: `healed.NAME` and `control.NAME` with `...step` for each curve of the two trainings."""

    file: ClassVar[str] = "graft.json"
    arrays_file: ClassVar[str] = "graft_curves.safetensors"
    command: ClassVar[str] = "spikesink graft"

    kind: str = "graft"
    model: str
    changed: dict[str, list[Any]]
    """By dotted path of the spec, before and after."""
    parameters: int
    new_parameters: int
    """Numbers that the original does not have."""
    steps: int
    tokens: int
    tokens_per_s: float | None
    """Of the healing; evaluation and saving are in the time."""
    points: dict[str, GraftPoint] = Field(default_factory=dict)
    """`original`, `grafted` (before training), `healed`, `control` (the original after the same training)."""
    failed: dict[str, str] = Field(default_factory=dict)
    """By point why there is none, e.g. because its training diverged."""
    move: FunctionShift | None = None
    cost_nats: Estimate | None = None
    """Loss of the healed model minus that of the control, paired over held-out sequences."""
    exported_as: str | None = None
    """Model type of the checkpoint that other programs load; None where no plain family has these choices."""
    provenance: Provenance
    timing: Timing

    @property
    def replaced(self) -> dict[str, list[str | None]]:
        """By dotted path, the name of the choice before and after."""
        return {path: [_name(choice) for choice in pair] for path, pair in self.changed.items()}


def _name(choice: Any) -> str | None:
    return None if choice is None else str(choice.get("kind", choice) if isinstance(choice, dict) else choice)
