"""Spikes set to zero."""

import torch

from spikesink.access import AccessedModel
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.elements import CONTROLS, edit_elements


@intervention("spikes", controls=CONTROLS)
def zero_spikes(
    accessed: AccessedModel, found: Found, *, magnitude: float | None = None, control: str | None = None, seed: int = 0
) -> Context:
    """Set every spike element after the step-up block to zero.

    magnitude: from which magnitude on an element counts; default `found.magnitude_min`. Sun et al. 2024, section 3.
    """
    return edit_elements(accessed, found, lambda hidden, _: torch.zeros_like(hidden), magnitude, control, seed)
