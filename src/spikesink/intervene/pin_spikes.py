"""Spike tokens held at one constant per block."""

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Found, intervention, require_residual
from spikesink.intervene.states import CONTROLS, StateEditor


@intervention("spikes", controls=CONTROLS)
def pin_spikes(accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0) -> Context:
    """Hold spike tokens at per-block constants from the step-up block to the first step-down block.

    Where no block takes the spikes away, they are held to the end.
    """
    require_residual(accessed, found.edit_block)
    until = found.step_down_block or accessed.n_blocks + 1
    return editing(accessed, PinEditor(accessed, found, until, control, seed))


class PinEditor(StateEditor):
    """A state editor that holds its tokens wherever a residual can be set."""

    def __init__(self, accessed: AccessedModel, found: Found, until: int, control: str | None, seed: int) -> None:
        super().__init__(found, until, control, seed)
        if accessed.parallel or accessed.post_norm:
            self.constants = {block: state for block, state in self.constants.items() if block % 2 == 0}
