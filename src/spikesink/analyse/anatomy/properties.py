"""The five properties with a verdict each, and the co-occurrence of spike and sink tokens against chance."""

import numpy as np

from spikesink.analyse.anatomy.heads import rule
from spikesink.analyse.anatomy.sample import followed_channels, residual_at, sample_tokens, spike_mask, valid_mask
from spikesink.analyse.anatomy.sink_tokens import sink_tokens
from spikesink.analyse.passes import Progress
from spikesink.analyse.scanned import Scanned
from spikesink.errors import DoesNotApplyError
from spikesink.measure.cooccurrence import overlap
from spikesink.measure.properties import PropertyCriteria, edge_share, ratio_variation, together
from spikesink.records import anatomy as record

ONE_CHANNEL = "needs two channels and several spike tokens"
CRITERIA = PropertyCriteria()


def measure_properties(scanned: Scanned, progress: Progress) -> tuple[record.Properties, dict[str, np.ndarray]]:
    """Values of the followed channels at the spike block, and one pass for the sink tokens."""
    if not scanned.spike.has_spikes:
        raise DoesNotApplyError("The model has no spikes on this text, so there are no spikes to have properties")
    followed = followed_channels(scanned)
    sample = sample_tokens(scanned)
    hidden = residual_at(scanned, sample, {scanned.spike.block: scanned.spike.block}, progress)[scanned.spike.block]
    spike, other = (hidden[mask].double().numpy() for mask in (sample.is_spike, ~sample.is_spike))
    both = later = tokens = reason = None
    try:
        found = sink_tokens(scanned, progress)
        tokens = rule(found)
        spikes, valid = spike_mask(scanned), valid_mask(scanned)
        rank = valid.long().cumsum(1) - 1
        # Sinks are looked for in the first half only; a spike token elsewhere could never be one.
        half = valid & (rank < (valid.sum(1, keepdim=True) // 2).clamp(min=1))
        both = overlap(spikes, found.mask, half)
        later = overlap(spikes, found.mask, half & (rank > 0))
    except DoesNotApplyError as error:
        reason = str(error)
    section = record.Properties(
        followed_channels=followed,
        properties=_properties(scanned, followed, spike, other),
        sink_tokens=tokens,
        overlap=both,
        overlap_later=later,
        overlap_reason=reason,
    )
    return section, {}


def _properties(scanned: Scanned, followed: list[int], spike: np.ndarray, other: np.ndarray) -> list[record.Property]:
    residuals = scanned.spikes.residuals
    maxima = {block: statistics.maximum for block, statistics in residuals.items()}
    tokens, d_model = int(valid_mask(scanned).sum()), scanned.accessed.d_model
    drawn = np.random.default_rng(0).permutation(d_model)[: max(2, len(followed))]
    everywhere = np.concatenate([spike, other])
    # Random channels against the spike channel: what any channel's ratio to it varies by.
    random = [followed[0], *(int(channel) for channel in drawn if channel not in followed)]
    medians = {block: statistics.median for block, statistics in residuals.items()}
    return [
        _property(
            "i", "largest value after the first or last layer over the spike", edge_share(maxima),
            CRITERIA.edge_share_max, control=edge_share(medians), n=len(maxima),
        ),
        _property(
            "ii", "share of channels that spike", len(scanned.spike.channels) / d_model,
            CRITERIA.channel_share_max, control=None, n=d_model,
        ),
        _property(
            "iii", "mean correlation of the followed channels' magnitudes over tokens",
            together(everywhere[:, followed]), CRITERIA.together_min,
            control=together(everywhere[:, drawn]), n=len(everywhere), at_least=True,
        ),
        _property(
            "iv", "variation of their ratios to the spike channel over spike tokens",
            ratio_variation(spike[:, followed]), CRITERIA.ratio_variation_max,
            control=ratio_variation(spike[:, random]), n=len(spike),
        ),
        _property(
            "v", "share of tokens that are spike tokens", int(spike_mask(scanned).sum()) / tokens,
            CRITERIA.token_share_max, control=None, n=tokens,
        ),
    ]  # fmt: skip


def _property(
    name: str,
    description: str,
    value: float | None,
    threshold: float,
    *,
    control: float | None,
    n: int,
    at_least: bool = False,
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
    )
