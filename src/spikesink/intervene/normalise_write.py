"""A post-norm on the step-up block only."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.base import Context, Found, intervention, seeded

CONTROL = "random_block"


@intervention("spikes", controls=(CONTROL,))
def normalise_write(accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0) -> Context:
    """Normalise what the step-up block writes: every token's write gets the median token's root mean square.

    A sandwich norm without learned scale (Sun et al. 2026, table 5), put on one block of a finished model. Control: the
    same on a random other block of the same kind.
    """
    block = found.step_up_block
    if block is None:
        raise DoesNotApplyError("no single block makes the spikes")
    if control == CONTROL:
        others = [other for other in range(2 - block % 2, accessed.n_blocks + 1, 2) if other != block]
        if not others:
            raise DoesNotApplyError("the model has no other block of this kind")
        block = others[int(torch.randint(0, len(others), (1,), generator=seeded(seed)))]
    return editing(accessed, WriteNorm(block))


class WriteNorm:
    """Rescales one block's write per token."""

    def __init__(self, block: int) -> None:
        self.block = block

    def edit_write(self, block: int, write: Tensor) -> Tensor:
        if block != self.block:
            return write
        rms = write.float().pow(2).mean(-1, keepdim=True).sqrt()
        typical = rms.median(dim=1, keepdim=True).values
        return write * (typical / rms.clamp_min(1e-12)).to(write)
