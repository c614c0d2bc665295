"""Spikes: the largest magnitudes of residuals and writes, of a text and by sequence. Spec 2; Sun et al. 2026, figure 1.

Residuals are H[2] ... H[2L+1], "after block b"; the embedding and the final norm's output do not count.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from spikesink.measure.medians import row_medians
from spikesink.measure.tallies import MAX_MASSIVE, MassiveTally, PeakTracker, TokenCandidates
from spikesink.observer import Batch, Observer
from spikesink.positions import placed
from spikesink.records import Peak, SpikeVerdict


@dataclass(frozen=True)
class SpikeCriteria:
    """Named thresholds, chosen on controls: see docs. A block has spikes if it reaches both ratios in few tokens."""

    max_over_median_min: float = 20.0
    """Largest over median magnitude. A randomly initialised deep model reaches 33 where its embedding is small against
    the first write, which makes some tokens large in all channels alike; hence the second ratio."""
    token_ratio_min: float = 11.0
    """Largest over median magnitude within one token: spikes live in few channels. Controls without spikes reach
    9, small models with spikes 13, SmolLM2 691."""
    token_share_max: float = 0.25
    """Few tokens: at most this share of them are spike tokens, or two a sequence. Models whose every other token is
    as large as the largest have a large scale, no spikes."""
    share_of_spike_min: float = 0.1
    """A spike channel or spike token reaches this share of the spike, and `max_over_median_min`, at the verdict's
    block."""
    sun2024_absolute: float = 100.0
    sun2024_ratio: float = 1000.0
    """|a| > 100 and |a| > 1000 x median. Sun et al. 2024, section 2."""


@dataclass
class ResidualStatistics:
    """What is kept of one residual: peaks, medians, spike-token candidates, number of massive elements."""

    candidates: TokenCandidates
    peaks: PeakTracker = field(default_factory=PeakTracker)
    median_sum: float = 0.0
    token_ratio: float = 0.0
    """Largest over median magnitude within the token that has its sequence's largest; the largest over sequences."""
    sequences: int = 0
    tokens: int = 0
    massive_count: int = 0

    @property
    def median(self) -> float:
        return self.median_sum / self.sequences

    @property
    def maximum(self) -> float:
        return self.peaks.top()[0].value

    @property
    def max_over_median(self) -> float:
        return self.maximum / self.median if self.median > 0 else 0.0

    def threshold(self, criteria: SpikeCriteria) -> float:
        """Magnitude of a spike channel or spike token."""
        return max(criteria.share_of_spike_min * self.maximum, criteria.max_over_median_min * self.median)

    def extreme(self, criteria: SpikeCriteria) -> bool:
        """Whether the largest magnitude stands out from the median, and in its token from the token's own."""
        return self.max_over_median >= criteria.max_over_median_min and self.token_ratio >= criteria.token_ratio_min

    def few(self, criteria: SpikeCriteria) -> bool:
        """Whether few tokens reach the threshold."""
        most = max(criteria.token_share_max * self.tokens, 2 * self.sequences)
        return self.candidates.count(self.threshold(criteria)) <= most


