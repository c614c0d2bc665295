"""Sink keys masked out."""

from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.sink_keys import HEAD_CONTROL, KEY_CONTROL, SinkEditor


@intervention("sinks", controls=(KEY_CONTROL,))
def mask_sinks(
    accessed: AccessedModel, found: Found, *, heads: str = "all", control: str | None = None, seed: int = 0
) -> Context:
    """Mask the sink keys for every other token, so that the remaining weights are renormalised.

    heads: `all`, or `sinks` for sink heads only.
    """
    return editing(accessed, MaskEditor(found, heads, control, seed))


@intervention("sinks", controls=(HEAD_CONTROL, KEY_CONTROL))
def mask_sinks_in_sink_heads(
    accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0
) -> Context:
    """Mask the sink keys in sink heads only; the remaining weights are renormalised."""
    return editing(accessed, MaskEditor(found, "sinks", control, seed))


class MaskEditor(SinkEditor):
    """Sets the masked logits of sink keys to -inf."""

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        sinks = self.sink_weights(block, query_start, key_start, scores)
        return scores if sinks is None else scores.masked_fill(sinks, float("-inf"))
