"""What is kept of a text's magnitudes while it passes: the largest, the tokens that may spike, massive elements."""

import numpy as np
import torch
from torch import Tensor

from spikesink.observer import Observer
from spikesink.records import MassiveChannel, Peak

TOP = 3
MAX_CANDIDATES = 10_000
"""Spike-token candidates kept per block, so that memory does not grow with the corpus."""
BINS = 16 * 256
MAX_MASSIVE = 100_000
"""Massive elements listed; all are counted, by channel too."""


class PeakTracker:
    """Largest magnitude of every channel, and where the three largest were. Exact over any number of batches.

    A channel of the final top three was in the top three of the batch that holds its maximum, since otherwise three
    other channels would exceed it; so locating the top three of each batch is enough.
    """

    def __init__(self) -> None:
        self.channel_max: Tensor | None = None
        self._located: dict[int, Peak] = {}

    def update(self, hidden: Tensor, magnitude: Tensor, first_sequence: int) -> None:
        """hidden and magnitude (batch, token, channel), padding zeroed in magnitude."""
        per_channel = magnitude.flatten(0, 1).amax(0)
        known = self.channel_max
        self.channel_max = per_channel.clone() if known is None else torch.maximum(known, per_channel)
        for value, channel in zip(*per_channel.topk(min(TOP, per_channel.numel())), strict=True):
            self._offer(hidden, magnitude, first_sequence, int(channel), float(value))

    def _offer(self, hidden: Tensor, magnitude: Tensor, first_sequence: int, channel: int, value: float) -> None:
        before = self._located.get(channel)
        if before is not None and before.value >= value:
            return
        tokens = magnitude.shape[1]
        row, position = divmod(int(magnitude[..., channel].flatten().argmax()), tokens)
        self._located[channel] = Peak(
            channel=channel,
            value=value,
            sign=1 if float(hidden[row, position, channel]) >= 0 else -1,
            sequence=first_sequence + row,
            position=position,
        )

    def top(self) -> list[Peak]:
        """Three distinct channels, largest first."""
        return sorted(self._located.values(), key=lambda peak: (-peak.value, peak.channel))[:TOP]


class TokenCandidates:
    """Tokens whose largest magnitude reaches a share of the running maximum; the largest MAX_CANDIDATES of them.

    All tokens are counted by magnitude in bins of 1/16 octave, for the number above a threshold where some were
    dropped.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.largest = 0.0
        self.rows = np.empty((0, 3))
        self.dropped = False
        self._bins = np.zeros(BINS, dtype=np.int64)

    def update(self, token_max: Tensor, first_sequence: int) -> None:
        """token_max (batch, token)."""
        self.largest = max(self.largest, float(token_max.max()))
        row, position = torch.nonzero(token_max >= self.share * self.largest, as_tuple=True)
        values = token_max[row, position].double().cpu().numpy()
        new = np.stack([values, row.cpu().numpy() + first_sequence, position.cpu().numpy()], axis=1)
        self.rows = np.concatenate([self.rows[self.rows[:, 0] >= self.share * self.largest], new])
        self._bins += np.bincount(_bins(token_max.flatten().double().cpu().numpy()), minlength=BINS)
        if len(self.rows) > 2 * MAX_CANDIDATES:
            self.rows, self.dropped = self._sorted()[:MAX_CANDIDATES], True

    def above(self, threshold: float) -> np.ndarray:
        """Rows (value, sequence, position) at or above the threshold, largest first, at most MAX_CANDIDATES."""
        rows = self._sorted()
        return rows[rows[:, 0] >= threshold][:MAX_CANDIDATES]

    def count(self, threshold: float) -> int:
        """Tokens at or above the threshold, which is at least `share` of the largest; from the bins where candidates
        were dropped."""
        if self.dropped:
            return int(self._bins[int(_bins(np.array([threshold]))[0]) :].sum())
        return int((self.rows[:, 0] >= threshold).sum())

    def _sorted(self) -> np.ndarray:
        return self.rows[np.lexsort((self.rows[:, 2], self.rows[:, 1], -self.rows[:, 0]))]


class TokensAbove(Observer):
    """Observer of one residual: `mask` (sequence, token) of the tokens that `TokenCandidates` counts, a byte each."""

    def __init__(self, block: int, threshold: float, shape: torch.Size) -> None:
        self.block, self.threshold = block, threshold
        self.mask = torch.zeros(shape, dtype=torch.bool)

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == self.block:
            above = hidden.abs().amax(-1).cpu().double() >= self.threshold
            self.mask[self.batch.rows] = above & self.batch.valid.cpu()


def _bins(values: np.ndarray) -> np.ndarray:
    """The bin of every magnitude: 1/16 octave each, the first one for 0 and what is below 2^-128."""
    octaves = np.log2(np.maximum(values, 2.0**-128)) + 128
    return np.minimum(octaves * 16, BINS - 1).astype(np.int64)


class MassiveTally:
    """Massive elements by channel, all of them; memory O(channels), and that for each token of the batch with some."""

    def __init__(self, d_model: int) -> None:
        self.count, self.tokens, self.first, self.last = (np.zeros(d_model, dtype=np.int64) for _ in range(4))
        self.largest = np.zeros(d_model)
        self._seen: dict[tuple[int, int], np.ndarray] = {}

    def update(self, block: int, tokens: list[tuple[int, int]], magnitude: np.ndarray, above: np.ndarray) -> None:
        """magnitude, above (token, channel) of tokens of the batch, each a (row, position): what is massive of them."""
        channels = np.flatnonzero(above.any(0))
        own = np.where(above[:, channels], magnitude[:, channels], 0.0).max(0)
        self.first[channels] = np.where(self.count[channels] > 0, np.minimum(self.first[channels], block), block)
        self.last[channels] = np.maximum(self.last[channels], block)
        self.largest[channels] = np.maximum(self.largest[channels], own)
        self.count[channels] += above[:, channels].sum(0)
        for token, own_above in zip(tokens, above, strict=True):
            self._seen[token] = self._seen.get(token, False) | own_above

    def end_batch(self) -> None:
        """Count the tokens of the batch, each once a channel however many blocks it is massive after."""
        for seen in self._seen.values():
            self.tokens += seen
        self._seen.clear()

    def channels(self) -> list[MassiveChannel]:
        """Most elements first."""
        self.end_batch()
        return [
            MassiveChannel(
                channel=channel,
                count=int(self.count[channel]),
                tokens=int(self.tokens[channel]),
                first_block=int(self.first[channel]),
                last_block=int(self.last[channel]),
                largest=float(self.largest[channel]),
            )
            for channel in sorted(np.flatnonzero(self.count).tolist(), key=lambda c: (-int(self.count[c]), c))
        ]
