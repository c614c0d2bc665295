"""Interventions: context managers that take one thing away from a model, and controls of the same size.

They stand in the file of what they edit; each is one decorated function.
"""

from spikesink.intervene.base import INTERVENTIONS, Intervention, Targets, intervention
from spikesink.intervene.elements import clip_spikes, mean_spikes, zero_spikes
from spikesink.intervene.inputs import drop_bos, move_bos, repeat_bos
from spikesink.intervene.sinks import (
    isolate_token,
    mask_sinks,
    mask_sinks_everywhere,
    mask_sinks_in_sink_heads,
    move_sinks,
    softmax_off_by_one,
    spread_sink_weight,
    spread_sink_weight_in_sink_heads,
    zero_sink_values,
    zero_sink_values_in_sink_heads,
)
from spikesink.intervene.states import freeze_spikes, pin_spikes
from spikesink.intervene.weights import cut_amplifier, normalise_write, project_out_direction, shrink_spikes

__all__ = [
    "INTERVENTIONS",
    "Intervention",
    "Targets",
    "clip_spikes",
    "cut_amplifier",
    "drop_bos",
    "freeze_spikes",
    "intervention",
    "isolate_token",
    "mask_sinks",
    "mask_sinks_everywhere",
    "mask_sinks_in_sink_heads",
    "mean_spikes",
    "move_bos",
    "move_sinks",
    "normalise_write",
    "pin_spikes",
    "project_out_direction",
    "repeat_bos",
    "shrink_spikes",
    "softmax_off_by_one",
    "spread_sink_weight",
    "spread_sink_weight_in_sink_heads",
    "zero_sink_values",
    "zero_sink_values_in_sink_heads",
    "zero_spikes",
]
