"""What one scan found, before it becomes a record: the common ground of record building and further measures."""

from dataclasses import dataclass

from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.analyse.passes import Progress, stream
from spikesink.measure.lifecycle import StepCriteria, StepResult
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sinks import SinkCriteria, SinkResult
from spikesink.measure.spikes import SpikeCriteria, SpikeMeasure, SpikeResult


@dataclass(frozen=True)
class Criteria:
    """Every threshold of a scan."""

    spikes: SpikeCriteria = SpikeCriteria()
    sinks: SinkCriteria = SinkCriteria()
    steps: StepCriteria = StepCriteria()


@dataclass(frozen=True, eq=False)
class Scanned:
    """What one pass found, before it becomes a record; further measures start from it."""

    accessed: AccessedModel
    ids: Tensor
    """Token ids (sequence, token)."""
    criteria: Criteria
    spikes: SpikeMeasure
    spike: SpikeResult
    sinks: SinkResult
    losses: LossMeasure
    steps: StepResult | None
    step_tokens: int
    valid: Tensor | None = None
    """Of the shape of ids, False where padding; None without padding."""
    batch_size: int | None = None
    """As asked for; None for the default."""

    def replay(self, observers: list, stage: str, progress: Progress, rows: Tensor | slice = slice(None)) -> None:
        """Show the scanned text, or some sequences of it, to further observers, under the conditions of the scan."""
        valid = None if self.valid is None else self.valid[rows]
        stream(
            self.accessed, self.ids[rows], observers, valid=valid, batch_size=self.batch_size, stage=stage,
            progress=progress,
        )  # fmt: skip
