"""The amplifier against the naive construction, planted known answers, and its invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from spikesink.measure.amplifier import (
    amplifier,
    channel_norms,
    fit,
    gate_identity,
    output,
    quadratic,
    rank_one,
    spectrum,
    symmetric_norm,
)
from spikesink.weights import GatedFFN


def random_ffn(d=7, d_ffn=11, seed=0, dtype=torch.float64, activation="silu"):
    generator = torch.Generator().manual_seed(seed)
    gate, up, down = (torch.randn(*shape, generator=generator) for shape in ((d_ffn, d), (d_ffn, d), (d, d_ffn)))
    return GatedFFN(gate.to(dtype), up.to(dtype), down.to(dtype), activation)


def naive_amplifiers(ffn):
    """Every U_k, (k, d, d), by the sum over hidden units that defines it. Eq. 16."""
    d_out, d_ffn = ffn.down.shape
    every = torch.zeros(d_out, ffn.d_model, ffn.d_model, dtype=torch.float64)
    for k in range(d_out):
        for i in range(d_ffn):
            every[k] += ffn.down[k, i].double() * torch.outer(ffn.gate[i].double(), ffn.up[i].double())
    return every


sizes = st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(0, 1000))


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 6))
@example((1, 9, 226), 1)
def test_the_closed_form_is_the_naive_norm(size, rows):
    """In float32 the square is as good as that of its terms added up without their signs: in one channel of d = 1 they
    may cancel nearly all."""
    d, d_ffn, seed = size
    ffn = random_ffn(d, d_ffn, seed)
    naive = naive_amplifiers(ffn).flatten(1).norm(dim=1)
    assert torch.allclose(channel_norms(ffn, rows=rows), naive, rtol=1e-9, atol=1e-9)
    single = ffn.to(torch.float32)
    terms = ffn.down.abs() @ (ffn.gate.norm(dim=1) * ffn.up.norm(dim=1))
    wrong = (channel_norms(single, rows=rows).double().square() - naive.square()).abs()
    assert bool((wrong <= 2e-6 * terms.square()).all())
    wide = channel_norms(single, accumulate=torch.float64, rows=rows)
    assert wide.dtype == torch.float64
    assert torch.allclose(wide, naive_amplifiers(single).flatten(1).norm(dim=1), rtol=1e-12, atol=1e-12)


def test_float32_is_good_to_1e5_at_real_sizes():
    ffn = random_ffn(96, 256, seed=3, dtype=torch.float32)
    naive = torch.stack([amplifier(ffn.to(torch.float64), k).norm() for k in range(96)])
    assert float(((channel_norms(ffn, rows=100).double() - naive) / naive).abs().max()) <= 1e-5


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_norms_do_not_depend_on_the_order_of_hidden_units(size):
    d, d_ffn, seed = size
    ffn = random_ffn(d, d_ffn, seed)
    order = torch.randperm(d_ffn, generator=torch.Generator().manual_seed(seed))
    permuted = GatedFFN(ffn.gate[order], ffn.up[order], ffn.down[:, order], "silu")
    assert torch.allclose(channel_norms(permuted), channel_norms(ffn), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(sizes, st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-10, 10))
def test_scaling_laws(size, gate, up, down):
    """The norm is linear in each of the three matrices, and blind to signs."""
    ffn = random_ffn(*size)
    scaled = GatedFFN(-gate * ffn.gate, up * ffn.up, down * ffn.down, "silu")
    assert torch.allclose(channel_norms(scaled), gate * up * abs(down) * channel_norms(ffn), rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_folding_gamma_is_exact(size):
    """Gamma in the columns or on the input: the same quadratic form and output."""
    d, d_ffn, seed = size
    ffn = random_ffn(d, d_ffn, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    gamma, hidden = torch.randn(d, generator=generator).double(), torch.randn(5, d, generator=generator).double()
    folded = GatedFFN(ffn.gate * gamma, ffn.up * gamma, ffn.down, "silu")
    for channel in range(d):
        assert torch.allclose(quadratic(folded, hidden, channel), quadratic(ffn, hidden * gamma, channel), rtol=1e-9)
        assert torch.allclose(output(folded, hidden, channel), output(ffn, hidden * gamma, channel), rtol=1e-9)
    assert torch.allclose(amplifier(folded, 0), gamma[:, None] * amplifier(ffn, 0) * gamma, rtol=1e-9)


def test_the_quadratic_form_by_explicit_sums():
    ffn = random_ffn(5, 3)
    hidden = torch.randn(2, 5, generator=torch.Generator().manual_seed(4)).double()
    every = naive_amplifiers(ffn)
    for channel in range(5):
        for token in range(2):
            expected = float(hidden[token] @ every[channel] @ hidden[token])
            assert float(quadratic(ffn, hidden, channel)[token]) == pytest.approx(expected, rel=1e-10)
    gate, up = hidden @ ffn.gate.T, hidden @ ffn.up.T
    assert torch.allclose(output(ffn, hidden, 2), (gate * torch.sigmoid(gate) * up) @ ffn.down[2])


def planted(d=130, d_ffn=150, channel=17, value=-40.0, seed=0, noise=1e-3):
    """An FFN whose channel has S_k = value s s^T but for noise: hidden unit 0 gates and lifts along s."""
    generator = torch.Generator().manual_seed(seed)
    direction = functional.normalize(torch.randn(d, generator=generator).double(), dim=0)
    gate, up = (noise * torch.randn(d_ffn, d, generator=generator).double() for _ in range(2))
    down = noise * torch.randn(d, d_ffn, generator=generator).double()
    gate[0], up[0] = 2.0 * direction, 5.0 * direction
    down[:, 0] = 0.0
    down[channel, 0] = value / 10.0
    return GatedFFN(gate, up, down, "silu"), direction


@pytest.mark.parametrize("dense", [False, True])
def test_a_planted_amplifier_gives_back_its_value_direction_and_channel(dense):
    ffn, direction = planted()
    norms = channel_norms(ffn)
    assert int(norms.argmax()) == 17
    assert float(norms[17]) == pytest.approx(40.0, rel=1e-3)
    assert float(norms.median()) < 0.1
    values, vectors = spectrum(ffn, 17, 4, dense=dense)
    assert values[0] == pytest.approx(-40.0, rel=1e-3)
    assert np.abs(values[1:]).max() < 0.1
    assert abs(float(vectors[0] @ direction.numpy())) == pytest.approx(1.0, abs=1e-5)
    assert values[0] ** 2 / symmetric_norm(ffn, 17) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_a_planted_amplifier_predicts_its_output():
    """Along s with a large gate, the channel is lambda* d cos^2: the erratum's form, not lambda* sqrt(d) cos."""
    ffn, direction = planted(noise=0.0)
    d = ffn.d_model
    cosines = torch.tensor([0.5, 0.8, 1.0]).double()
    other = torch.randn(d, generator=torch.Generator().manual_seed(9)).double()
    other = functional.normalize(other - (other @ direction) * direction, dim=0)
    hidden = math.sqrt(d) * (cosines[:, None] * direction + (1 - cosines**2).sqrt()[:, None] * other)
    values, vectors = spectrum(ffn, 17, 2)
    predicted = rank_one(float(values[0]), torch.from_numpy(vectors[0]), hidden)
    assert torch.allclose(predicted, -40.0 * d * cosines**2, rtol=1e-6)
    true = output(ffn, hidden, 17)
    assert torch.allclose(predicted, true, rtol=1e-2)
    result = fit(predicted.numpy(), true.numpy())
    assert result.ratio == pytest.approx(1.0, abs=0.01)
    assert result.r2 == pytest.approx(1.0, abs=0.01)
    cosine, norm_ratio = gate_identity(ffn, hidden)
    assert cosine == pytest.approx(np.ones(3), abs=1e-6)
    assert norm_ratio == pytest.approx(np.ones(3), abs=1e-2)
    _, against = gate_identity(ffn, -hidden)
    assert against.max() < 0.01


