"""The measuring attention against explicit sums: GQA, softcap, learned sinks, windows, padding, several row blocks."""

import math

import pytest
import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from spikesink.access import attention
from spikesink.access.attention import Call, Normaliser, attend
from spikesink.access.masks import plan_mask

B, H, KV, T, D = 2, 6, 3, 11, 5


class Collector:
    """Keeps what an observer is shown: whole maps, put together from row blocks."""

    def __init__(self):
        self.weights = torch.zeros(B, H, T, T)
        self.virtual = torch.zeros(B, H, T)
        self.steps = []

    def on_attention(self, inputs):
        self.counts = inputs.queries_per_key

    def on_attention_rows(self, rows):
        keys = slice(rows.key_start, rows.key_start + rows.weights.shape[-1])
        self.weights[:, :, rows.query_start : rows.query_stop, keys] = rows.weights
        if rows.virtual_mass is not None:
            self.virtual[:, :, rows.query_start : rows.query_stop] = rows.virtual_mass
        self.steps.append((rows.query_start, rows.query_stop))
        assert rows.visible.shape[-2:] == rows.weights.shape[-2:]
        assert bool((rows.weights[~rows.visible.expand_as(rows.weights)] == 0).all())


def tensors(tokens=T, virtual=0):
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(B, H, tokens, D, generator=generator) * 2
    key, value = (torch.randn(B, KV, tokens + virtual, D, generator=generator) for _ in range(2))
    return query, key, value


def call(query, key, value, plan, **options):
    settings = {
        "softcap": None,
        "position_bias": None,
        "normaliser": Normaliser("softmax", None, 0.0),
        "virtual_keys": 0,
    }
    return Call(block=1, query=query, key=key, value=value, plan=plan, scaling=0.4, **{**settings, **options})


