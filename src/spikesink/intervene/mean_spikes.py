"""Spikes set to their mean over other prompts."""

from spikesink.access import AccessedModel
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.elements import CONTROLS, edit_elements


@intervention("spikes", controls=CONTROLS)
def mean_spikes(
    accessed: AccessedModel, found: Found, *, magnitude: float | None = None, control: str | None = None, seed: int = 0
) -> Context:
    """Set every spike element after the step-up block to its channel's mean over other prompts.

    The mean is over the spike tokens of the held-out sequences. Sun et al. 2024, section 3.
    """
    return edit_elements(accessed, found, lambda hidden, mean: mean.expand_as(hidden), magnitude, control, seed)
