"""Spikes clipped to what other tokens reach."""

from spikesink.access import AccessedModel
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.elements import CONTROLS, edit_elements


@intervention("spikes", controls=CONTROLS)
def clip_spikes(
    accessed: AccessedModel,
    found: Found,
    *,
    bound: float | None = None,
    magnitude: float | None = None,
    control: str | None = None,
    seed: int = 0,
) -> Context:
    """Clip every spike element after the step-up block to a bound, keeping its sign.

    bound: default the largest magnitude that any element of the other tokens had on the held-out sequences.
    """
    limit = found.ordinary_max if bound is None else bound
    return edit_elements(accessed, found, lambda hidden, _: hidden.clamp(-limit, limit), magnitude, control, seed)
