"""States at chosen tokens, whatever batches they come in."""

from collections.abc import Collection

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
            dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
            kept[block] = torch.zeros(len(self.sequences), *chosen.shape[1:], dtype=dtype)
        kept[block][self._tokens[inside]] = chosen.to(kept[block])
