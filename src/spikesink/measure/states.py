"""Observers that keep hidden states: those of chosen tokens, means of spike tokens and others, ranges of channels."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from spikesink.observer import Batch, Observer


class Gather(Observer):
    """Residuals and writes of chosen blocks at chosen tokens: `residuals[block]`, `writes[block]` (token, channel).

    sequences, positions (token,): where the tokens are among all sequences of the run. residuals, writes: blocks;
    None = all. channels (channel,): those to keep; None = all. Kept on the CPU in float32, float64 as it is.
    A subclass keeps further states with `keep`.
    """

    def __init__(
        self,
        sequences: Tensor,
        positions: Tensor,
        *,
        residuals: Collection[int] | None = (),
        writes: Collection[int] | None = (),
        channels: Tensor | None = None,
    ) -> None:
        self.sequences, self.positions, self.channels = sequences, positions, channels
        self._wanted = residuals, writes
        self.residuals: dict[int, Tensor] = {}
        self.writes: dict[int, Tensor] = {}

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        row = self.sequences - batch.first_sequence
        self._tokens = ((row >= 0) & (row < len(batch.ids))).nonzero()[:, 0]
        self._rows, self._places = row[self._tokens], self.positions[self._tokens]

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if self._wanted[0] is None or block in self._wanted[0]:
            self.keep(self.residuals, block, hidden)

    def on_write(self, block: int, write: Tensor) -> None:
        if self._wanted[1] is None or block in self._wanted[1]:
            self.keep(self.writes, block, write)

    def keep(self, kept: dict[int, Tensor], block: int, states: Tensor, start: int = 0) -> None:
        """Put the chosen tokens' states into kept[block], (token, ...); states (batch, token, ...) from position
        `start` on."""
        inside = (self._places >= start) & (self._places < start + states.shape[1])
        chosen = states[self._rows[inside], self._places[inside] - start]
        if self.channels is not None:
            chosen = chosen[..., self.channels]
        if block not in kept:
            dtype = torch.promote_types(states.dtype, torch.float32)
            kept[block] = torch.zeros(len(self.sequences), *chosen.shape[1:], dtype=dtype)
        kept[block][self._tokens[inside]] = chosen.to(kept[block])


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


class ChannelRange:
    """Largest magnitudes (channel,) by name, over everything that was shown; optionally without some tokens."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def update(self, name: str, values: Tensor) -> None:
        """values (..., channel)."""
        largest = values.detach().float().abs().flatten(0, -2).amax(0).cpu()
        known = self.largest.get(name)
        self.largest[name] = largest if known is None else torch.maximum(known, largest)

    def worst(self, name: str, count: int) -> Tensor:
        """The channels with the largest magnitude, the largest first."""
        return self.largest[name].topk(min(count, len(self.largest[name]))).indices
