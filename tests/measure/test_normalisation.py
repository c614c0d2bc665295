"""Streaming statistics of h~ against sums over explicit pairs."""

import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity

from spikesink.measure.normalisation import GroupStatistics, explained_by_others


def case(B=4, T=3, D=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(B, T, D, generator=generator)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    members = torch.rand(B, T, generator=generator) < 0.6
    members[0] = True
    return vectors, members, torch.randn(B, T, D, generator=generator)


def test_pairs_channels_and_persistence_by_hand():
    vectors, members, before = case()
    group = GroupStatistics([2, 5])
    for start in (0, 3):
        rows = slice(start, start + 3)
        group.update(vectors[rows], members[rows], before[rows])
    tokens = [(s, t) for s in range(4) for t in range(3) if members[s, t]]
    within, across = [], []
    for (s, t), (r, u) in itertools.combinations(tokens, 2):
        (within if s == r else across).append(float(vectors[s, t] @ vectors[r, u]))
    assert group.tokens == len(tokens)
    assert group.prompts == int(members.any(1).sum())
    assert group.cosine_within == pytest.approx(sum(within) / len(within), abs=1e-6)
    assert group.cosine_across == pytest.approx(sum(across) / len(across), abs=1e-6)
    shares = [float(vectors[s, t, 2] ** 2 + vectors[s, t, 5] ** 2) for s, t in tokens]
    assert group.energy_share == pytest.approx(sum(shares) / len(shares), rel=1e-5)
    ratios = [1 / float((vectors[s, t] ** 4).sum()) for s, t in tokens]
    assert group.participation_ratio == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    cosines = [float(cosine_similarity(vectors[s, t], before[s, t], dim=0)) for s, t in tokens]
    assert group.persistence == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    assert group.bound == pytest.approx(float(vectors[members].abs().max()))


def test_known_answers():
    one_hot = torch.zeros(2, 2, 5)
    one_hot[..., 3] = 1.0
    group = GroupStatistics([3])
    group.update(one_hot, torch.ones(2, 2, dtype=torch.bool))
    assert (group.energy_share, group.participation_ratio, group.bound) == (1.0, 1.0, 1.0)
    assert group.cosine_across == pytest.approx(1.0)
    assert group.persistence is None
    flat = torch.full((1, 1, 5), 5**-0.5)
    group = GroupStatistics([3])
    group.update(flat, torch.ones(1, 1, dtype=torch.bool))
    assert group.participation_ratio == pytest.approx(5.0, rel=1e-5)
    assert group.cosine_within is None
    assert group.cosine_across is None
    assert GroupStatistics([0]).energy_share is None


def test_explained_by_others_is_leave_one_prompt_out():
    generator = torch.Generator().manual_seed(1)
    counts = [2, 1, 3]
    prompts = [torch.randn(count, 5, generator=generator).double() + 2.0 for count in counts]
    error = energy = 0.0
    for index, prompt in enumerate(prompts):
        mean = torch.cat([other for i, other in enumerate(prompts) if i != index]).mean(0)
        error += float((prompt - mean).square().sum())
        energy += float(prompt.square().sum())
    sums = torch.stack([prompt.sum(0) for prompt in prompts])
    explained = explained_by_others(sums, torch.tensor(counts).double(), energy)
    assert explained == pytest.approx(1 - error / energy, rel=1e-9)
    assert explained_by_others(torch.ones(3, 5), torch.ones(3), 15.0) == pytest.approx(1.0)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert explained_by_others(opposite, torch.ones(2), 2.0) == pytest.approx(-3.0)
