"""Geometry of keys and queries: effective rank, logit gaps, separability, a plane to draw them in. Spec section 3."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

ENERGY = 0.99


def effective_rank(vectors: Float[Tensor, "n d"]) -> float:
    """exp of the entropy of the singular values as shares, not centred; r for r equal ones. Roy & Vetterli 2007."""
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def energy_rank(vectors: Float[Tensor, "n d"], share: float = ENERGY) -> int:
    """Fewest directions that hold this share of the squared norm, not centred."""
    energy = torch.linalg.svdvals(vectors.double()).square()
    reached = energy.cumsum(0) / energy.sum().clamp_min(1e-300)
    return int((reached < share - 1e-12).sum()) + 1


def column_parts(
    hidden: Float[Tensor, "n d"], weight: Float[Tensor, "row d"], count: int
) -> tuple[list[int], list[float]]:
    """Keys W_K h~ as sums of columns of W_K: the channels whose parts have most energy, and what they explain. Eq. 26.

    explained: by the first one, two, ... `count` channels, 1 - ||k - parts||^2 / ||k||^2 over all n keys together.
    """
    hidden, weight = hidden.double(), weight.double()
    keys = hidden @ weight.T
    order = (hidden.square().sum(0) * weight.square().sum(0)).argsort(descending=True, stable=True)[:count]
    parts = torch.zeros_like(keys)
    explained = []
    for channel in order:
        parts += hidden[:, channel, None] * weight[:, channel]
        explained.append(1 - float((keys - parts).square().sum() / keys.square().sum().clamp_min(1e-300)))
    return order.tolist(), explained


def separability(
    train_one: np.ndarray, train_other: np.ndarray, test_one: np.ndarray, test_other: np.ndarray
) -> float | None:
    """How well the difference of the training means separates the test vectors, as the area under the ROC curve.

    All (n, d). 0.5 = not at all, 1 = entirely; None where a set is empty.
    """
    if min(len(train_one), len(train_other), len(test_one), len(test_other)) == 0:
        return None
    direction = train_one.mean(0) - train_other.mean(0)
    one, other = test_one @ direction, test_other @ direction
    ordered = np.sort(other)
    below = np.searchsorted(ordered, one, side="left")
    upto = np.searchsorted(ordered, one, side="right")
    return float(((below + upto) / 2).mean() / len(other))


@dataclass(frozen=True)
class Plane:
    """Points in the plane of the two largest principal components, and the share of variance it holds."""

    points: np.ndarray
    explained: float


def principal_plane(vectors: np.ndarray) -> Plane:
    """vectors (n, d), centred here; points (n, 2). Each axis has its largest coordinate positive."""
    centred = vectors.astype(np.float64) - vectors.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes[:2].T
    signs = np.sign(points[np.abs(points).argmax(0), np.arange(points.shape[1])])
    energy = values**2
    return Plane(points * np.where(signs == 0, 1, signs), float(energy[:2].sum() / max(energy.sum(), 1e-300)))


@dataclass
class GapSums:
    """Sums over queries per head, (head,) float64."""

    count: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, values: Float[Tensor, "batch head row"], counted: Bool[Tensor, "batch row"]) -> None:
        total = (values.double() * counted[:, None]).sum((0, 2)).cpu()
        self.sums[name] = self.sums.get(name, 0.0) + total

    def mean(self, name: str, head: int) -> float:
        return float(self.sums[name][head]) / self.count


def add_gaps(
    sums: GapSums,
    content: Float[Tensor, "batch head row key"],
    rotated: Float[Tensor, "batch head row key"],
    cosine: Float[Tensor, "batch head row key"],
    sink: Bool[Tensor, "batch row key"],
    other: Bool[Tensor, "batch row key"],
    counted: Bool[Tensor, "batch row"],
) -> None:
    """Logits of the sink less the mean of the others', per query; queries need both kinds of key.

    content: scaled q.k before the rotary embedding; rotated: after it; their difference is the effect of distance.
    sink, other: the keys that a query sees, by kind.
    """
    counted = counted & sink.any(-1) & other.any(-1)
    sums.count += float(counted.sum())

    def over(values: Tensor, keys: Tensor) -> Tensor:
        mask = keys[:, None]
        return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)

    gap = over(rotated, sink) - over(rotated, other)
    content_gap = over(content, sink) - over(content, other)
    sums.add("gap", gap, counted)
    sums.add("square", gap.square(), counted)
    sums.add("content", content_gap, counted)
    sums.add("positive", (gap > 0).float(), counted)
    sums.add("cosine_sink", over(cosine, sink), counted)
    sums.add("cosine_other", over(cosine, other), counted)