def test_lanczos_agrees_with_the_dense_spectrum():
    ffn = random_ffn(120, 140, seed=5)
    for channel in (0, 60):
        values, vectors = spectrum(ffn, channel, 6)
        exact_values, exact_vectors = spectrum(ffn, channel, 6, dense=True)
        assert values == pytest.approx(exact_values, rel=1e-6)
        assert np.abs((vectors * exact_vectors).sum(1)) == pytest.approx(np.ones(6), abs=1e-6)
        full = naive_amplifiers(ffn)[channel].numpy()
        residual = (full + full.T) / 2 @ vectors[0] - values[0] * vectors[0]
        assert np.abs(residual).max() < 1e-4
        assert symmetric_norm(ffn, channel) == pytest.approx(float(np.linalg.norm((full + full.T) / 2)), rel=1e-9)


def test_a_fit_by_hand():
    result = fit(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    assert result.ratio == pytest.approx(7 / 6)
    assert result.r2 == pytest.approx(1 - 1 / 2)
    assert fit(np.array([]), np.array([])).ratio is None
    assert fit(np.array([1.0]), np.array([2.0])).r2 is None


def test_identity_and_ordinary_gates_differ():
    ffn = random_ffn(31, 37, seed=8)
    hidden = torch.randn(6, 31, generator=torch.Generator().manual_seed(2)).double()
    cosines, ratios = gate_identity(ffn, hidden)
    gate = hidden @ ffn.gate.T
    for token in range(6):
        activated = gate[token] * torch.sigmoid(gate[token])
        cosine = float(activated @ gate[token] / activated.norm() / gate[token].norm())
        assert cosines[token] == pytest.approx(cosine, rel=1e-9)
        assert ratios[token] == pytest.approx(float(activated.norm() / gate[token].norm()), rel=1e-9)
    assert cosines.max() < 0.95
