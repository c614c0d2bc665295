"""Attention sinks: importance of every key and the three sink ratios, streamed. Spec section 3; eq. 27-28."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from spikesink.errors import InputError, did_you_mean
from spikesink.observer import AttentionInputs, AttentionSums, Batch, Observer
from spikesink.positions import first_half, half_of, mean_uniform_first_key, ranks
from spikesink.records import SinkHead, SinkRatio, Sinks

METRICS = ("sun2026", "gu2025")
RATES = (*METRICS, "sink1_gu2025")
EPSILONS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds at which the sink ratio is counted beside the chosen one."""
SHORTEST = 8
"""The sink ratio is also counted on the first 8, 16, 32, ... tokens: attention is causal, so that is what a scan of the
text cut there would find."""


@dataclass(frozen=True)
class SinkCriteria:
    """Named thresholds behind "sink head" and "has sinks". Raises InputError for what is out of range or unknown."""

    metric: str = "sun2026"
    epsilon: float = 0.3
    sink_rate_min: float = 0.5
    """A head is a sink head if it is one in at least this share of sequences."""
    uniform_factor_min: float = 2.0
    """Its mean importance must also beat this multiple of a uniform head's first key, which short sequences push above
    epsilon."""

    def importance_min(self, uniform: float) -> float:
        """What the importance of a key must exceed to make it a sink token, where uniform attention gives the first key
        `uniform`."""
        return max(self.epsilon, self.uniform_factor_min * uniform)

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise InputError(f"epsilon is {self.epsilon}; expected a share of attention between 0 and 1, e.g. 0.3.")
        if self.metric not in METRICS:
            raise InputError(f"Unknown sink metric '{self.metric}'{did_you_mean(self.metric, METRICS)}")


@dataclass
class BlockSums:
    """Sums over sequences of one block, each (head,) in float64; `positions` (head, key), keys by rank."""

    per_head: dict[str, Tensor]
    above: dict[str, Tensor]
    """By metric: how often a head of a sequence exceeds each of EPSILONS, (epsilon,)."""
    shorter: dict[int, int]
    """By number of tokens: heads of sequences that exceed epsilon there."""
    positions: Tensor
    sequences: int = 0


