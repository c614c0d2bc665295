"""The five properties with a verdict each, and the co-occurrence of spike and sink tokens against chance."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spikesink.analyse.anatomy.heads import rule
from spikesink.analyse.anatomy.sample import (
    TokenSample,
    followed_channels,
    residual_at,
    sample_tokens,
    sink_tokens,
    spike_block,
    spike_mask,
    valid_mask,
)
from spikesink.analyse.passes import Progress, Scan, Steps
from spikesink.bootstrap import bounds, replicates
from spikesink.errors import DoesNotApplyError
from spikesink.measure.properties import (
    PropertyCriteria,
    SequenceMaxima,
    answer,
    edge_share,
    limits_around,
    overlap,
    ratio_variation,
    together,
)
from spikesink.measure.sink_tokens import HEADS_SHARE_MIN
from spikesink.measure.statistics import bootstrap_mean
from spikesink.positions import first_half, ranks
from spikesink.records.intervals import Interval
from spikesink.records.sections import properties as record

ONE_CHANNEL = "needs two channels and several spike tokens"
CRITERIA = PropertyCriteria()
HEAD_SHARES = (0.0, HEADS_SHARE_MIN, 0.03, 0.1, 0.2)
"""Shares of all heads that make a sink token in `overlap_curve`; 0 = one head."""
RESAMPLES = 500
"""Of statistics that are slow to compute."""


def measure_properties(scanned: Scan, _progress: Progress) -> Steps[tuple[record.Properties, dict[str, np.ndarray]]]:
    """Values of the followed channels at the spike block, in one pass over the sequences of the sample."""
    if not scanned.spike.has_spikes:
        raise DoesNotApplyError("The model has no spikes on this text, so there are no spikes to have properties")
    followed, sample = followed_channels(scanned), sample_tokens(scanned)
    sequences = torch.unique(sample.sequence)
    by_sequence = SequenceMaxima(len(sequences))
    block = spike_block(scanned)
    residuals = yield from residual_at(sample, [block], by_sequence)
    hidden = residuals[block].double().numpy()
    values = _Values(scanned, followed, sample, hidden, by_sequence)
    section = record.Properties(followed_channels=followed, properties=values.properties(), **_co_occurrence(scanned))
    return section, {}


def _co_occurrence(scanned: Scan) -> dict[str, Any]:
    """The fields of the record on spike and sink tokens."""
    try:
        sinks = sink_tokens(scanned)
    except DoesNotApplyError as reason:
        return {"sink_tokens": None, "overlap": None, "overlap_later": None, "overlap_reason": str(reason)}
    spikes, valid = spike_mask(scanned), valid_mask(scanned)
    # Sinks are looked for in the first half only; a spike token elsewhere could never be one.
    half = first_half(valid)
    later = half & (ranks(valid) > 0)
    head_count = sum(len(first) for first in scanned.sinks.first.values())
    curve = []
    for share in HEAD_SHARES:
        heads_min = max(1, math.ceil(share * head_count))
        both, without_first = (overlap(spikes, sinks.heads >= heads_min, among) for among in (half, later))
        curve.append(
            record.OverlapAtShare(
                heads_share=share,
                heads_min=heads_min,
                sinks=both.sinks,
                jaccard=both.jaccard,
                recall=both.recall,
                later_sinks=without_first.sinks,
                later_jaccard=without_first.jaccard,
            )
        )
    return {
        "sink_tokens": rule(sinks),
        "overlap": overlap(spikes, sinks.mask, half),
        "overlap_later": overlap(spikes, sinks.mask, later),
        "overlap_reason": None,
        "overlap_curve": curve,
    }


@dataclass(frozen=True)
class _Values:
    """Numbers of the five properties. hidden: residuals of the sampled tokens at the spike block, (token, d)."""

    scanned: Scan
    followed: list[int]
    sample: TokenSample
    hidden: np.ndarray
    by_sequence: SequenceMaxima

    def properties(self) -> list[record.Property]:
        residuals, d_model = self.scanned.spikes.residuals, self.scanned.accessed.d_model
        maxima = {block: statistics.maximum for block, statistics in residuals.items()}
        medians = {block: statistics.median for block, statistics in residuals.items()}
        drawn = np.random.default_rng(0).permutation(d_model)[: max(2, len(self.followed))]
        # Random channels against the spike channel: what any channel's ratio to it varies by.
        random = [self.followed[0], *(int(channel) for channel in drawn if channel not in self.followed)]
        is_spike = self.sample.is_spike.numpy()
        spike = self.hidden[is_spike]
        spikes, valid = spike_mask(self.scanned), valid_mask(self.scanned)
        own = [
            edge_share({block: row[index] for block, row in self.by_sequence.maxima.items()})
            for index in range(self.by_sequence.sequences)
        ]
        lengths = valid.sum(1).numpy()
        return [
            _property(
                "i", "largest value after the first or last layer over the spike", edge_share(maxima),
                CRITERIA.edge_share_max, control=edge_share(medians), n=len(maxima),
                interval=bootstrap_mean(np.array(own)),
            ),
            _property(
                "ii", "share of channels that spike", len(self.scanned.spike.channels) / d_model,
                CRITERIA.channel_share_max, control=None, n=d_model,
            ),
            _property(
                "iii", "mean correlation of the followed channels' magnitudes over tokens",
                together(self.hidden[:, self.followed]), CRITERIA.together_min,
                control=together(self.hidden[:, drawn]), n=len(self.hidden), at_least=True,
                interval=self._interval(together, np.ones_like(is_spike)),
            ),
            _property(
                "iv", "variation of their ratios to the spike channel over spike tokens",
                ratio_variation(spike[:, self.followed]), CRITERIA.ratio_variation_max,
                control=ratio_variation(spike[:, random]), n=len(spike),
                interval=self._interval(ratio_variation, is_spike),
            ),
            _property(
                "v", "share of tokens that are spike tokens", int(spikes.sum()) / int(valid.sum()),
                CRITERIA.token_share_max, control=None, n=int(valid.sum()),
                interval=bootstrap_mean(spikes.sum(1).numpy() / np.maximum(lengths, 1), lengths),
            ),
        ]  # fmt: skip

    def _interval(self, statistic, chosen: np.ndarray) -> Interval | None:
        """Of a statistic of (token, channel) over the chosen tokens, whole sequences drawn; None for one sequence."""
        values, groups = self.hidden[chosen][:, self.followed], self.sample.sequence.numpy()[chosen]
        value, count = statistic(values), len(np.unique(groups))
        if value is None or count < 2:
            return None

        def resampled(index: np.ndarray, axis: int = -1) -> np.ndarray:
            value = statistic(values[index])
            return np.asarray(np.nan if value is None else value)

        drawn = replicates(resampled, np.arange(len(values)), groups=groups, resamples=RESAMPLES)
        low, high = bounds(drawn)
        return Interval(value=value, low=low, high=high, n=count)


def _property(
    name: str,
    description: str,
    value: float | None,
    threshold: float,
    *,
    control: float | None,
    n: int,
    at_least: bool = False,
    interval: Interval | None = None,
) -> record.Property:
    holds = None if value is None else value >= threshold if at_least else value <= threshold
    return record.Property(
        name=name,
        description=description,
        value=value,
        threshold=threshold,
        holds=holds,
        control=control,
        n=n,
        reason=ONE_CHANNEL if value is None else None,
        interval=interval,
        answer=None if value is None else answer(value, threshold, interval, at_least=at_least),
        sensitivity=list(limits_around(threshold, at_least=at_least)),
    )
