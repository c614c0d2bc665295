"""Spikes: the largest magnitudes of every residual and write, streamed. Spec section 2; Sun et al. 2026, figure 1.

Residuals are H[2] ... H[2L+1], "after block b"; the embedding and the final norm's output do not count.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spikesink.records import Peak

TOP = 3
MAX_CANDIDATES = 10_000
"""Spike-token candidates kept per block, so that memory does not grow with the corpus."""


@dataclass(frozen=True)
class SpikeCriteria:
    """Named thresholds, chosen on controls: see docs. A block has spikes if it reaches both ratios."""

    max_over_median_min: float = 20.0
    """Largest over median magnitude. A randomly initialised deep model reaches 33 where its embedding is small against
    the first write, which makes some tokens large in all channels alike; hence the second ratio."""
    token_ratio_min: float = 11.0
    """Largest over median magnitude within one token: spikes live in few channels. Controls without spikes reach
    9, small models with spikes 13, SmolLM2 691."""
    share_of_spike_min: float = 0.1
    """A spike channel or spike token reaches this share of the spike, and `max_over_median_min`, at the verdict's
    block."""
    sun2024_absolute: float = 100.0
    sun2024_ratio: float = 1000.0
    """|a| > 100 and |a| > 1000 x median. Sun et al. 2024, section 2."""


def median_magnitude(magnitude: Tensor) -> float:
    """Lower median of a tensor of magnitudes; exact."""
    return _reordering_median(magnitude.flatten().clone())


def _reordering_median(values: Tensor) -> float:
    """Lower median of a contiguous tensor, whose elements it may reorder."""
    if values.device.type != "cpu":
        return float(values.median())
    # numpy's introselect is several times faster than torch's median on CPU.
    flat = values.view(-1).numpy()
    middle = (flat.size - 1) // 2
    flat.partition(middle)
    return float(flat[middle])


class PeakTracker:
    """Largest magnitude of every channel, and where the three largest were. Exact over any number of batches.

    A channel of the final top three was in the top three of the batch that holds its maximum, since otherwise three
    other channels would exceed it; so locating the top three of each batch is enough.
    """

    def __init__(self) -> None:
        self.channel_max: Tensor | None = None
        self._located: dict[int, Peak] = {}

    def update(self, hidden: Tensor, magnitude: Tensor, first_sequence: int) -> Tensor:
        """hidden and magnitude (batch, token, channel), padding zeroed in magnitude; returns this batch's maxima."""
        per_channel = magnitude.flatten(0, 1).amax(0)
        known = self.channel_max
        self.channel_max = per_channel.clone() if known is None else torch.maximum(known, per_channel)
        for value, channel in zip(*per_channel.topk(min(TOP, per_channel.numel())), strict=True):
            self._offer(hidden, magnitude, first_sequence, int(channel), float(value))
        return per_channel

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
    """Tokens whose largest magnitude reaches a share of the running maximum; the largest MAX_CANDIDATES of them."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.largest = 0.0
        self.rows = np.empty((0, 3))

    def update(self, token_max: Tensor, first_sequence: int) -> None:
        """token_max (batch, token)."""
        self.largest = max(self.largest, float(token_max.max()))
        row, position = torch.nonzero(token_max >= self.share * self.largest, as_tuple=True)
        values = token_max[row, position].double().cpu().numpy()
        new = np.stack([values, row.cpu().numpy() + first_sequence, position.cpu().numpy()], axis=1)
        self.rows = np.concatenate([self.rows[self.rows[:, 0] >= self.share * self.largest], new])
        if len(self.rows) > 2 * MAX_CANDIDATES:
            self.rows = self._sorted()[:MAX_CANDIDATES]

    def above(self, threshold: float) -> np.ndarray:
        """Rows (value, sequence, position) at or above the threshold, largest first, at most MAX_CANDIDATES."""
        rows = self._sorted()
        return rows[rows[:, 0] >= threshold][:MAX_CANDIDATES]

    def _sorted(self) -> np.ndarray:
        return self.rows[np.lexsort((self.rows[:, 2], self.rows[:, 1], -self.rows[:, 0]))]


@dataclass
class ResidualStatistics:
    """What is kept of one residual: peaks, medians, massive elements, spike-token candidates."""

    candidates: TokenCandidates
    peaks: PeakTracker = field(default_factory=PeakTracker)
    median_sum: float = 0.0
    token_ratio: float = 0.0
    """Largest over median magnitude within the token that has its sequence's largest; the largest over sequences."""
    sequences: int = 0
    massive_count: int = 0

    @property
    def median(self) -> float:
        return self.median_sum / self.sequences

    @property
    def maximum(self) -> float:
        return self.peaks.top()[0].value

    @property
    def max_over_median(self) -> float:
        return self.maximum / self.median if self.median > 0 else float("inf")

    def has_spikes(self, criteria: SpikeCriteria) -> bool:
        return self.max_over_median >= criteria.max_over_median_min and self.token_ratio >= criteria.token_ratio_min