class SinkMeasure(Observer):
    """Observer of attention sums: importance per key in O(batch x head x key), never a T x T map."""

    def __init__(self, criteria: SinkCriteria | None = None) -> None:
        self.criteria = criteria or SinkCriteria()
        self.blocks: dict[int, BlockSums] = {}
        self.has_virtual_keys = False
        self.lengths: list[int] = []
        """Tokens of each sequence so far, without padding."""
        self._any_padded = False
        self.sequence_sinks: dict[int, list[float]] = {}
        """By block: sink heads of each sequence so far, under the chosen metric."""

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._padded = batch.padded
        self._any_padded |= self._padded
        self.lengths += batch.valid.sum(1).tolist()

    def on_attention(self, inputs: AttentionInputs) -> None:
        batch, heads = inputs.query.shape[:2]
        self._mass = torch.zeros(batch, heads, inputs.key.shape[2], device=inputs.query.device)
        self._virtual = torch.zeros(batch, heads, device=inputs.query.device)
        self._queries_per_key = inputs.queries_per_key
        self._shorter = [] if self._padded else _shorter(inputs.query.shape[2])
        if inputs.block not in self.blocks:
            zeros = {name: torch.zeros(heads, dtype=torch.float64) for name in ("first", "largest", "virtual", *RATES)}
            above = {metric: torch.zeros(len(EPSILONS), dtype=torch.float64) for metric in METRICS}
            empty = torch.zeros(heads, 0, dtype=torch.float64)
            self.blocks[inputs.block] = BlockSums(zeros, above, {}, empty)

    def on_attention_sums(self, sums: AttentionSums) -> None:
        self._mass[:, :, sums.keys] += sums.mass
        if sums.virtual_mass is not None:
            self.has_virtual_keys = True
            self._virtual += sums.virtual_mass
        stop = sums.query_stop
        if stop in self._shorter:
            largest = self._mass[..., : half_of(stop)].amax(-1).double() / stop
            counts = self.blocks[sums.block].shorter
            counts[stop] = counts.get(stop, 0) + int((largest > self.criteria.epsilon).sum())
        if stop == sums.total_queries:
            self._finish(sums.block, self.batch.valid.to(sums.mass.device))

    def _finish(self, block: int, valid: Tensor) -> None:
        """Turn the sums over queries of one block into alphas and count."""
        queries = valid.sum(1)[:, None]
        mass = self._mass.double()
        alpha = mass / queries[..., None]
        by_metric = {"sun2026": alpha, "gu2025": mass / self._queries_per_key.clamp(min=1)[:, None, :]}
        half, first_key = first_half(valid)[:, None], (valid & (ranks(valid) == 0))[:, None]
        largest = {metric: values.masked_fill(~half, 0).amax(-1) for metric, values in by_metric.items()}
        epsilon, sums = self.criteria.epsilon, self.blocks[block]
        per_head = {
            "first": (alpha * first_key).sum(-1),
            "largest": largest["sun2026"],
            "virtual": self._virtual.double() / queries,
            "sink1_gu2025": (by_metric["gu2025"] * first_key).sum(-1) > epsilon,
            **{metric: values > epsilon for metric, values in largest.items()},
        }
        for name, values in per_head.items():
            sums.per_head[name] += values.double().sum(0).cpu()
        for metric, values in largest.items():
            grid = torch.tensor(EPSILONS, dtype=torch.float64, device=values.device)
            sums.above[metric] += (values[..., None] > grid).double().sum((0, 1)).cpu()
        sums.positions = _added(sums.positions, self._by_rank(alpha, valid).sum(0).cpu())
        sums.sequences += len(alpha)
        self.sequence_sinks.setdefault(block, []).extend((largest[self.criteria.metric] > epsilon).sum(1).tolist())

    def _by_rank(self, alpha: Tensor, valid: Tensor) -> Tensor:
        """Importance (batch, head, key) with keys counted from the first real token."""
        if not self._padded:
            return alpha
        places = ranks(valid).clamp(min=0)[:, None].expand_as(alpha)
        return torch.zeros_like(alpha).scatter_add_(2, places, alpha * valid[:, None])

    def sequence_ratios(self, first_block: int = 1) -> list[float]:
        """Sink ratio of each sequence under the chosen metric, over the blocks from one on. Eq. 28.

        Empty where no block from there on attends.
        """
        counted = [block for block in self.blocks if block >= first_block]
        heads = sum(len(self.blocks[block].per_head["first"]) for block in counted)
        return [sum(counts) / heads for counts in zip(*(self.sequence_sinks[block] for block in counted), strict=True)]

    def compute(self) -> "SinkResult":
        """Averages over sequences, block by block."""
        blocks = dict(sorted(self.blocks.items()))

        def mean(name: str) -> dict[int, np.ndarray]:
            return {block: (sums.per_head[name] / sums.sequences).numpy() for block, sums in blocks.items()}

        return SinkResult(
            criteria=self.criteria,
            lengths=sorted(set(self.lengths)),
            uniform=mean_uniform_first_key(self.lengths),
            first=mean("first"),
            largest=mean("largest"),
            rates={name: mean(name) for name in RATES},
            virtual=mean("virtual") if self.has_virtual_keys else None,
            positions={block: (sums.positions / sums.sequences).numpy() for block, sums in blocks.items()},
            by_epsilon=self._by_epsilon(),
            by_tokens=self._by_tokens(),
            by_sequence=self.sequence_ratios(),
        )

    def _by_epsilon(self) -> list[SinkRatio]:
        total = sum(len(sums.per_head["first"]) * sums.sequences for sums in self.blocks.values())

        def ratios(metric: str) -> list[float]:
            above = torch.stack([sums.above[metric] for sums in self.blocks.values()]).sum(0)
            return (above / total).tolist()

        return [
            SinkRatio(tokens=max(self.lengths), epsilon=epsilon, sun2026=sun, gu2025=gu)
            for epsilon, sun, gu in zip(EPSILONS, ratios("sun2026"), ratios("gu2025"), strict=True)
        ]

    def _by_tokens(self) -> list[SinkRatio]:
        """Of sequences without padding, and only where all have the same lengths in all blocks."""
        every = [sums.shorter for sums in self.blocks.values()]
        total = sum(len(sums.per_head["first"]) * sums.sequences for sums in self.blocks.values())
        same = not self._any_padded and all(counts.keys() == every[0].keys() for counts in every)
        epsilon = self.criteria.epsilon
        return [
            SinkRatio(tokens=length, epsilon=epsilon, sun2026=sum(counts[length] for counts in every) / total)
            for length in (every[0] if same else ())
        ]


