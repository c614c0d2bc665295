"""A forward pass that ends after a block shows exactly what a whole one shows up to there."""

import pytest
import torch
from tiny import FAMILIES, VARIANTS, tiny, token_ids

from spikesink.access import access, full_batch, observing, run
from spikesink.access.capture import run_until


class Keep:
    def __init__(self):
        self.residuals = {}

    def on_residual(self, block, hidden):
        self.residuals[block] = hidden.clone()


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
@pytest.mark.parametrize("block", [1, 4])
def test_the_residuals_up_to_the_block(family, block):
    accessed = access(tiny(family))
    batch = full_batch(token_ids())
    early, whole = Keep(), Keep()
    with observing(accessed, [whole]):
        run(accessed, batch)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in accessed.model.modules())
    with observing(accessed, [early]):
        run_until(accessed, batch, block)
    last = 2 if accessed.parallel and block == 1 else block
    assert max(early.residuals) == last
    for seen, residual in early.residuals.items():
        assert torch.equal(residual, whole.residuals[seen])
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in accessed.model.modules())
    with observing(accessed, [early]):
        run(accessed, batch)
    assert max(early.residuals) == 6


def test_a_block_outside_the_model_is_refused():
    with pytest.raises(ValueError, match="expected 1 to 6"):
        run_until(access(tiny("llama")), full_batch(token_ids()), 7)
