"""Edits of whole hidden states: spike tokens, or as many random ones, put to constants."""

import torch
from torch import Tensor

from spikesink.intervene.base import Found, random_tokens, seeded

CONTROLS = ("random_tokens", "random_constant")


class StateEditor:
    """From `edit_block` on, sets the chosen tokens' whole residual to one constant per block, until a block.

    The tokens are chosen when `edit_block` has run. Controls: as many random other tokens, set to the mean of ordinary
    tokens; or the spike tokens, set to a random direction of the same norm.
    """

    def __init__(self, found: Found, until: int, control: str | None, seed: int) -> None:
        self.found, self.until, self.control = found, until, control
        self._generator = seeded(seed)
        self.tokens: Tensor | None = None
        self.constants = {block: self._constant(block) for block in found.spike_states if block < until}

    def _constant(self, block: int) -> Tensor:
        if self.control == "random_tokens":
            return self.found.ordinary_states[block]
        state = self.found.spike_states[block]
        if self.control == "random_constant":
            direction = torch.randn(state.shape, generator=self._generator)
            return direction * state.norm() / direction.norm()
        return state

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        if block == 0:
            self.tokens = None
        if block == self.found.edit_block:
            self.tokens = self.found.is_spike(hidden)
            if self.control == "random_tokens":
                self.tokens = random_tokens(self.tokens, self._generator)
        if self.tokens is None or block not in self.constants:
            return hidden
        chosen = self.tokens.to(hidden.device)[..., None]
        return torch.where(chosen, self.constants[block].to(hidden), hidden)
