"""Attention sinks: importance of every key and the three sink ratios, streamed. Spec section 3; eq. 27-28."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

METRICS = ("sun2026", "gu2025")


@dataclass(frozen=True)
class SinkCriteria:
    """Named thresholds behind "sink head" and "has sinks"."""

    metric: str = "sun2026"
    epsilon: float = 0.3
    sink_rate_min: float = 0.5
    """A head is a sink head if it is one in at least this share of sequences."""
    uniform_factor_min: float = 2.0
    """Its mean importance must also beat this multiple of a uniform head's first key, which short sequences push above
    epsilon."""


def uniform_first_key(tokens: int) -> float:
    """alpha_1 of a head that attends uniformly to the keys it sees: (1/T) sum_t 1/t."""
    return float(np.mean(1.0 / np.arange(1, tokens + 1)))


@dataclass
class HeadSums:
    """Sums over sequences of one block, each (head,) in float64; `positions` (head, key)."""

    first: Tensor
    largest: Tensor
    sun2026: Tensor
    gu2025: Tensor
    sink1_gu2025: Tensor
    virtual: Tensor
    positions: Tensor
    sequences: int = 0


@dataclass
class _Running:
    """Sums over the queries of one batch in one block: mass (batch, head, key), virtual (batch, head)."""

    mass: Tensor
    virtual: Tensor
    queries_per_key: Tensor


class SinkMeasure:
    """Observer of attention rows: importance per key in O(batch x head x key), never a T x T map."""

    def __init__(self, criteria: SinkCriteria | None = None) -> None:
        self.criteria = criteria or SinkCriteria()
        self.blocks: dict[int, HeadSums] = {}
        self.has_virtual_keys = False
        self.longest = 0
        self.sequence_sinks: list[float] = []
        """Sink heads of each sequence so far, under the chosen metric."""
        self._valid: Tensor | None = None
        self._padded = False
        self._running: _Running | None = None

    def on_batch(self, batch) -> None:
        self._valid = batch.valid
        self._padded = batch.padded
        self.longest = max(self.longest, int(batch.valid.sum(1).max()))
        self.sequence_sinks += [0.0] * len(batch.valid)

    def on_attention(self, inputs) -> None:
        batch, heads = inputs.query.shape[:2]
        device = inputs.query.device
        self._running = _Running(
            mass=torch.zeros(batch, heads, inputs.key.shape[2], device=device),
            virtual=torch.zeros(batch, heads, device=device),
            queries_per_key=inputs.queries_per_key,
        )

    def on_attention_rows(self, rows) -> None:
        assert self._running is not None and self._valid is not None
        weights = rows.weights
        counted = self._valid[:, rows.query_start : rows.query_stop].to(weights.device)
        if self._padded:
            weights = weights * counted[:, None, :, None]
        self._running.mass[:, :, rows.key_start : rows.key_start + weights.shape[-1]] += weights.sum(2)
        if rows.virtual_mass is not None:
            self.has_virtual_keys = True
            self._running.virtual += (rows.virtual_mass * counted[:, None]).sum(2)
        if rows.query_stop == rows.total_queries:
            self._finish(rows.block, self._running, self._valid.to(weights.device))

    def _finish(self, block: int, running: _Running, valid: Tensor) -> None:
        """Turn the sums over queries of one block into alphas and count."""
        queries = valid.sum(1)[:, None]
        mass = running.mass.double()
        alpha = mass / queries[..., None]
        alpha_gu = mass / running.queries_per_key.clamp(min=1)[:, None, :]
        # Rank among real tokens: padding, left or right, neither counts as a key nor shifts the first half.
        rank = valid.long().cumsum(1) - 1
        first_half = (valid & (rank < (queries // 2).clamp(min=1)))[:, None]
        first_key = (valid & (rank == 0))[:, None]
        epsilon = self.criteria.epsilon
        largest = alpha.masked_fill(~first_half, 0).amax(-1)
        largest_gu = alpha_gu.masked_fill(~first_half, 0).amax(-1)
        sums = self.blocks.setdefault(block, _zeros(alpha.shape[1]))
        sums.first += (alpha * first_key).sum(-1).sum(0).cpu()
        sums.largest += largest.sum(0).cpu()
        sums.sun2026 += (largest > epsilon).double().sum(0).cpu()
        sums.gu2025 += (largest_gu > epsilon).double().sum(0).cpu()
        sums.sink1_gu2025 += ((alpha_gu * first_key).sum(-1) > epsilon).double().sum(0).cpu()
        sums.virtual += (running.virtual.double() / queries).sum(0).cpu()
        sums.positions = _added(sums.positions, alpha.sum(0).cpu())
        sums.sequences += alpha.shape[0]
        chosen = largest if self.criteria.metric == "sun2026" else largest_gu
        self._count_sequences((chosen > epsilon).sum(1))

    def _count_sequences(self, sinks: Tensor) -> None:
        """Add one block's sink heads, (batch,), to the sequences of this batch."""
        first = len(self.sequence_sinks) - len(sinks)
        for row, count in enumerate(sinks.tolist()):
            self.sequence_sinks[first + row] += count

    def sequence_ratios(self) -> list[float]:
        """Sink ratio of each sequence under the chosen metric, for intervals over sequences. Eq. 28."""
        heads = sum(len(sums.first) for sums in self.blocks.values())
        return [count / heads for count in self.sequence_sinks]

    def compute(self) -> "SinkResult":
        """Averages over sequences, block by block."""
        blocks = sorted(self.blocks)

        def mean(name: str) -> dict[int, np.ndarray]:
            return {b: (getattr(self.blocks[b], name) / self.blocks[b].sequences).numpy() for b in blocks}

        return SinkResult(
            criteria=self.criteria,
            tokens=self.longest,
            first=mean("first"),
            largest=mean("largest"),
            rates={name: mean(name) for name in ("sun2026", "gu2025", "sink1_gu2025")},
            virtual=mean("virtual") if self.has_virtual_keys else None,
            positions=mean("positions"),
        )


