"""Differences of two computations of the same thing, the tolerances for them, and the fixed inputs both are given."""

from dataclasses import dataclass

import torch
from torch import Tensor

PROBE_TOKENS = 16
PROBE_ROWS = 8


@dataclass(frozen=True)
class Tolerances:
    """Largest relative differences that rounding explains, in one dtype."""

    sums: float
    """Of writes that add up to the next residual, and of predictions that must not change."""
    attention: float
    """Of attention rebuilt by ours against the family's own eager one."""
    product: float
    """Of a block's own output against what its extracted weights give."""

    @property
    def forward(self) -> float:
        """Of extracted weights against a whole forward pass, which rounds at every product and not once."""
        return 10.0 * self.product


TOLERANCES = {
    torch.float64: Tolerances(sums=1e-9, attention=1e-6, product=1e-8),
    torch.float32: Tolerances(sums=1e-5, attention=1e-3, product=1e-4),
    torch.float16: Tolerances(sums=5e-3, attention=5e-2, product=1e-2),
    torch.bfloat16: Tolerances(sums=3e-2, attention=1.5e-1, product=3e-2),
}
"""By dtype; wide enough for another order of the same sums and for nothing else."""


def tolerances(dtype: torch.dtype) -> Tolerances:
    """Those of this dtype; of bfloat16, the coarsest, for one that is not listed."""
    return TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])


def difference(ours: Tensor, theirs: Tensor, valid: Tensor | None = None) -> float:
    """Largest over (valid) rows of ||ours - theirs|| / ||theirs||, in float64 so that a spike does not overflow."""
    ours, theirs = ours.double(), theirs.double()
    by_row = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-12)
    return float(by_row.max() if valid is None else by_row[valid].max())


def probe_ids(vocab_size: int, tokens: int = PROBE_TOKENS) -> Tensor:
    """The fixed pseudo-random ids (1, tokens) that models are verified on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (1, tokens), generator=generator)


def probe_rows(d_model: int, like: Tensor) -> Tensor:
    """Fixed random rows (PROBE_ROWS, d) of unequal lengths, a mean that is not zero, on the device of `like`."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBE_ROWS, d_model, generator=generator) * torch.linspace(0.5, 4.0, PROBE_ROWS)[:, None] + 0.3
    return rows.to(device=like.device, dtype=like.dtype)
