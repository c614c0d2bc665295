"""Ranks of planted keys, gaps by loops, separability and the plane by known answers."""

import numpy as np
import pytest
import torch

from spikesink.measure.geometry import (
    GapSums,
    add_gaps,
    column_parts,
    effective_rank,
    energy_rank,
    principal_plane,
    separability,
)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_planted_keys_of_a_rank_give_it(rank):
    generator = torch.Generator().manual_seed(rank)
    axes = torch.linalg.qr(torch.randn(9, 9, generator=generator).double())[0][:rank]
    keys = axes.repeat(4, 1) * 3.0
    assert effective_rank(keys) == pytest.approx(rank, rel=1e-6)
    assert energy_rank(keys) == rank
    mixed = torch.randn(40, rank, generator=generator).double() @ axes
    assert energy_rank(mixed, 1 - 1e-9) == rank
    assert 1 - 1e-6 <= effective_rank(mixed) <= rank + 1e-6


def test_rank_of_unequal_directions_by_hand():
    keys = torch.diag(torch.tensor([3.0, 1.0]))
    shares = np.array([0.75, 0.25])
    assert effective_rank(keys) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))
    assert energy_rank(keys, 0.9) == 1
    assert energy_rank(keys, 0.91) == 2


def test_keys_as_sums_of_columns_by_hand():
    """Channel 2 brings (6, 0), channel 0 brings (0, 4) or (0, -4), channel 1 little."""
    weight = torch.tensor([[0.0, 0.1, 3.0], [2.0, 0.0, 0.0]])
    hidden = torch.tensor([[2.0, 1.0, 2.0], [-2.0, -1.0, 2.0]])
    channels, explained = column_parts(hidden, weight, 3)
    assert channels == [2, 0, 1]
    energy = (6.1**2 + 4**2) + (5.9**2 + 4**2)
    assert explained == pytest.approx([1 - (2 * 0.1**2 + 2 * 16) / energy, 1 - 2 * 0.1**2 / energy, 1.0], rel=1e-6)
    assert column_parts(hidden, weight, 1)[0] == [2]


def test_gaps_by_explicit_loops():
    B, H, R, K = 2, 3, 4, 6
    generator = torch.Generator().manual_seed(0)
    content, rotated, cosine = (torch.randn(B, H, R, K, generator=generator) for _ in range(3))
    visible = torch.ones(R, K, dtype=torch.bool).tril(2)[None].expand(B, R, K)
    sink_keys = torch.zeros(B, 1, K, dtype=torch.bool)
    sink_keys[0, 0, 0] = sink_keys[0, 0, 2] = sink_keys[1, 0, 5] = True
    counted = torch.ones(B, R, dtype=torch.bool)
    counted[0, 1] = False
    sums = GapSums()
    add_gaps(sums, content, rotated, cosine, visible & sink_keys, visible & ~sink_keys, counted)
    expected = {name: [0.0] * H for name in ("gap", "content", "positive", "square", "cosine_sink")}
    count = 0
    for b in range(B):
        for r in range(R):
            sinks = [k for k in range(K) if visible[b, r, k] and sink_keys[b, 0, k]]
            others = [k for k in range(K) if visible[b, r, k] and not sink_keys[b, 0, k]]
            if not (counted[b, r] and sinks and others):
                continue
            count += 1
            for h in range(H):

                def gap(values, b=b, h=h, r=r, sinks=sinks, others=others):
                    return float(values[b, h, r, sinks].mean() - values[b, h, r, others].mean())

                expected["gap"][h] += gap(rotated)
                expected["square"][h] += gap(rotated) ** 2
                expected["content"][h] += gap(content)
                expected["positive"][h] += gap(rotated) > 0
                expected["cosine_sink"][h] += float(cosine[b, h, r, sinks].mean())
    assert sums.count == count == 4
    for name, numbers in expected.items():
        for h in range(H):
            assert sums.mean(name, h) == pytest.approx(numbers[h] / count, rel=1e-5, abs=1e-6), name


def test_separability_of_apart_and_of_same():
    generator = np.random.default_rng(0)
    one, other = generator.normal(3, 1, (60, 5)), generator.normal(-3, 1, (80, 5))
    assert separability(one[:30], other[:40], one[30:], other[40:]) == 1.0
    assert separability(other[:30], one[:30], one[30:], other[40:]) == 0.0
    same = generator.normal(0, 1, (2000, 5))
    halves = separability(same[:500], same[500:1000], same[1000:1500], same[1500:])
    assert halves == pytest.approx(0.5, abs=0.06)
    assert separability(one[:0], other, one, other) is None
    line = np.array([[0.0], [1.0]])
    assert separability(line[1:], line[:1], np.array([[1.0], [0.0]]), np.array([[0.0], [2.0]])) == pytest.approx(
        1.5 / 4
    )


def test_a_plane_holds_planted_points():
    generator = np.random.default_rng(1)
    axes = np.linalg.qr(generator.normal(size=(6, 6)))[0][:2]
    flat = generator.normal(size=(20, 2)) * [5.0, 1.0]
    points, explained = principal_plane(flat @ axes + 7.0)
    assert explained == pytest.approx(1.0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances == pytest.approx(np.linalg.norm(flat[:, None] - flat[None], axis=-1), abs=1e-9)
    assert np.var(points[:, 0]) > np.var(points[:, 1])