class SpikeMeasure(Observer):
    """Observer of residuals and writes; memory O(blocks x channels), whatever the number of sequences."""

    def __init__(self, criteria: SpikeCriteria | None = None) -> None:
        self.criteria = criteria or SpikeCriteria()
        self.residuals: dict[int, ResidualStatistics] = {}
        self.writes: dict[int, PeakTracker] = {}
        self.massive: list[np.ndarray] = []
        """Rows (sequence, position, block, channel, magnitude) of massive elements, until MAX_MASSIVE are listed."""
        self.sequence_largest: list[float] = []
        """Largest magnitude after any block, by sequence."""
        self._listed = 0
        self._tally: MassiveTally | None = None
        self._valid: Tensor | None = None
        self._tokens = 0
        """Of the batch, without padding."""
        self._buffer: Tensor | None = None

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._valid = batch.valid if batch.padded else None
        self._tokens = int(batch.valid.sum())
        self.sequence_largest += [0.0] * len(batch.valid)
        if self._tally is not None:
            self._tally.end_batch()

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:
            return
        magnitude = self._magnitude(hidden)
        if block not in self.residuals:
            self.residuals[block] = ResidualStatistics(TokenCandidates(self.criteria.share_of_spike_min))
        statistics = self.residuals[block]
        statistics.peaks.update(hidden, magnitude, self.batch.first_sequence)
        token_max = magnitude.amax(-1)
        statistics.candidates.update(token_max, self.batch.first_sequence)
        top = magnitude[torch.arange(len(magnitude), device=magnitude.device), token_max.argmax(1)]
        own = top.amax(-1) / top.masked_fill(top == 0, torch.nan).nanmedian(-1).values
        # A token that is zero everywhere has no ratio.
        statistics.token_ratio = max(statistics.token_ratio, float(own.nan_to_num(nan=0.0).max()))
        first = len(self.sequence_largest) - len(hidden)
        for row, own_largest in enumerate(token_max.amax(1).tolist(), start=first):
            self.sequence_largest[row] = max(self.sequence_largest[row], own_largest)
        statistics.tokens += self._tokens
        statistics.sequences += len(hidden)
        medians = row_medians(magnitude)
        for median in medians:
            statistics.median_sum += median
        thresholds = [max(self.criteria.sun2024_absolute, self.criteria.sun2024_ratio * median) for median in medians]
        limits = token_max.new_tensor(thresholds)[:, None]
        rows, positions = torch.nonzero(token_max > limits, as_tuple=True)
        if len(rows):
            statistics.massive_count += self._note_massive(block, hidden, rows, positions, limits[rows])

    def _note_massive(self, block: int, hidden: Tensor, rows: Tensor, positions: Tensor, limits: Tensor) -> int:
        """Number of elements of these tokens that are above the limits (token, 1); their places are kept."""
        own = hidden[rows, positions].to(torch.promote_types(hidden.dtype, torch.float32)).abs()
        above, magnitude = (own > limits).cpu().numpy(), own.cpu().numpy()
        tokens = torch.stack((rows, positions), 1).cpu().numpy()
        self._tally = self._tally or MassiveTally(own.shape[-1])
        self._tally.update(block, list(map(tuple, tokens.tolist())), magnitude, above)
        which, channels = np.nonzero(above)
        if self._listed < MAX_MASSIVE:
            columns = *tokens[which].T, np.full(len(which), block), channels, magnitude[above]
            places = np.stack(columns, axis=1, dtype=np.float64)[: MAX_MASSIVE - self._listed]
            places[:, 0] += self.batch.first_sequence
            self.massive.append(places)
            self._listed += len(places)
        return len(which)

    def on_write(self, block: int, write: Tensor) -> None:
        self.writes.setdefault(block, PeakTracker()).update(write, self._magnitude(write), self.batch.first_sequence)

    def _magnitude(self, hidden: Tensor) -> Tensor:
        """|hidden| in float32 or wider, padding zeroed, in a buffer that the next call overwrites.

        Fresh tensors would be freed between the small numbers that are kept, which splits the heap: a scan peaked at
        twice the memory of a plain forward pass.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        buffer = self._buffer
        if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (hidden.shape, dtype, hidden.device):
            buffer = self._buffer = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
        buffer.copy_(hidden).abs_()
        if self._valid is not None:
            buffer.mul_(self._valid[..., None].to(buffer.device))
        return buffer

    def compute(self) -> "SpikeResult":
        """The plain argmax over blocks, the verdict, and the spike channels and tokens at the verdict's block."""
        criteria, residuals = self.criteria, self.residuals
        block = self._largest(list(residuals))
        extreme = [b for b in residuals if residuals[b].extreme(criteria)]
        spiking = [b for b in extreme if residuals[b].few(criteria)]
        verdict_block = self._largest(spiking or extreme or [block])
        statistics = residuals[verdict_block]
        threshold = statistics.threshold(criteria)
        channel_max = statistics.peaks.channel_max
        assert channel_max is not None, "compute before any batch"
        channels = torch.nonzero(channel_max >= threshold).flatten().tolist() if spiking else []
        massive = np.concatenate(self.massive) if self.massive else np.empty((0, 5))
        verdict = SpikeVerdict(
            **asdict(criteria),
            reason=None if spiking else _no_spikes(statistics, criteria, verdict_block, bool(extreme)),
            token_ratio=max(residual.token_ratio for residual in residuals.values()),
            token_share=statistics.candidates.count(threshold) / statistics.tokens,
            verdict_block=verdict_block,
            massive_count=sum(residual.massive_count for residual in residuals.values()),
            massive_blocks=[b for b, residual in sorted(residuals.items()) if residual.massive_count],
            massive_channels=self._tally.channels() if self._tally is not None else [],
            token_count=statistics.candidates.count(threshold) if spiking else 0,
        )
        return SpikeResult(
            peak=residuals[block].peaks.top()[0],
            block=block,
            max_over_median=max(residual.max_over_median for residual in residuals.values()),
            has_spikes=bool(spiking),
            channels=sorted(channels, key=lambda channel: -float(channel_max[channel])),
            tokens=statistics.candidates.above(threshold) if spiking else np.empty((0, 3)),
            massive=massive,
            verdict=verdict,
        )

    def _largest(self, blocks: list[int]) -> int:
        """The block with the largest magnitude; the earlier of equals."""
        return max(blocks, key=lambda b: (self.residuals[b].maximum, -b))


