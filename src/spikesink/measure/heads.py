"""What each head does with its sink: mass, reach of what is left, entropy, values and writes. Spec section 3.

Streams over row blocks of queries; never a T x T map. A query counts if it is no sink token and sees
a key that is none.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

REST_MIN = 1e-6
"""A query with less attention outside the sink has no distance: it would be rounding, renormalised."""


@dataclass
class HeadSums:
    """Sums over queries per head, float64; `gram` (head, d_head, d_head) is W_O^T W_O of each head, or None."""

    heads: int
    gram: Tensor | None
    count: float = 0.0
    uniform: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    distances: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.distances = torch.zeros(self.heads, dtype=torch.float64)

    def add(self, name: str, values: Tensor, counted: Tensor) -> None:
        """values (batch, head, row), counted (batch, row)."""
        total = (values.double() * counted[:, None]).sum((0, 2)).cpu()
        self.sums[name] = self.sums.get(name, torch.zeros(self.heads, dtype=torch.float64)) + total


class HeadMeasure:
    """Observer of attention rows.

    sinks: (sequence, token) bool, the sink tokens. grams: per block W_O^T W_O of each head (head, d_head, d_head) in
    float32, so that the norm of a head's write is sqrt(o^T G o); blocks that are missing get no write norms.
    """

    def __init__(self, sinks: Tensor, grams: dict[int, Tensor]) -> None:
        self.sinks, self.grams = sinks, grams
        self.blocks: dict[int, HeadSums] = {}
        self.values: dict[int, ValueNorms] = {}

    def on_batch(self, batch) -> None:
        rows = slice(batch.first_sequence, batch.first_sequence + len(batch.ids))
        self._valid = batch.valid
        self._sink = self.sinks[rows].to(batch.valid.device)

    def on_attention(self, inputs) -> None:
        groups = inputs.query.shape[1] // inputs.key.shape[1]
        norms = inputs.value.float().norm(dim=-1).repeat_interleave(groups, dim=1)
        valid, sink = self._valid.to(norms.device), self._sink.to(norms.device)
        self.values.setdefault(inputs.block, ValueNorms(norms.shape[1])).update(norms, valid, sink)

    def on_attention_rows(self, rows) -> None:
        weights = rows.weights
        block = self.blocks.setdefault(rows.block, HeadSums(weights.shape[1], self.grams.get(rows.block)))
        keys = slice(rows.key_start, rows.key_start + weights.shape[-1])
        queries = slice(rows.query_start, rows.query_stop)
        sink = self._sink[:, keys].to(weights.device)
        distance = torch.arange(rows.query_start, rows.query_stop, device=weights.device)[:, None] - torch.arange(
            keys.start, keys.stop, device=weights.device
        )
        seen = (rows.visible & ~sink[:, None, None]).expand(len(weights), 1, *weights.shape[2:])[:, 0]
        others = seen.sum(-1)
        counted = (self._valid & ~self._sink)[:, queries].to(weights.device) & (others > 0)
        uniform = (seen * distance).sum(-1) / others.clamp(min=1)
        block.count += float(counted.sum())
        block.uniform += float((uniform * counted).sum(dtype=torch.float64))
        self._attention(block, weights, sink, distance, counted)
        self._writes(block, rows, sink, counted)

    def _attention(self, block: HeadSums, weights: Tensor, sink: Tensor, distance: Tensor, counted: Tensor) -> None:
        rest = weights.masked_fill(sink[:, None, None], 0.0)
        kept = rest.sum(-1)
        block.add("mass", weights.sum(-1) - kept, counted)
        block.add("entropy", torch.special.entr(weights).sum(-1), counted)
        reach = (rest * distance).sum(-1) / kept.clamp_min(REST_MIN)
        has_rest = (kept > REST_MIN) & counted[:, None]
        block.add("distance", reach * has_rest, counted)
        block.add("reach_mass", (rest * distance).sum(-1), counted)
        block.distances += has_rest.sum((0, 2)).double().cpu()

    def _writes(self, block: HeadSums, rows, sink: Tensor, counted: Tensor) -> None:
        if block.gram is None:
            return
        output, from_sink = rows.output.float(), sink_output(rows.weights, rows.value, sink)
        kept = 1 - rows.weights.masked_fill(~sink[:, None, None], 0.0).sum(-1, keepdim=True)
        gram = block.gram.to(output.device)
        without = output - from_sink
        block.add("write", _norm(output, gram), counted)
        block.add("without", _norm(without, gram), counted)
        block.add("renormalised", _norm(without / kept.clamp_min(REST_MIN), gram), counted)


class ValueNorms:
    """Mean norm of the values of sink tokens and of the others, per query head."""

    def __init__(self, heads: int) -> None:
        self.sums = torch.zeros(2, heads, dtype=torch.float64)
        self.counts = [0, 0]

    def update(
        self, norms: Float[Tensor, "batch head token"], valid: Bool[Tensor, "batch token"], sink: Bool[Tensor, "b t"]
    ) -> None:
        for index, mask in enumerate((valid & sink, valid & ~sink)):
            self.sums[index] += (norms.double() * mask[:, None]).sum((0, 2)).cpu()
            self.counts[index] += int(mask.sum())

    def mean(self, index: int, head: int) -> float | None:
        """0 = sink tokens, 1 = others."""
        return float(self.sums[index, head]) / self.counts[index] if self.counts[index] else None


def sink_output(
    weights: Float[Tensor, "batch head row key"], value: Float[Tensor, "batch kv key d_head"], sink: Bool[Tensor, "b k"]
) -> Float[Tensor, "batch head row d_head"]:
    """The part of each head's output that comes from sink keys."""
    groups = weights.shape[1] // value.shape[1]
    from_sink = weights.masked_fill(~sink[:, None, None], 0.0)
    return from_sink @ value.float().repeat_interleave(groups, dim=1)


def _norm(
    output: Float[Tensor, "batch head row d"], gram: Float[Tensor, "head d d"]
) -> Float[Tensor, "batch head row"]:
    """||W_O o|| from W_O^T W_O."""
    return ((output @ gram) * output).sum(-1).clamp_min(0).sqrt()
