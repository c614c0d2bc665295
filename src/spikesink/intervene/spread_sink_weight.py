"""The weight on sinks spread over the other keys."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.sink_keys import HEAD_CONTROL, KEY_CONTROL, SinkEditor


@intervention("sinks", controls=(KEY_CONTROL,))
def spread_sink_weight(
    accessed: AccessedModel, found: Found, *, heads: str = "all", control: str | None = None, seed: int = 0
) -> Context:
    """Spread the weight on sink keys evenly over the other keys that a query sees; no value is touched.

    Unlike masking, this does not sharpen what is left. heads: `all`, or `sinks` for sink heads only.
    """
    return editing(accessed, SpreadEditor(found, heads, control, seed))


@intervention("sinks", controls=(HEAD_CONTROL, KEY_CONTROL))
def spread_sink_weight_in_sink_heads(
    accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0
) -> Context:
    """Spread the weight on sink keys evenly over the other visible keys, in sink heads only."""
    return editing(accessed, SpreadEditor(found, "sinks", control, seed))


class SpreadEditor(SinkEditor):
    """Notes which keys a query sees before the softmax, and deals the sinks' weight out after it."""

    _visible: Tensor | None = None

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        self._visible = torch.isfinite(scores)
        return scores

    def edit_weights(self, block: int, query_start: int, key_start: int, weights: Tensor) -> Tensor:
        sinks = self.sink_weights(block, query_start, key_start, weights)
        if sinks is None or self._visible is None:
            return weights
        others = self._visible & ~sinks
        taken = torch.where(sinks, weights, 0.0)
        share = taken.sum(-1, keepdim=True) / others.sum(-1, keepdim=True).clamp(min=1)
        return weights - taken + share * others