def _no_spikes(statistics: ResidualStatistics, criteria: SpikeCriteria, block: int, extreme: bool) -> str:
    if not extreme:
        return (
            f"in no block is the largest magnitude {criteria.max_over_median_min:g} x the median and, in one token, "
            f"{criteria.token_ratio_min:g} x that token's own"
        )
    share = statistics.candidates.count(statistics.threshold(criteria)) / statistics.tokens
    return (
        f"{share:.0%} of the tokens are as large as a spike in block {placed(block)}: a large scale rather than spikes"
    )


@dataclass(frozen=True)
class SpikeResult:
    """The spike and the verdict."""

    peak: Peak
    block: int
    max_over_median: float
    has_spikes: bool
    channels: list[int]
    tokens: np.ndarray
    """Spike tokens, rows (value, sequence, position), largest first."""
    massive: np.ndarray
    """Massive elements, rows (sequence, position, block, channel, magnitude), until MAX_MASSIVE are listed."""
    verdict: SpikeVerdict


class SequenceSpikes(Observer):
    """Observer of residuals: per sequence the largest magnitude, that on the plateau, the largest ratio to a median.

    plateau: the first and the last block of the plateau, between a spike's step-up and its step-down block; None =
    every block.
    """

    def __init__(self, plateau: tuple[int, int] | None = None) -> None:
        self.plateau = plateau
        self.plateaus: list[float] = []
        """Largest magnitude over the plateau's blocks, tokens and channels, by sequence."""
        self.largest: list[float] = []
        """Largest magnitude over blocks, tokens and channels, by sequence."""
        self.plateau_ratios: list[float] = []
        """Largest over the plateau's blocks of (largest magnitude / median magnitude of that block), by sequence."""
        self.ratios: list[float] = []
        """Largest over blocks of (largest magnitude / median magnitude of that block), by sequence."""
        self.norm_ratios: list[float] = []
        """Largest norm of a token over the median token's, after the first block of the plateau, by sequence; empty
        without a plateau."""
        self._first = 0

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._first = len(self.largest)
        self.largest += [0.0] * len(batch.valid)
        self.ratios += [0.0] * len(batch.valid)
        self.plateaus += [0.0] * len(batch.valid)
        self.plateau_ratios += [0.0] * len(batch.valid)

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:
            return
        on_plateau = self.plateau is None or self.plateau[0] <= block <= self.plateau[1]
        magnitude = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).abs()
        if self.batch.padded:
            magnitude *= self.batch.valid.to(magnitude.device)[..., None]
        norms = magnitude.norm(dim=-1) if self.plateau is not None and block == self.plateau[0] else None
        every = magnitude.flatten(1).amax(1).tolist()
        for row, (largest, median) in enumerate(zip(every, row_medians(magnitude), strict=True)):
            index = self._first + row
            self.largest[index] = max(self.largest[index], largest)
            ratio = largest / median if median > 0 else 0.0
            if on_plateau:
                self.plateaus[index] = max(self.plateaus[index], largest)
                self.plateau_ratios[index] = max(self.plateau_ratios[index], ratio)
            self.ratios[index] = max(self.ratios[index], ratio)
            if norms is not None:
                kept = norms[row, self.batch.valid[row].to(norms.device)]
                self.norm_ratios.append(float(kept.max() / kept.median().clamp_min(torch.finfo(kept.dtype).tiny)))
