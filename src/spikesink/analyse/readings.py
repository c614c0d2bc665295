"""The anatomy of a model on a few sequences, cheap enough for every N steps of a training, and mergeable over ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.analyse.passes import stream
from spikesink.measure.sinks import SinkCriteria, SinkMeasure
from spikesink.measure.spikes import SpikeMeasure


@dataclass(frozen=True)
class AnatomySums:
    """Sums over sequences, by block (1-based); what several ranks measured adds up to what one would have."""

    sequences: int
    peak: dict[int, float]
    median_sum: dict[int, float]
    sink_sum: dict[int, np.ndarray]
    """(head,): sequences in which the head is a sink head. Eq. 27-28."""
    first_sum: dict[int, np.ndarray]
    """(head,): importance of the first token, summed."""

    def readings(self) -> dict[str, float]:
        """`spike`, `max_over_median`, `sink_ratio`, `first_token_importance`, and each as `layer_I/...` (0-based)."""
        ratio = {block: self.peak[block] * self.sequences / self.median_sum[block] for block in self.peak}
        sinks = {block: self.sink_sum[block] / self.sequences for block in self.sink_sum}
        first = {block: self.first_sum[block] / self.sequences for block in self.first_sum}
        numbers = _summary(self.peak, ratio, sinks, first, set(self.peak) | set(sinks))
        for layer in range((max(self.peak) + 1) // 2):
            inside = {2 * layer + 1, 2 * layer + 2}
            for name, value in _summary(self.peak, ratio, sinks, first, inside).items():
                numbers[f"layer_{layer}/{name}"] = value
        return numbers


def anatomy_sums(
    accessed: AccessedModel,
    ids: Tensor,
    *,
    epsilon: float = 0.3,
    batch_size: int | None = None,
    also: Sequence[object] = (),
) -> AnatomySums:
    """Measure ids (sequence, token) in one pass; `also`: further observers of it."""
    spikes, sinks = SpikeMeasure(), SinkMeasure(SinkCriteria(epsilon=epsilon))
    stream(accessed, ids, [spikes, sinks, *also], batch_size=batch_size)
    return AnatomySums(
        sequences=len(ids),
        peak={block: statistics.maximum for block, statistics in spikes.residuals.items()},
        median_sum={block: statistics.median_sum for block, statistics in spikes.residuals.items()},
        sink_sum={block: sums.per_head["sun2026"].numpy() for block, sums in sinks.blocks.items()},
        first_sum={block: sums.per_head["first"].numpy() for block, sums in sinks.blocks.items()},
    )


def merged(parts: Sequence[AnatomySums]) -> AnatomySums:
    """The sums of all sequences together."""
    first = parts[0]
    return AnatomySums(
        sequences=sum(part.sequences for part in parts),
        peak={block: max(part.peak[block] for part in parts) for block in first.peak},
        median_sum={block: sum(part.median_sum[block] for part in parts) for block in first.median_sum},
        sink_sum={block: sum(part.sink_sum[block] for part in parts) for block in first.sink_sum},  # type: ignore[misc]
        first_sum={block: sum(part.first_sum[block] for part in parts) for block in first.first_sum},  # type: ignore[misc]
    )


def _summary(
    peak: dict[int, float],
    ratio: dict[int, float],
    sinks: dict[int, np.ndarray],
    first: dict[int, np.ndarray],
    blocks: set[int],
) -> dict[str, float]:
    """The four numbers over some blocks; residuals and attentions that are not among them do not count.

    Blocks none of which attends (a layer of a hybrid model) have the first two only.
    """
    numbers = {
        "spike": max(value for block, value in peak.items() if block in blocks),
        "max_over_median": max(value for block, value in ratio.items() if block in blocks),
    }
    for name, by_block in (("sink_ratio", sinks), ("first_token_importance", first)):
        heads = [values for block, values in by_block.items() if block in blocks]
        if heads:
            numbers[name] = float(np.concatenate(heads).mean())
    return numbers
