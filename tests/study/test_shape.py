"""The shape of a spike on tensors made by hand: two sequences of five tokens, four channels."""

import pytest
import torch

from spikesink.study.shape import SpikeShape


def planted():
    hidden = torch.ones(2, 5, 4)
    hidden[0, 0] = torch.tensor([40.0, 1.0, -1.0, 2.0])
    hidden[1, 3] = torch.tensor([1.0, -20.0, 1.0, 3.0])
    return hidden


def test_by_hand():
    shape = SpikeShape()
    shape.on_residual(0, 1000 * planted())
    shape.on_residual(1, 0.5 * planted())
    # In two batches, as a pass would hand them over.
    shape.on_residual(2, planted()[:1])
    shape.on_residual(2, planted()[1:])
    values = shape.compute()
    assert values["spike_max_over_median"] == pytest.approx(40)
    # Medians within the tokens are the lower of the middle two: 1 and 1.
    assert values["within_token"] == pytest.approx((40 + 20) / 2)
    first, second = 40**2 + 1 + 1 + 4, 20**2 + 1 + 1 + 9
    assert values["top3_energy"] == pytest.approx((1 - 1 / first + 1 - 1 / second) / 2)
    assert values["norm_ratio"] == pytest.approx((first**0.5 / 2 + second**0.5 / 2) / 2)
    assert values["bos_over_rest"] == pytest.approx((40 / 1 + 1 / 20) / 2)
    assert values["sequence_tokens"] == 5


def test_a_scale_changes_nothing():
    one, tenth = SpikeShape(), SpikeShape()
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 9)
    one.on_residual(1, hidden)
    tenth.on_residual(1, hidden / 10)
    assert tenth.compute() == pytest.approx(one.compute(), rel=1e-5)


def test_zeros_stay_finite():
    shape = SpikeShape()
    hidden = torch.zeros(1, 3, 4)
    hidden[0, 1, 2] = 5.0
    shape.on_residual(1, hidden)
    assert all(value < float("inf") for value in shape.compute().values())
