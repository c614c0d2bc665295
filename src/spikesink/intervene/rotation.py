"""An orthogonal rotation that spreads single large channels over all: Hadamard, as the field's usual remedy."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """x -> x Q on the last dimension, Q the Kronecker product of an orthogonal cosine transform and a Hadamard matrix.

    The Hadamard matrix is the largest that divides the width; the rest is 1 x 1 for a power of two. As in QuaRot, 2024.
    """

    cosine: Tensor
    hadamard: Tensor

    @classmethod
    def of(cls, width: int) -> "Rotation":
        """The rotation of vectors of this width."""
        power = width & -width
        return cls(
            cosine=torch.from_numpy(dct(np.eye(width // power), norm="ortho")).float(),
            hadamard=torch.from_numpy(hadamard(power) / np.sqrt(power)).float(),
        )

    def __call__(self, vectors: Tensor) -> Tensor:
        """Rotated vectors (..., width), in float32 at least."""
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        cosine, spread = self.cosine.to(vectors.device, dtype), self.hadamard.to(vectors.device, dtype)
        parts = vectors.to(dtype).unflatten(-1, (len(cosine), len(spread)))
        return (cosine.T @ (parts @ spread)).flatten(-2)
