"""Where vectors point: cosines with one direction, and how strongly a linear map leads into it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spikesink.bootstrap import RESAMPLES, bounds
from spikesink.records.anatomy import Interval

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
