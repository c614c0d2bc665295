"""Lower medians of magnitudes, exact, of many rows at once."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor


def row_medians(magnitude: Tensor) -> list[float]:
    """Lower median of each row's magnitudes that are not 0; exact. 0 where all are.

    magnitude (row, ...), contiguous. Exact zeros do not count: a channel that is zero throughout would pull the median,
    and with it every ratio to it, wherever one likes.
    """
    if magnitude.device.type != "cpu":
        return _medians_at_once(magnitude)
    return [_median(row.view(-1).numpy()) for row in magnitude]


def _medians_at_once(magnitude: Tensor) -> list[float]:
    """All rows in one call, which an accelerator is waited for once."""
    rows = magnitude.flatten(1)
    return rows.masked_fill(rows == 0, torch.nan).nanmedian(1).values.nan_to_num().tolist()


SAMPLED_FROM = 4000
"""Elements from which on a median is looked for near that of a sample of size ** (2 / 3) elements."""


def _median(values: np.ndarray) -> float:
    """Median of values (element,) that are not 0, found near that of a sample: three times as fast as among all."""
    zeros = int(np.count_nonzero(values == 0))
    if zeros == values.size:
        return 0.0
    middle = zeros + (values.size - zeros - 1) // 2
    below = 0
    if values.size >= SAMPLED_FROM:
        sample = np.sort(values[_drawn(values.size)])
        place, spread = middle / values.size * sample.size, 1.5 * math.sqrt(sample.size)
        low, high = (sample[min(max(0, round(at)), sample.size - 1)] for at in (place - spread, place + spread))
        lower = int(np.count_nonzero(values < low))
        near = values[(values >= low) & (values <= high)]
        # Three standard deviations of the sample: else it is looked for among all.
        if lower <= middle < lower + near.size:
            values, below = near, lower
    return float(np.partition(values, middle - below)[middle - below])


@cache
def _drawn(size: int) -> np.ndarray:
    """Places of the sample among that many elements; the same in every run."""
    return np.random.default_rng(0).integers(0, size, (round(size ** (2 / 3)),))