@dataclass(frozen=True)
class SinkResult:
    """Per block (1-based): values per query head; `positions` (head, key) is the mean importance of each key."""

    criteria: SinkCriteria
    lengths: list[int]
    """Of the sequences without padding, each once, the shortest first."""
    uniform: float
    """First-key importance of a head that attends uniformly, averaged over sequences as that of the heads is."""
    first: dict[int, np.ndarray]
    largest: dict[int, np.ndarray]
    rates: dict[str, dict[int, np.ndarray]]
    virtual: dict[int, np.ndarray] | None
    positions: dict[int, np.ndarray]
    by_epsilon: list[SinkRatio]
    by_tokens: list[SinkRatio]
    by_sequence: list[float]
    """Sink ratio of each sequence under the chosen metric."""

    def ratio(self, metric: str) -> float:
        """Sink ratio: share of heads over layers and heads that are sink heads, averaged over sequences. Eq. 28."""
        return _mean(self.rates[metric])

    @property
    def importance_min(self) -> float:
        """What the mean importance of a key must exceed to make it a sink token."""
        return self.criteria.importance_min(self.uniform)

    def is_sink(self, block: int) -> np.ndarray:
        """Which heads of the block are sink heads, (head,) bool."""
        often = self.rates[self.criteria.metric][block] >= self.criteria.sink_rate_min
        return often & (self.largest[block] > self.criteria.uniform_factor_min * self.uniform)

    def section(self) -> Sinks:
        """As the record says it."""
        heads = [
            SinkHead(
                block=block,
                head=head,
                first_key_importance=float(self.first[block][head]),
                max_importance=float(self.largest[block][head]),
                sink_rate=float(rate),
                is_sink=bool(self.is_sink(block)[head]),
            )
            for block, rates in self.rates[self.criteria.metric].items()
            for head, rate in enumerate(rates)
        ]
        return Sinks(
            **asdict(self.criteria),
            uniform_first_key=self.uniform,
            ratio_reason=self._too_short(),
            first_key_importance=_mean(self.first),
            virtual_mass=None if self.virtual is None else _mean(self.virtual),
            by_epsilon=self.by_epsilon,
            by_tokens=self.by_tokens,
            heads=heads,
        )

    def _too_short(self) -> str | None:
        if self.uniform <= self.criteria.epsilon:
            return None
        tokens = " to ".join(map(str, dict.fromkeys((self.lengths[0], self.lengths[-1]))))
        return (
            f"at {tokens} tokens a head that attends uniformly gives its first key {self.uniform:.2f}, more than "
            f"epsilon = {self.criteria.epsilon:g}: the sink ratio of any model is near 1"
        )


def _shorter(tokens: int) -> list[int]:
    """SHORTEST and its doubles below the number of tokens."""
    return [SHORTEST * 2**power for power in range(32) if SHORTEST * 2**power < tokens]


def _mean(per_block: dict[int, np.ndarray]) -> float:
    return float(np.concatenate(list(per_block.values())).mean())


def _added(one: Tensor, other: Tensor) -> Tensor:
    """Sum of two (head, key) tensors of possibly different numbers of keys."""
    if one.shape[1] < other.shape[1]:
        one, other = other, one
    total = one.clone()
    total[:, : other.shape[1]] += other
    return total
