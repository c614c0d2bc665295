"""Mean hidden states of spike tokens and of all others, block by block. Spec section 2.4."""

from collections.abc import Callable

import torch
from torch import Tensor

from spikesink.observer import Observer


class SpikeStates(Observer):
    """Observer of residuals from one block on: sums of whole states, split by which tokens spike after that block.

    is_spike: from the residual (batch, token, channel) after `block` to (batch, token) bool.
    """

    def __init__(self, block: int, is_spike: Callable[[Tensor], Tensor]) -> None:
        self.block, self.is_spike = block, is_spike
        self.tokens = 0
        self.others = 0
        self.ordinary_max = 0.0
        """Largest magnitude of the other tokens after `block`."""
        self.spikes: list[Tensor] = []
        """Spike tokens (batch, token) of every batch."""
        self._sums: dict[int, Tensor] = {}
        self._other_sums: dict[int, Tensor] = {}

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block < self.block:
            return
        if block == self.block:
            spikes = self.is_spike(hidden)
            self.spikes.append(spikes.cpu())
            self.tokens += int(spikes.sum())
            self.others += int((~spikes).sum())
            if not bool(spikes.all()):
                self.ordinary_max = max(self.ordinary_max, float(hidden[~spikes].abs().max()))
        spikes = self.spikes[-1].to(hidden.device)
        self._add(self._sums, block, hidden[spikes])
        self._add(self._other_sums, block, hidden[~spikes])

    def _add(self, sums: dict[int, Tensor], block: int, states: Tensor) -> None:
        total = states.double().sum(0).cpu()
        sums[block] = sums[block] + total if block in sums else total

    def means(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Mean state (channel,) float32 by block, of spike tokens and of the others; zero where there are none."""
        return (
            {block: (total / max(1, self.tokens)).to(torch.float32) for block, total in self._sums.items()},
            {block: (total / max(1, self.others)).to(torch.float32) for block, total in self._other_sums.items()},
        )
