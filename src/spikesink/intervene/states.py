"""Edits of whole hidden states: spike tokens, or as many random ones, put to constants."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Targets, intervention, random_tokens, require_residual, seeded

CONTROLS = ("random_tokens", "random_constant")


class StateEditor:
    """From `edit_block` on, sets the chosen tokens' whole residual to one constant per block, until a block.

    The tokens are chosen when `edit_block` has run. Controls: as many random other tokens, set to the mean of ordinary
    tokens; or the spike tokens, set to a random direction of the same norm.
    """

    def __init__(self, targets: Targets, until: int, control: str | None, seed: int) -> None:
        self.targets, self.until, self.control = targets, until, control
        self._generator = seeded(seed)
        self.tokens: Tensor | None = None
        self.constants = {block: self._constant(block) for block in targets.spike_states if block < until}

    def _constant(self, block: int) -> Tensor:
        if self.control == "random_tokens":
            return self.targets.ordinary_states[block]
        state = self.targets.spike_states[block]
        if self.control == "random_constant":
            direction = torch.randn(state.shape, generator=self._generator)
            return direction * state.norm() / direction.norm()
        return state

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        if block == 0:
            self.tokens = None
        if block == self.targets.edit_block:
            self.tokens = self.targets.is_spike(hidden)
            if self.control == "random_tokens":
                self.tokens = random_tokens(self.tokens, self._generator)
        if self.tokens is None or block not in self.constants:
            return hidden
        chosen = self.tokens.to(hidden.device)[..., None]
        return torch.where(chosen, self.constants[block].to(hidden), hidden)


@intervention(edits="spikes", controls=CONTROLS, reach="residual")
def freeze_spikes(accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0) -> Context:
    """Replace a spike token's whole state after the step-up block by one constant; later blocks write on it.

    The constant is the mean over the spike tokens of the held-out sequences: the decisive test of "implicit parameter"
    (Sun et al. 2026, section on normalisation; spec 2.4).
    """
    require_residual(accessed, targets.edit_block)
    return editing(accessed, StateEditor(targets, targets.edit_block + 1, control, seed))


@intervention(edits="spikes", controls=CONTROLS, reach="residual")
def pin_spikes(accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0) -> Context:
    """Hold spike tokens at per-block constants from the step-up block to the first step-down block.

    Where no block takes the spikes away, they are held to the end.
    """
    require_residual(accessed, targets.edit_block)
    until = targets.step_down_block or accessed.n_blocks + 1
    return editing(accessed, PinEditor(accessed, targets, until, control, seed))


class PinEditor(StateEditor):
    """A state editor that holds its tokens wherever a residual can be set."""

    def __init__(self, accessed: AccessedModel, targets: Targets, until: int, control: str | None, seed: int) -> None:
        super().__init__(targets, until, control, seed)
        if accessed.parallel or accessed.post_norm:
            self.constants = {block: state for block, state in self.constants.items() if block % 2 == 0}
