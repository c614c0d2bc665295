"""One evaluation pass under an intervention: loss, sinks and spike of every sequence."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch, editing
from spikesink.analyse.passes import stream
from spikesink.intervene import Found
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sequence_spikes import SequenceSpikes
from spikesink.measure.sinks import SinkCriteria, SinkMeasure
from spikesink.measure.spike_states import SpikeStates


@dataclass(frozen=True)
class Trial:
    """Per sequence: sum of losses in nats, number of predictions, sink ratio, largest magnitude, that on the plateau,
    the ratio to the median, and number of spike tokens. All but the losses are empty where only they were asked for.
    """

    loss_sums: list[float]
    predictions: list[int]
    sink_ratios: list[float]
    spikes: list[float]
    plateaus: list[float]
    ratios: list[float]
    spike_tokens: list[float]

    @property
    def losses(self) -> np.ndarray:
        """Mean loss in nats of each sequence."""
        return np.array(self.loss_sums) / np.array(self.predictions)

    def to_dict(self) -> dict[str, list]:
        return asdict(self)

    @classmethod
    def average(cls, trials: "list[Trial]") -> "Trial":
        """Mean over draws, sequence by sequence; of spikes and their ratios the largest."""
        first = trials[0]
        return replace(
            first,
            loss_sums=np.mean([trial.loss_sums for trial in trials], axis=0).tolist(),
            sink_ratios=np.mean([trial.sink_ratios for trial in trials], axis=0).tolist(),
            spikes=np.max([trial.spikes for trial in trials], axis=0).tolist(),
            plateaus=np.max([trial.plateaus for trial in trials], axis=0).tolist(),
            ratios=np.max([trial.ratios for trial in trials], axis=0).tolist(),
            spike_tokens=np.mean([trial.spike_tokens for trial in trials], axis=0).tolist(),
        )


class ScoreLast:
    """Counts only the last `predictions` tokens of every sequence as targets."""

    def __init__(self, predictions: int) -> None:
        self.predictions = predictions

    def edit_batch(self, batch: Batch) -> Batch:
        scored = torch.zeros_like(batch.valid)
        scored[:, batch.ids.shape[1] - self.predictions :] = True
        return replace(batch, scored=scored)


def run_trial(
    accessed: AccessedModel,
    ids: Tensor,
    *contexts: AbstractContextManager,
    sinks: SinkCriteria | None = None,
    found: Found | None = None,
    score_last: int | None = None,
    batch_size: int | None = None,
    loss_only: bool = False,
) -> Trial:
    """One pass over ids (sequence, token) with the contexts open."""
    losses, sink = LossMeasure(), SinkMeasure(sinks)
    spikes = SequenceSpikes(found.plateau if found else None)
    tokens = SpikeStates(found.edit_block, found.is_spike) if found and found.has_spikes else None
    observers = [losses] if loss_only else [losses, spikes, sink, *([tokens] if tokens else [])]
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        if score_last is not None:
            stack.enter_context(editing(accessed, ScoreLast(score_last)))
        stream(accessed, ids, observers, batch_size=batch_size)
    return Trial(
        loss_sums=losses.loss_sums,
        predictions=[int(count) for count in losses.predictions],
        sink_ratios=[] if loss_only else sink.sequence_ratios(),
        spikes=spikes.largest,
        plateaus=spikes.plateaus,
        ratios=spikes.ratios,
        spike_tokens=[float(row.sum()) for rows in tokens.spikes for row in rows] if tokens and not loss_only else [],
    )
