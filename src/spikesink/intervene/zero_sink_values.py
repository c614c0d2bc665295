"""Sinks keep their weight, but bring nothing."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, AttentionRows, editing
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.sink_keys import HEAD_CONTROL, KEY_CONTROL, SinkEditor


@intervention("sinks", controls=(KEY_CONTROL,))
def zero_sink_values(
    accessed: AccessedModel, found: Found, *, heads: str = "all", control: str | None = None, seed: int = 0
) -> Context:
    """Keep the weight on sink keys and zero their value for every other token.

    heads: `all`, or `sinks` for sink heads only.
    """
    return editing(accessed, ZeroValueEditor(found, heads, control, seed))


@intervention("sinks", controls=(HEAD_CONTROL, KEY_CONTROL))
def zero_sink_values_in_sink_heads(
    accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0
) -> Context:
    """Keep the weight on sink keys and zero their value, in sink heads only."""
    return editing(accessed, ZeroValueEditor(found, "sinks", control, seed))


class ZeroValueEditor(SinkEditor):
    """Takes the sinks' share out of the attention output."""

    def edit_output(self, block: int, rows: AttentionRows) -> Tensor:
        sinks = self.sink_weights(block, rows.query_start, rows.key_start, rows.weights)
        if sinks is None:
            return rows.output
        heads = rows.weights.shape[1]
        value = rows.value.repeat_interleave(heads // rows.value.shape[1], dim=1)
        return rows.output - torch.where(sinks, rows.weights, 0.0).to(value.dtype) @ value