class SpikeMeasure:
    """Observer of residuals and writes; memory O(blocks x channels), whatever the number of sequences."""

    def __init__(self, criteria: SpikeCriteria | None = None) -> None:
        self.criteria = criteria or SpikeCriteria()
        self.residuals: dict[int, ResidualStatistics] = {}
        self.writes: dict[int, PeakTracker] = {}
        self._valid: Tensor | None = None
        self._buffer: Tensor | None = None
        self._first_sequence = 0

    def on_batch(self, batch) -> None:
        self._valid = batch.valid if batch.padded else None
        self._first_sequence = batch.first_sequence

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:
            return
        magnitude = self._magnitude(hidden)
        if block not in self.residuals:
            self.residuals[block] = ResidualStatistics(TokenCandidates(self.criteria.share_of_spike_min))
        statistics = self.residuals[block]
        per_channel = statistics.peaks.update(hidden, magnitude, self._first_sequence)
        token_max = magnitude.amax(-1)
        statistics.candidates.update(token_max, self._first_sequence)
        top = magnitude[torch.arange(len(magnitude), device=magnitude.device), token_max.argmax(1)]
        own = top.amax(-1) / top.median(-1).values
        # A token that is zero everywhere (0 / 0) has no ratio.
        statistics.token_ratio = max(statistics.token_ratio, float(own.nan_to_num(nan=0.0).max()))
        largest = float(per_channel.max())
        for row in range(hidden.shape[0]):
            kept = magnitude[row] if self._valid is None else magnitude[row, self._valid[row]]
            # Last, since the buffer is reordered; counting does not mind.
            median = _reordering_median(kept)
            statistics.median_sum += median
            statistics.sequences += 1
            threshold = max(self.criteria.sun2024_absolute, self.criteria.sun2024_ratio * median)
            if largest > threshold:
                statistics.massive_count += int((kept > threshold).sum())

    def on_write(self, block: int, write: Tensor) -> None:
        self.writes.setdefault(block, PeakTracker()).update(write, self._magnitude(write), self._first_sequence)

    def _magnitude(self, hidden: Tensor) -> Tensor:
        """|hidden| in float32 or wider, padding zeroed, in a buffer that the next call overwrites.

        Fresh tensors would be freed between the small numbers that are kept, which splits the heap: a scan peaked at
        twice the memory of a plain forward pass.
        """
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        buffer = self._buffer
        if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (hidden.shape, dtype, hidden.device):
            buffer = self._buffer = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
        buffer.copy_(hidden).abs_()
        if self._valid is not None:
            buffer.mul_(self._valid[..., None].to(buffer.device))
        return buffer

    def compute(self) -> "SpikeResult":
        """The plain argmax over blocks, the verdict, and the spike channels and tokens at the verdict's block."""
        criteria = self.criteria
        block = self._largest(list(self.residuals))
        spiking = [b for b, found in self.residuals.items() if found.has_spikes(criteria)]
        verdict_block = self._largest(spiking) if spiking else block
        statistics = self.residuals[verdict_block]
        threshold = max(
            criteria.share_of_spike_min * statistics.maximum, criteria.max_over_median_min * statistics.median
        )
        channel_max = statistics.peaks.channel_max
        assert channel_max is not None, "compute before any batch"
        channels = torch.nonzero(channel_max >= threshold).flatten().tolist() if spiking else []
        return SpikeResult(
            peak=self.residuals[block].peaks.top()[0],
            block=block,
            max_over_median=max(found.max_over_median for found in self.residuals.values()),
            token_ratio=max(found.token_ratio for found in self.residuals.values()),
            has_spikes=bool(spiking),
            verdict_block=verdict_block,
            channels=sorted(channels, key=lambda channel: -float(channel_max[channel])),
            tokens=statistics.candidates.above(threshold) if spiking else np.empty((0, 3)),
            massive_count=sum(found.massive_count for found in self.residuals.values()),
            massive_blocks=[b for b, found in sorted(self.residuals.items()) if found.massive_count],
        )

    def _largest(self, blocks: list[int]) -> int:
        """The block with the largest magnitude; the earlier of equals."""
        return max(blocks, key=lambda b: (self.residuals[b].maximum, -b))


@dataclass(frozen=True)
class SpikeResult:
    """The spike and the verdict. `tokens` has rows (value, sequence, position), largest first."""

    peak: Peak
    block: int
    max_over_median: float
    token_ratio: float
    has_spikes: bool
    verdict_block: int
    """Where spike channels and tokens were read: of the blocks that have spikes, the one with the largest magnitude;
    `block` itself unless an overall larger residual has none."""
    channels: list[int]
    tokens: np.ndarray
    massive_count: int
    massive_blocks: list[int]