@dataclass(frozen=True)
class SinkResult:
    """Per block (1-based): values per query head; `positions` (head, key) is the mean importance of each key."""

    criteria: SinkCriteria
    tokens: int
    first: dict[int, np.ndarray]
    largest: dict[int, np.ndarray]
    rates: dict[str, dict[int, np.ndarray]]
    virtual: dict[int, np.ndarray] | None
    positions: dict[int, np.ndarray]

    def ratio(self, metric: str) -> float:
        """Sink ratio: share of heads over layers and heads that are sink heads, averaged over sequences. Eq. 28."""
        return float(np.concatenate(list(self.rates[metric].values())).mean())

    @property
    def importance_min(self) -> float:
        """What the importance of a key must exceed to make it a sink token at this sequence length."""
        return max(self.criteria.epsilon, self._floor)

    @property
    def _floor(self) -> float:
        return self.criteria.uniform_factor_min * uniform_first_key(self.tokens)

    def is_sink(self, block: int) -> np.ndarray:
        """Which heads of the block are sink heads, (head,) bool."""
        often = self.rates[self.criteria.metric][block] >= self.criteria.sink_rate_min
        return often & (self.largest[block] > self._floor)


def _zeros(heads: int) -> HeadSums:
    empty = [torch.zeros(heads, dtype=torch.float64) for _ in range(6)]
    return HeadSums(*empty, positions=torch.zeros(heads, 0, dtype=torch.float64))


def _added(one: Tensor, other: Tensor) -> Tensor:
    """Sum of two (head, key) tensors of possibly different numbers of keys."""
    if one.shape[1] < other.shape[1]:
        one, other = other, one
    total = one.clone()
    total[:, : other.shape[1]] += other
    return total
