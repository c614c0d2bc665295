"""Positions of tokens in their sequence without padding (torch or numpy), and of blocks in their layer."""

from collections.abc import Iterable
from functools import cache
from statistics import mean
from typing import Any

import numpy as np


def ranks(valid: Any) -> Any:
    """Rank of every token among the real ones of its sequence, from 0; valid (..., token) bool, False = padding."""
    return valid.cumsum(-1) - 1


def half_of(tokens: Any) -> Any:
    """How many of so many tokens are the first half of them, at least one; a number or an array of them."""
    return tokens // 2 + (tokens < 2)


def first_half(valid: Any) -> Any:
    """Which tokens are in the first half of the real ones (at least one of them), of the shape of valid.

    Where a sink is looked for. Eq. 28 of Sun et al. 2026: keys t <= T / 2.
    """
    return valid & (ranks(valid) < half_of(valid.sum(-1)[..., None]))


@cache
def uniform_first_key(tokens: int) -> float:
    """alpha_1 of a head that attends uniformly to the keys it sees: (1/T) sum_t 1/t."""
    return float(np.mean(1.0 / np.arange(1, tokens + 1)))


def mean_uniform_first_key(lengths: Iterable[int]) -> float:
    """The same averaged over sequences of these lengths: far more than that of the longest where some are short."""
    # Exact fractions: sequences of one length give what one of them gives, to the last digit.
    return mean(map(uniform_first_key, lengths))


def block_kind(block: int) -> str:
    """Odd blocks are attention, even ones feed-forward, as in the paper."""
    return "attention" if block % 2 else "FFN"


def layer_of(block: int) -> int:
    """The layer, counted from 0 as in `model.layers`, that a block (counted from 1) is half of."""
    return (block - 1) // 2


def placed(block: int, kind: str | None = None) -> str:
    """24 (layer 11, FFN); 23 (layer 11, mixer) where the block's kind is that of a hybrid model's recurrence."""
    return f"{block} (layer {layer_of(block)}, {kind if kind == 'mixer' else block_kind(block)})"
