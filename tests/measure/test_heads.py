"""Head traces against explicit loops, and a planted head of known reach."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spikesink.access import full_batch
from spikesink.measure.heads import HeadMeasure, WithinPosition, sink_output
from spikesink.observer import AttentionInputs, AttentionRows

B, H, KV, T, D, MODEL = 2, 4, 2, 7, 3, 11


def rows_of(weights, value, step=3, block=1):
    """The attention rows that capture would show, a few queries at a time."""
    queries = weights.shape[2]
    output = weights @ value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        visible = torch.ones(queries, queries, dtype=torch.bool).tril()[None, None, start:stop, :stop]
        yield AttentionRows(
            block=block, query_start=start, query_stop=stop, key_start=0, total_queries=queries,
            weights=weights[:, :, start:stop, :stop], value=value[:, :, :stop], output=output[:, :, start:stop],
            visible_rows=lambda visible=visible: visible, virtual_mass=None,
        )  # fmt: skip


def measured(weights, value, sinks, grams=None):
    measure = HeadMeasure(sinks, grams or {})
    measure.on_batch(full_batch(torch.zeros(weights.shape[0], weights.shape[2], dtype=torch.long)))
    query = torch.empty((*weights.shape[:3], 1))
    measure.on_attention(AttentionInputs(1, query, value, value, scaling=1.0, softcap=None, visible_counts=Tensor))
    for rows in rows_of(weights, value):
        measure.on_attention_rows(rows)
    return measure


def attention(seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(B, H, T, T, generator=generator).masked_fill(
        ~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf
    )
    return scores.softmax(-1), torch.randn(B, KV, T, D, generator=generator)


def test_traces_by_explicit_loops():
    weights, value = attention()
    sinks = torch.zeros(B, T, dtype=torch.bool)
    sinks[:, 0] = sinks[1, 3] = True
    projection = torch.randn(MODEL, H, D, generator=torch.Generator().manual_seed(3))
    gram = torch.einsum("mhi,mhj->hij", projection, projection)
    measure = measured(weights, value, sinks, {1: gram})
    sums = measure.blocks[1]
    queries = [(b, t) for b in range(B) for t in range(1, T) if not sinks[b, t]]
    assert sums.count == len(queries)
    others = {(b, t): [k for k in range(t + 1) if not sinks[b, k]] for b, t in queries}
    uniform = [sum(t - k for k in keys) / len(keys) for (_, t), keys in others.items()]
    assert sums.uniform == pytest.approx(sum(uniform), rel=1e-6)
    for h in range(H):
        mass = distance = entropy = write = without = renormalised = by_mass = 0.0
        for b, t in queries:
            row = weights[b, h, t].double()
            out = sum(row[k] * value[b, h // 2, k].double() for k in range(t + 1))
            rest = sum(row[k] * value[b, h // 2, k].double() for k in range(t + 1) if not sinks[b, k])
            left = sum(float(row[k]) for k in range(t + 1) if not sinks[b, k])
            reach = sum(float(row[k]) * (t - k) for k in range(t + 1) if not sinks[b, k])
            mass += sum(float(row[k]) for k in range(t + 1) if sinks[b, k])
            distance, by_mass = distance + reach / left, by_mass + reach
            entropy -= sum(float(row[k]) * float(row[k].log()) for k in range(t + 1))
            matrix = projection[:, h].double()
            write += float((matrix @ out).norm())
            without += float((matrix @ rest).norm())
            renormalised += float((matrix @ rest).norm()) / left
        expected = {"mass": mass, "distance": distance, "entropy": entropy, "write": write, "without": without,
                    "renormalised": renormalised, "reach_mass": by_mass}  # fmt: skip
        for name, number in expected.items():
            assert float(sums.sums[name][h]) == pytest.approx(number, rel=1e-4), name


def test_value_norms_of_sinks_and_others():
    weights, value = attention(1)
    sinks = torch.zeros(B, T, dtype=torch.bool)
    sinks[:, 0] = True
    norms = measured(weights, value, sinks).values[1]
    for h in range(H):
        assert norms.mean(0, h) == pytest.approx(float(value[:, h // 2, 0].norm(dim=-1).mean()), rel=1e-5)
        assert norms.mean(1, h) == pytest.approx(float(value[:, h // 2, 1:].norm(dim=-1).mean()), rel=1e-5)
    assert "write" not in measured(weights, value, sinks).blocks[1].sums


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_a_planted_head_gives_back_its_distance_and_mass(reach):
    """0.7 on the sink at position 0 and 0.3 on the key `reach` tokens back."""
    weights = torch.zeros(1, 1, T, T)
    for t in range(T):
        weights[0, 0, t, 0] += 0.7
        weights[0, 0, t, max(t - reach, 0)] += 0.3
    sinks = torch.zeros(1, T, dtype=torch.bool)
    sinks[:, 0] = True
    sums = measured(weights, torch.randn(1, 1, T, D), sinks).blocks[1]
    whole = T - 1 - reach
    assert float(sums.counts["distance"][0]) == whole
    assert float(sums.sums["distance"][0] / sums.counts["distance"][0]) == pytest.approx(reach, abs=1e-5)
    assert float(sums.sums["mass"][0]) == pytest.approx(0.7 * whole + 1.0 * (T - 1 - whole), rel=1e-5)


def test_the_sinks_part_of_an_output():
    weights, value = attention(2)
    sink = torch.zeros(B, T, dtype=torch.bool)
    sink[0, 2] = True
    part = sink_output(weights, value, sink)
    assert torch.allclose(part[0, 3], weights[0, 3, :, 2:3] * value[0, 1, 2], atol=1e-6)
    assert float(part[1].abs().max()) == 0.0


def test_queries_with_nothing_left_are_left_out():
    """Half of the queries look at the sink only: the mean is over the others, and counts say so."""
    weights = torch.zeros(1, 1, T, T)
    for t in range(T):
        weights[0, 0, t, 0] = 1.0
        if t in (2, 4, 5):
            weights[0, 0, t, 0], weights[0, 0, t, t - 1] = 0.9, 0.1
    value = torch.randn(1, 1, T, D, generator=torch.Generator().manual_seed(4))
    sinks = torch.zeros(1, T, dtype=torch.bool)
    sinks[:, 0] = True
    sums = measured(weights, value, sinks, {1: torch.eye(D)[None]}).blocks[1]
    norms = value[0, 0].norm(dim=-1)
    assert sums.mean("renormalised", 0) == pytest.approx(float(norms[[1, 3, 4]].mean()), rel=1e-5)
    assert sums.mean("without", 0) == pytest.approx(float(0.1 * norms[[1, 3, 4]].sum() / 6), rel=1e-5)
    assert sums.mean("distance", 0) == pytest.approx(1.0)
    assert [float(sums.counts[name][0]) for name in ("renormalised", "distance", "mass")] == [3, 3, 6]
    pure = torch.zeros(1, 1, T, T)
    pure[..., 0] = 1.0
    assert measured(pure, value, sinks, {1: torch.eye(D)[None]}).blocks[1].mean("renormalised", 0) is None


def test_the_sinks_mass_with_the_write_at_the_same_position():
    """Against centring by position by hand; a rise over positions alone is no correlation."""
    weights, value = attention(5)
    sinks = torch.zeros(B, T, dtype=torch.bool)
    sinks[:, 0] = True
    projection = torch.randn(MODEL, H, D, generator=torch.Generator().manual_seed(3))
    measure = measured(weights, value, sinks, {1: torch.einsum("mhi,mhj->hij", projection, projection)})
    for h in range(H):
        mass, write, reach = (np.zeros((B, T - 1)) for _ in range(3))
        for b in range(B):
            for t in range(1, T):
                row = weights[b, h, t].double()
                mass[b, t - 1] = row[0]
                write[b, t - 1] = (projection[:, h].double() @ (row @ value[b, h // 2].double())).norm()
                reach[b, t - 1] = sum(float(row[k]) * (t - k) for k in range(1, T)) / (1 - float(row[0]))
        for name, other in (("write", write), ("distance", reach)):
            centred = [column - column.mean(0) for column in (mass, other)]
            expected = np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]
            assert measure.blocks[1].with_mass[name].correlation(h) == pytest.approx(expected, abs=1e-4)
    within = WithinPosition(2)
    rising = torch.arange(4.0).expand(3, 2, 4)
    within.add(torch.arange(4).expand(3, 4), rising, rising, torch.ones(3, 2, 4, dtype=torch.bool))
    assert within.correlation(0) is within.correlation(1) is None
