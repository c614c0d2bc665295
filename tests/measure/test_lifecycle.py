"""The step rule on hand-made contributions."""

import pytest
import torch

from spikesink.measure.lifecycle import StepCriteria, StepResult, find_steps, main_step_up


def test_shares_and_steps_by_hand():
    # Two spike tokens of opposite sign, one channel: embedding 0, block 2 makes +-100, block 5 takes +-60 away.
    sign = torch.tensor([[1.0], [-1.0]]).double()
    writes = {1: 0.5 * sign, 2: 100 * sign, 3: -1 * sign, 4: 0 * sign, 5: -60 * sign, 6: -9 * sign}
    total, residuals = torch.zeros_like(sign), {}
    for block, write in writes.items():
        total = total + write
        residuals[block] = total
    result = find_steps(writes, residuals, verdict_block=2, criteria=StepCriteria())
    assert result.plateau == pytest.approx(100.5)
    assert result.shares[2] == pytest.approx(100 / 100.5)
    assert result.shares[5] == pytest.approx(-60 / 100.5)
    assert result.step_up == [2]
    assert result.step_down == [5]
    stricter = find_steps(writes, residuals, verdict_block=2, criteria=StepCriteria(share_min=0.05))
    assert stricter.step_down == [5, 6]


def test_a_late_rise_is_no_step_up():
    sign = torch.ones(1, 1).double()
    writes = {2: 100 * sign, 4: 30 * sign, 6: -20 * sign}
    residuals = {2: 100 * sign, 4: 130 * sign, 6: 110 * sign}
    assert find_steps(writes, residuals, 2, StepCriteria()).step_up == [2]
    assert find_steps(writes, residuals, 4, StepCriteria()).step_up == [2, 4]


@pytest.mark.parametrize(
    ("shares", "step_up", "block"),
    [
        ({2: 0.12, 4: 0.7, 6: 0.15}, [2, 4, 6], 4),
        ({3: 0.8, 4: 0.11, 6: 0.1}, [3, 4, 6], 4),
        ({4: 0.4, 8: 0.4}, [4, 8], 4),
        ({3: 0.9}, [3], None),
        ({}, [], None),
    ],
)
def test_the_main_step_up_is_the_ffn_with_the_largest_share(shares, step_up, block):
    """An attention block with a larger one has no s*; of equals, the first."""
    assert main_step_up(StepResult(shares=shares, plateau=1.0, step_up=step_up, step_down=[])) == block
    assert main_step_up(None) is None
