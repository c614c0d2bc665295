"""Spike tokens frozen to one constant vector."""

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Found, intervention, require_residual
from spikesink.intervene.states import CONTROLS, StateEditor


@intervention("spikes", controls=CONTROLS)
def freeze_spikes(accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0) -> Context:
    """Replace a spike token's whole state after the step-up block by one constant; later blocks write on it.

    The constant is the mean over the spike tokens of the held-out sequences: the decisive test of "implicit parameter"
    (Sun et al. 2026, section on normalisation; spec 2.4).
    """
    require_residual(accessed, found.edit_block)
    return editing(accessed, StateEditor(found, found.edit_block + 1, control, seed))
