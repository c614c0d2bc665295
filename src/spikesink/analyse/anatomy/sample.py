"""Tokens that measures look at closely, and what the residual stream holds at them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikesink.access import Batch
from spikesink.access.weights import input_norm
from spikesink.analyse.passes import Progress
from spikesink.analyse.scanned import Scanned
from spikesink.measure.spikes import TOP

SPIKE_TOKENS = 128
OTHER_TOKENS = 512
SEED = 0


@dataclass(frozen=True)
class TokenSample:
    """Spike tokens (the largest) and others (at random). All (token,); `sequence` counts rows of the scan's ids."""

    sequence: Tensor
    position: Tensor
    is_spike: Tensor

    @property
    def is_first(self) -> Tensor:
        return self.is_spike & (self.position == 0)


def spike_mask(scanned: Scanned) -> Tensor:
    """Which tokens are spike tokens, of the shape of ids."""
    mask = torch.zeros(scanned.ids.shape, dtype=torch.bool)
    rows = torch.from_numpy(scanned.spike.tokens[:, 1:].astype(np.int64))
    mask[rows[:, 0], rows[:, 1]] = True
    return mask


def valid_mask(scanned: Scanned) -> Tensor:
    """Which tokens are no padding, of the shape of ids."""
    return torch.ones(scanned.ids.shape, dtype=torch.bool) if scanned.valid is None else scanned.valid.bool().cpu()


def sample_tokens(scanned: Scanned, spikes: int = SPIKE_TOKENS, others: int = OTHER_TOKENS) -> TokenSample:
    """At most so many spike tokens, largest first, and so many of the others, drawn with a fixed seed."""
    chosen = torch.from_numpy(scanned.spike.tokens[:spikes, 1:].astype(np.int64))
    rest = (valid_mask(scanned) & ~spike_mask(scanned)).nonzero()
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(SEED))[:others]
    both = torch.cat([chosen, rest[order]])
    is_spike = torch.arange(len(both)) < len(chosen)
    return TokenSample(both[:, 0], both[:, 1], is_spike)


def followed_channels(scanned: Scanned) -> list[int]:
    """The spike channel, further spike channels, and the largest of the residual at the spike block; at most 8."""
    top = scanned.spikes.residuals[scanned.spike.block].peaks.top()
    channels = [scanned.spike.peak.channel, *scanned.spike.channels, *(peak.channel for peak in top[:TOP])]
    return list(dict.fromkeys(channels))[:8]


class _Gather:
    """Observer that keeps chosen residuals at the sampled tokens, (token, d), float32 on the CPU."""

    def __init__(self, sample: TokenSample, wanted: dict[int, int], channels: int) -> None:
        self.sample, self.wanted = sample, wanted
        self.hidden = {name: torch.empty(len(sample.sequence), channels) for name in wanted}

    def on_batch(self, batch: Batch) -> None:
        row = self.sample.sequence - batch.first_sequence
        self._tokens = ((row >= 0) & (row < len(batch.ids))).nonzero()[:, 0]
        self._rows, self._positions = row[self._tokens], self.sample.position[self._tokens]

    def on_residual(self, block: int, hidden: Tensor) -> None:
        for name, residual in self.wanted.items():
            if residual == block:
                self.hidden[name][self._tokens] = hidden[self._rows, self._positions].float().cpu()


def residual_at(scanned: Scanned, sample: TokenSample, wanted: dict[int, int], progress: Progress) -> dict[int, Tensor]:
    """Residuals at the sampled tokens, (token, d) each. wanted: name -> the block after which (0 = the embedding)."""
    rows, index = torch.unique(sample.sequence, return_inverse=True)
    gather = _Gather(TokenSample(index, sample.position, sample.is_spike), wanted, scanned.accessed.d_model)
    scanned.replay([gather], "tokens", progress, rows)
    return gather.hidden


def entering(scanned: Scanned, sample: TokenSample, blocks: list[int], progress: Progress) -> dict[int, Tensor]:
    """h~ entering each block at the sampled tokens, (token, d): normed without gamma, or the residual itself where
    the block has no input norm. Raises DoesNotApplyError for norms that are not known."""
    accessed = scanned.accessed
    norms = {block: input_norm(accessed, block) for block in blocks}
    # In a parallel layer the FFN reads what its attention reads.
    before = {block: block - 2 if accessed.parallel and block % 2 == 0 else block - 1 for block in blocks}
    normed = {}
    for block, hidden in residual_at(scanned, sample, before, progress).items():
        norm = norms[block]
        normed[block] = hidden if norm is None else norm(hidden)
    return normed