def expected(query, key, value, visible, softcap=None, sinks=None, sigmoid=None, virtual=0):
    """Loops over batch, head, query and key, in float64."""
    weights = torch.zeros(B, H, query.shape[2], key.shape[2], dtype=torch.float64)
    output = torch.zeros(B, H, query.shape[2], D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            kv = h // (H // KV)
            for t in range(query.shape[2]):
                scores = {}
                for k in range(key.shape[2]):
                    if k < virtual or visible(b, t, k - virtual):
                        score = 0.4 * float(query[b, h, t].double() @ key[b, kv, k].double())
                        scores[k] = softcap * math.tanh(score / softcap) if softcap else score
                if sigmoid is not None:
                    parts = {k: 1 / (1 + math.exp(-(s + sigmoid))) for k, s in scores.items()}
                else:
                    total = sum(math.exp(s) for s in scores.values()) + (math.exp(sinks[h]) if sinks is not None else 0)
                    parts = {k: math.exp(s) / total for k, s in scores.items()}
                for k, weight in parts.items():
                    weights[b, h, t, k] = weight
                    output[b, h, t] += weight * value[b, kv, k].double()
    return weights, output


def check(seen, output, weights, expected_output, virtual=0):
    assert torch.allclose(seen.weights.double(), weights[..., virtual:], atol=1e-6)
    assert torch.allclose(output.double(), expected_output, atol=1e-5)


def causal(_b, t, k):
    return k <= t


@pytest.fixture(params=[3, 4, 100], ids=lambda rows: f"rows{rows}")
def row_step(request, monkeypatch):
    monkeypatch.setattr(Call, "row_step", lambda self: request.param)
    return request.param


def test_plain_causal(row_step):
    query, key, value = tensors()
    seen = Collector()
    output = attend(call(query, key, value, plan_mask(B, T, T)), [seen], [], None)
    check(seen, output, *expected(query, key, value, causal))
    assert seen.steps[0] == (0, min(row_step, T))
    assert seen.steps[-1][1] == T
    assert seen.counts.tolist() == [[T - k for k in range(T)]]


def test_softcap_and_learned_sinks(row_step):
    query, key, value = tensors()
    sinks = torch.linspace(-1, 2, H)
    seen = Collector()
    options = {"softcap": 1.5, "normaliser": Normaliser("softmax", sinks, 0.0)}
    output = attend(call(query, key, value, plan_mask(B, T, T), **options), [seen], [], None)
    weights, expected_output = expected(query, key, value, causal, softcap=1.5, sinks=sinks.tolist())
    check(seen, output, weights, expected_output)
    assert torch.allclose(seen.virtual.double(), 1 - weights.sum(-1), atol=1e-6)


def test_sliding_window(row_step):
    query, key, value = tensors()
    plan = plan_mask(B, T, T, mask_function=sliding_window_causal_mask_function(4))
    seen = Collector()
    output = attend(call(query, key, value, plan), [seen], [], None)
    check(seen, output, *expected(query, key, value, lambda _b, t, k: t - 4 < k <= t))
    assert seen.counts[0].tolist() == [min(4, T - k) for k in range(T)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_neither_seen_nor_counted(row_step, side):
    query, key, value = tensors()
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[1, slice(T - 3, T) if side == "right" else slice(0, 3)] = False
    plan = plan_mask(B, T, T, mask_function=causal_mask_function, attention_mask=valid)
    seen = Collector()
    output = attend(call(query, key, value, plan), [seen], [], valid)
    weights, expected_output = (tensor * 1.0 for tensor in _padded(query, key, value, valid))
    check(seen, output, weights, expected_output)
    counts = [
        [sum(bool(valid[b, t]) and bool(valid[b, k]) and k <= t for t in range(T)) for k in range(T)] for b in range(B)
    ]
    assert seen.counts.tolist() == counts


def _padded(query, key, value, valid):
    weights = torch.zeros(B, H, T, T, dtype=torch.float64)
    output = torch.zeros(B, H, T, D, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            keys = [k for k in range(t + 1) if valid[b, k]]
            for h in range(H if keys else 0):
                kv = h // (H // KV)
                scores = torch.tensor([0.4 * float(query[b, h, t].double() @ key[b, kv, k].double()) for k in keys])
                for k, weight in zip(keys, scores.double().softmax(0), strict=True):
                    weights[b, h, t, k] = weight
                    output[b, h, t] += weight * value[b, kv, k].double()
    return weights, output


def test_virtual_keys_and_sigmoid(row_step):
    query, key, value = tensors(virtual=2)
    seen = Collector()
    output = attend(call(query, key, value, plan_mask(B, T, T), virtual_keys=2), [seen], [], None)
    weights, expected_output = expected(query, key, value, causal, virtual=2)
    check(seen, output, weights, expected_output, virtual=2)
    assert torch.allclose(seen.virtual.double(), weights[..., :2].sum(-1), atol=1e-6)

    query, key, value = tensors()
    seen = Collector()
    options = {"normaliser": Normaliser("sigmoid", None, -1.3)}
    output = attend(call(query, key, value, plan_mask(B, T, T), **options), [seen], [], None)
    check(seen, output, *expected(query, key, value, causal, sigmoid=-1.3))


def test_editors_change_scores_weights_and_values():
    query, key, value = tensors()

    class MaskFirstKey:
        def edit_scores(self, block, query_start, key_start, scores):
            scores = scores.clone()
            if key_start == 0:
                rows = torch.arange(scores.shape[2]) + query_start
                scores[:, :, rows > 0, 0] = float("-inf")
            return scores

    seen = Collector()
    output = attend(call(query, key, value, plan_mask(B, T, T)), [seen], [MaskFirstKey()], None)
    check(seen, output, *expected(query, key, value, lambda _b, t, k: k <= t and (k > 0 or t == 0)))

    class ZeroFirstValue:
        def edit_values(self, block, value):
            return torch.cat([torch.zeros_like(value[:, :, :1]), value[:, :, 1:]], dim=2)

    seen = Collector()
    output = attend(call(query, key, value, plan_mask(B, T, T)), [seen], [ZeroFirstValue()], None)
    changed = value.clone()
    changed[:, :, 0] = 0
    check(seen, output, *expected(query, key, changed, causal))


def test_memory_is_bounded_by_rows():
    query, key, value = (torch.zeros(1, 8, 20_000, 2), torch.zeros(1, 2, 20_000, 2), torch.zeros(1, 2, 20_000, 2))
    big = call(query, key, value, plan_mask(1, 20_000, 20_000))
    assert big.row_step() * 8 * 20_000 <= attention.ROW_ELEMENTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mystery": 1}, "mystery"),
        ({"dropout": 0.1}, "dropout"),
        ({"attention_mask": torch.ones(1)}, "ready-made mask"),
    ],
)
def test_what_would_be_ignored_is_refused(options, message):
    from spikesink.errors import UnsupportedModelError

    query, key, value = tensors()
    options = {"attention_mask": None, **options}
    with pytest.raises(UnsupportedModelError, match=message):
        attention.measured_attention(torch.nn.Identity(), query, key, value, **options)
