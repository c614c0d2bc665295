"""Where vectors point: cosines with one direction, and how strongly a linear map leads into it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

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
