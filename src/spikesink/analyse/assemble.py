"""From what a scan found to the sections of its record."""

from typing import Any

import numpy as np

from spikesink.analyse.scanned import Scanned
from spikesink.records import BlockCycle, Lifecycle, SpikeToken, StepRule, Summary

LISTED_TOKENS = 256
"""Spike tokens listed in the summary; all are counted."""
CONTEXT = 8
"""Tokens before and after a spike token whose text is kept beside it."""


def summary(scanned: Scanned) -> Summary:
    spike, sinks, steps = scanned.spike, scanned.sinks, scanned.steps
    heads = np.concatenate([sinks.is_sink(block) for block in sinks.rates[sinks.criteria.metric]])
    return Summary(
        perplexity=scanned.losses.compute(),
        sink_ratio=sinks.ratio(sinks.criteria.metric),
        sink_ratio_sun2026=sinks.ratio("sun2026"),
        sink_ratio_gu2025=sinks.ratio("gu2025"),
        sink1_gu2025=sinks.ratio("sink1_gu2025"),
        has_sinks=bool(heads.any()),
        sink_head_count=int(heads.sum()),
        head_count=len(heads),
        spike=spike.peak.value,
        spike_block=spike.block,
        spike_channel=spike.peak.channel,
        has_spikes=spike.has_spikes,
        spike_channels=spike.channels,
        spike_tokens=_spike_tokens(scanned),
        massive_count=spike.verdict.massive_count,
        max_over_median=spike.max_over_median,
        step_up_blocks=steps.step_up if steps else [],
        step_down_blocks=steps.step_down if steps else [],
    )


def _spike_tokens(scanned: Scanned) -> list[SpikeToken]:
    found = []
    for value, sequence, position in scanned.spike.tokens[:LISTED_TOKENS]:
        place = int(position)
        token_id = int(scanned.ids[int(sequence), place])
        found.append(
            SpikeToken(
                sequence=int(sequence),
                position=int(position),
                token_id=token_id,
                text=scanned.accessed.token_text(token_id),
                value=float(value),
                before=_text(scanned, int(sequence), slice(max(0, place - CONTEXT), place)),
                after=_text(scanned, int(sequence), slice(place + 1, place + 1 + CONTEXT)),
            )
        )
    return found


def _text(scanned: Scanned, sequence: int, places: slice) -> str:
    """Text of these positions, without padding."""
    ids = scanned.ids[sequence, places]
    if scanned.valid is not None:
        ids = ids[scanned.valid[sequence, places]]
    return "".join(scanned.accessed.token_text(int(token)) for token in ids)


def lifecycle(scanned: Scanned) -> Lifecycle:
    measured, steps = scanned.spikes, scanned.steps
    kinds = {sites.block: sites.kind for sites in scanned.accessed.blocks()}
    blocks = []
    for block in sorted(measured.writes):
        residual = measured.residuals.get(block)
        blocks.append(
            BlockCycle(
                block=block,
                kind=kinds[block],
                resid_top3=residual.peaks.top() if residual else None,
                out_top3=measured.writes[block].top(),
                resid_median=residual.median if residual else None,
                resid_max_over_median=residual.max_over_median if residual else None,
                share_of_plateau=steps.shares[block] if steps else None,
            )
        )
    post_norm = scanned.accessed.post_norm
    reason = "no spikes" if not scanned.spike.has_spikes else "post-norm: writes do not add up" if post_norm else None
    rule = StepRule(
        share_min=scanned.criteria.steps.share_min,
        plateau=steps.plateau if steps else None,
        tokens=scanned.step_tokens,
        applies=steps is not None,
        reason=reason,
    )
    return Lifecycle(blocks=blocks, step_rule=rule, unrolled_sum_holds=not post_norm)


def arrays(scanned: Scanned) -> dict[str, np.ndarray]:
    """The large numbers: channel maxima by block, importance by head and position, loss by sequence."""
    measured = scanned.spikes

    def maxima(trackers: dict[int, Any]) -> np.ndarray:
        return np.stack([trackers[block].channel_max.float().cpu().numpy() for block in sorted(trackers)])

    positions = scanned.sinks.positions
    return {
        "residual_blocks": np.array(sorted(measured.residuals)),
        "residual_channel_max": maxima({block: s.peaks for block, s in measured.residuals.items()}),
        "write_channel_max": maxima(measured.writes),
        "attention_blocks": np.array(sorted(positions)),
        "key_importance": _stacked([positions[block].astype(np.float32) for block in sorted(positions)]),
        "sequence_loss_nats": np.array(scanned.losses.sequence_losses()),
        "massive": scanned.spike.massive[:, :4].astype(np.int64),
    }


def _stacked(per_block: list[np.ndarray]) -> np.ndarray:
    """(block, head, key); blocks with fewer heads or keys are filled with NaN."""
    heads = max(array.shape[0] for array in per_block)
    keys = max(array.shape[1] for array in per_block)
    stacked = np.full((len(per_block), heads, keys), np.nan, dtype=np.float32)
    for index, array in enumerate(per_block):
        stacked[index, : array.shape[0], : array.shape[1]] = array
    return stacked
