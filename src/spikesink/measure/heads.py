"""What each head does with its sink: mass, reach of what is left, entropy, values and writes. Spec section 3.

Streams over row blocks of queries; never a T x T map. A query counts if it is no sink token and sees
a key that is none.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spikesink.observer import AttentionInputs, AttentionRows, Batch, Observer
from spikesink.positions import ranks

REST_MIN = 1e-6
"""A query with less attention outside the sink is left out of what divides by that; counts say of how many it is."""


class WithinPosition:
    """Pearson's correlation of two quantities over queries at the same place of their sequence, by head.

    Sums by head and position (head, position) in float64: differences between positions, to which attention mass and
    distance are tied anyway, do not count.
    """

    def __init__(self, heads: int) -> None:
        self.sums = torch.zeros(6, heads, 0, dtype=torch.float64)

    def add(
        self,
        position: Int[Tensor, "batch row"],
        one: Float[Tensor, "batch head row"],
        other: Float[Tensor, "batch head row"],
        counted: Bool[Tensor, "batch head row"],
    ) -> None:
        weight, one, other = counted.double(), one.double(), other.double()
        parts = weight * torch.stack([torch.ones_like(one), one, other, one * one, other * other, one * other])
        places = position.clamp(min=0).flatten().cpu()
        missing = int(places.max()) + 1 - self.sums.shape[2]
        if missing > 0:
            self.sums = torch.nn.functional.pad(self.sums, (0, missing))
        self.sums.index_add_(2, places, parts.transpose(1, 2).flatten(2).cpu())

    def correlation(self, head: int) -> float | None:
        """None where one of the two does not vary at any position."""
        count, one, other, squares, other_squares, products = self.sums[:, head]
        count = count.clamp(min=1)
        spread = float((squares - one**2 / count).sum()), float((other_squares - other**2 / count).sum())
        # What is left of squares that cancel is rounding.
        if spread[0] <= 1e-12 * float(squares.sum()) or spread[1] <= 1e-12 * float(other_squares.sum()):
            return None
        return float((products - one * other / count).sum()) / (spread[0] * spread[1]) ** 0.5


@dataclass
class TraceSums:
    """Sums over queries by quantity and head, float64; `gram` (head, d_head, d_head) is W_O^T W_O of each, or None."""

    heads: int
    gram: Tensor | None
    count: float = 0.0
    """Queries, of every head alike."""
    uniform: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Queries that each sum is over, (head,)."""
    with_mass: dict[str, WithinPosition] = field(default_factory=dict)
    """Correlation of the sink's mass with `write` and `distance`."""

    def add(self, name: str, values: Tensor, counted: Tensor) -> None:
        """values, counted (batch, head, row)."""
        for kept, tensor in ((self.sums, values.double() * counted), (self.counts, counted.double())):
            total = tensor.sum((0, 2)).cpu()
            kept[name] = kept[name] + total if name in kept else total

    def mean(self, name: str, head: int) -> float | None:
        """None where no query counts, or the quantity is not measured."""
        if name not in self.sums or not self.counts[name][head]:
            return None
        return float(self.sums[name][head] / self.counts[name][head])


class HeadMeasure(Observer):
    """Observer of attention rows.

    sinks: (sequence, token) bool, the sink tokens. grams: per block W_O^T W_O of each head (head, d_head, d_head) in
    float32, so that the norm of a head's write is sqrt(o^T G o); blocks that are missing get no write norms.
    """

    def __init__(self, sinks: Tensor, grams: dict[int, Tensor]) -> None:
        self.sinks, self.grams = sinks, grams
        self.blocks: dict[int, TraceSums] = {}
        self.values: dict[int, ValueNorms] = {}

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._sink = self.sinks[batch.rows].to(batch.valid.device)
        self._ranks = ranks(batch.valid)

    def on_attention(self, inputs: AttentionInputs) -> None:
        groups = inputs.query.shape[1] // inputs.key.shape[1]
        norms = inputs.value.float().norm(dim=-1).repeat_interleave(groups, dim=1)
        valid, sink = self.batch.valid.to(norms.device), self._sink.to(norms.device)
        self.values.setdefault(inputs.block, ValueNorms(norms.shape[1])).update(norms, valid, sink)

    def on_attention_rows(self, rows: AttentionRows) -> None:
        weights = rows.weights
        block = self.blocks.setdefault(rows.block, TraceSums(weights.shape[1], self.grams.get(rows.block)))
        sink = self._sink[:, rows.keys].to(weights.device)
        positions = [torch.arange(span.start, span.stop, device=weights.device) for span in (rows.queries, rows.keys)]
        distance = positions[0][:, None] - positions[1]
        seen = rows.seen & ~sink[:, None]
        others = seen.sum(-1)
        queries = (self.batch.valid & ~self._sink)[:, rows.queries].to(weights.device) & (others > 0)
        uniform = (seen * distance).sum(-1) / others.clamp(min=1)
        block.count += float(queries.sum())
        block.uniform += float((uniform * queries).sum(dtype=torch.float64))
        self._trace(block, rows, sink, distance, queries[:, None].expand(weights.shape[:3]))

    def _trace(self, block: TraceSums, rows: AttentionRows, sink: Tensor, distance: Tensor, counted: Tensor) -> None:
        rest = rows.weights * (~sink)[:, None, None].to(rows.weights.dtype)
        real = rest.sum(-1)
        mass = rows.weights.sum(-1) - real
        some = counted & (real > REST_MIN)
        reach = (rest * distance).sum(-1)
        block.add("mass", mass, counted)
        block.add("entropy", torch.special.entr(rows.weights).sum(-1), counted)
        block.add("distance", reach / real.clamp_min(REST_MIN), some)
        block.add("reach_mass", reach, counted)
        self._with_mass(block, "distance", rows, mass, reach / real.clamp_min(REST_MIN), some)
        if block.gram is None:
            return
        gram = block.gram.to(rows.output.device)
        write, without, left = *_outputs(rows, rest), real
        if rows.virtual_mass is not None:
            left = left + rows.virtual_mass
        norm = _norm(write, gram)
        block.add("write", norm, counted)
        block.add("without", _norm(without, gram), counted)
        renormalised = _norm(without / left.clamp_min(REST_MIN)[..., None], gram)
        block.add("renormalised", renormalised, counted & (left > REST_MIN))
        self._with_mass(block, "write", rows, mass, norm, counted)

    def _with_mass(
        self, block: TraceSums, name: str, rows: AttentionRows, mass: Tensor, other: Tensor, counted: Tensor
    ) -> None:
        within = block.with_mass.setdefault(name, WithinPosition(block.heads))
        within.add(self._ranks[:, rows.queries], mass, other, counted)


def _outputs(rows: AttentionRows, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Each head's output and what of it does not come from the sink, (batch, head, row, d_head), float32."""
    value = rows.value.float().repeat_interleave(rest.shape[1] // rows.value.shape[1], dim=1)
    output, without = rows.output.float(), rest @ value
    if rows.virtual_mass is not None:
        # What virtual keys give is in the output only.
        without = without + output - rows.weights @ value
    return output, without


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
    from_sink = weights * sink[:, None, None].to(weights.dtype)
    return from_sink @ value.float().repeat_interleave(groups, dim=1)


def _norm(
    output: Float[Tensor, "batch head row d"], gram: Float[Tensor, "head d d"]
) -> Float[Tensor, "batch head row"]:
    """||W_O o|| from W_O^T W_O."""
    return ((output @ gram) * output).sum(-1).clamp_min(0).sqrt()
