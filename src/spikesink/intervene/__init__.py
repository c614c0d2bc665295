"""Interventions: context managers that take one thing away from a model, and controls of the same size.

A new one is one file and one line here.
"""

from spikesink.intervene.base import Found, Intervention
from spikesink.intervene.clip_spikes import clip_spikes
from spikesink.intervene.cut_amplifier import cut_amplifier
from spikesink.intervene.drop_bos import drop_bos
from spikesink.intervene.freeze_spikes import freeze_spikes
from spikesink.intervene.isolate_token import isolate_token
from spikesink.intervene.mask_sinks import mask_sinks, mask_sinks_in_sink_heads
from spikesink.intervene.mean_spikes import mean_spikes
from spikesink.intervene.move_bos import move_bos
from spikesink.intervene.normalise_write import normalise_write
from spikesink.intervene.pin_spikes import pin_spikes
from spikesink.intervene.project_out_direction import project_out_direction
from spikesink.intervene.repeat_bos import repeat_bos
from spikesink.intervene.softmax_off_by_one import softmax_off_by_one
from spikesink.intervene.spread_sink_weight import spread_sink_weight, spread_sink_weight_in_sink_heads
from spikesink.intervene.zero_sink_values import zero_sink_values, zero_sink_values_in_sink_heads
from spikesink.intervene.zero_spikes import zero_spikes

INTERVENTIONS: dict[str, Intervention] = {
    made.name: made
    for made in (
        zero_spikes,
        mean_spikes,
        clip_spikes,
        freeze_spikes,
        pin_spikes,
        cut_amplifier,
        project_out_direction,
        normalise_write,
        mask_sinks,
        zero_sink_values,
        spread_sink_weight,
        mask_sinks_in_sink_heads,
        zero_sink_values_in_sink_heads,
        spread_sink_weight_in_sink_heads,
        softmax_off_by_one,
        isolate_token,
        repeat_bos,
        drop_bos,
        move_bos,
    )
}
"""By name, in the order of the table."""

__all__ = [
    "INTERVENTIONS",
    "Found",
    "Intervention",
    "clip_spikes",
    "cut_amplifier",
    "drop_bos",
    "freeze_spikes",
    "isolate_token",
    "mask_sinks",
    "mask_sinks_in_sink_heads",
    "mean_spikes",
    "move_bos",
    "normalise_write",
    "pin_spikes",
    "project_out_direction",
    "repeat_bos",
    "softmax_off_by_one",
    "spread_sink_weight",
    "spread_sink_weight_in_sink_heads",
    "zero_sink_values",
    "zero_sink_values_in_sink_heads",
    "zero_spikes",
]
