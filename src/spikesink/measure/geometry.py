"""Geometry of keys and queries: effective rank, logit gaps, separability, a plane to draw them in. Spec section 3."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from spikesink.bootstrap import RESAMPLES, bounds
from spikesink.records.intervals import Interval

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


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Points (n, 2) in the plane of the two largest principal components, and the share of variance it holds.

    vectors (n, d), centred here. Each axis has its largest coordinate positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes[:2].T
    signs = np.sign(points[np.abs(points).argmax(0), np.arange(points.shape[1])])
    energy = values**2
    return points * np.where(signs == 0, 1, signs), float(energy[:2].sum() / max(energy.sum(), 1e-300))


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


RANDOM_DIRECTIONS = 64


def alignment(vectors: Float[Tensor, "token d"], direction: Float[Tensor, " d"]) -> float:
    """Mean |cos| of vectors with a direction; its sign has no meaning where the output is quadratic in it."""
    return float(functional.cosine_similarity(vectors, direction[None], dim=-1).abs().mean())


def map_gain(matrix: Float[Tensor, "d d"], direction: Float[Tensor, " d"]) -> float:
    """||s^T W|| sqrt(d) / ||W||_F for a unit vector s: 1 for a direction that the map treats as the average one."""
    unit = functional.normalize(direction, dim=0)
    return float((unit @ matrix).norm() * matrix.shape[0] ** 0.5 / matrix.norm().clamp_min(1e-30))


def random_gain(matrix: Float[Tensor, "d d"], count: int = RANDOM_DIRECTIONS, seed: int = 0) -> float:
    """The largest gain over random directions: the control of `map_gain`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, matrix.shape[0], generator=generator).to(matrix)
    return max(map_gain(matrix, direction) for direction in drawn)


def random_cosine(channels: int) -> float:
    """Mean |cos| of two random directions in d dimensions, about sqrt(2 / (pi d))."""
    return float(np.sqrt(2 / (np.pi * channels)))


def mean_cosine(vectors: Float[np.ndarray, "direction d"], seed: int = 0) -> Interval:
    """Mean |cos| over pairs of unit vectors, with a bootstrap interval over the vectors; None for fewer than two.

    A pair of a vector with its own copy in a resample does not count.
    """
    count = len(vectors)
    if count < 2:
        return Interval(value=None, low=None, high=None, n=count)
    cosines = np.abs(vectors @ vectors.T)
    value = float(cosines[np.triu_indices(count, 1)].mean())
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    # Copies of each vector in each resample: pairs of different ones are weighted by the product.
    copies = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
    np.fill_diagonal(cosines, 0.0)
    pairs = copies.sum(1) ** 2 - (copies**2).sum(1)
    means = np.einsum("ri,ij,rj->r", copies, cosines, copies)[pairs > 0] / pairs[pairs > 0]
    low, high = bounds(means) if count > 2 else (None, None)
    return Interval(value=value, low=low, high=high, n=count)
