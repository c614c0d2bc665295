"""The spike of every sequence by itself, for intervals over sequences. Spec section 2."""

import torch
from torch import Tensor

from spikesink.measure.spikes import median_magnitude
from spikesink.observer import Batch, Observer


class SequenceSpikes(Observer):
    """Observer of residuals: per sequence the largest magnitude, that on the plateau, the largest ratio to a median.

    plateau: the first and the last block of the plateau, between a spike's step-up and its step-down block; None =
    every block.
    """

    def __init__(self, plateau: tuple[int, int] | None = None) -> None:
        self.plateau = plateau
        self.plateaus: list[float] = []
        """Largest magnitude over the plateau's blocks, tokens and channels, by sequence."""
        self.largest: list[float] = []
        """Largest magnitude over blocks, tokens and channels, by sequence."""
        self.plateau_ratios: list[float] = []
        """Largest over the plateau's blocks of (largest magnitude / median magnitude of that block), by sequence."""
        self.ratios: list[float] = []
        """Largest over blocks of (largest magnitude / median magnitude of that block), by sequence."""
        self.norm_ratios: list[float] = []
        """Largest norm of a token over the median token's, after the first block of the plateau, by sequence; empty
        without a plateau."""
        self._first = 0

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._first = len(self.largest)
        self.largest += [0.0] * len(batch.valid)
        self.ratios += [0.0] * len(batch.valid)
        self.plateaus += [0.0] * len(batch.valid)
        self.plateau_ratios += [0.0] * len(batch.valid)

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:
            return
        on_plateau = self.plateau is None or self.plateau[0] <= block <= self.plateau[1]
        magnitude = hidden.abs() if hidden.dtype == torch.float64 else hidden.float().abs()
        for row in range(len(hidden)):
            kept = magnitude[row, self.batch.valid[row].to(magnitude.device)]
            largest, median = float(kept.max()), median_magnitude(kept)
            index = self._first + row
            self.largest[index] = max(self.largest[index], largest)
            ratio = largest / median if median > 0 else 0.0
            if on_plateau:
                self.plateaus[index] = max(self.plateaus[index], largest)
                self.plateau_ratios[index] = max(self.plateau_ratios[index], ratio)
            self.ratios[index] = max(self.ratios[index], ratio)
            if self.plateau is not None and block == self.plateau[0]:
                norms = kept.norm(dim=-1)
                self.norm_ratios.append(float(norms.max() / norms.median().clamp_min(torch.finfo(norms.dtype).tiny)))
