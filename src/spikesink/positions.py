"""Places of tokens in their sequence, padding not counted. For torch tensors and numpy arrays alike."""

from typing import Any


def ranks(valid: Any) -> Any:
    """Rank of every token among the real ones of its sequence, from 0; valid (..., token) bool, False = padding."""
    return valid.cumsum(-1) - 1


def first_half(valid: Any) -> Any:
    """Which tokens are in the first half of the real ones (at least one of them), of the shape of valid.

    Where a sink is looked for. Eq. 28 of Sun et al. 2026: keys t <= T / 2.
    """
    rank = ranks(valid)
    return valid & ((rank == 0) | (rank < valid.sum(-1)[..., None] // 2))
