"""Attention in tiles: outputs and sums over queries against explicit float64 sums, and against the row blocks."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tiny import tiny, token_ids
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from spikesink import scan
from spikesink.access import attention, tiled_attention
from spikesink.access.attention import Call, Normaliser, attend
from spikesink.access.fused_attention import attend_fused
from spikesink.access.masks import plan_mask
from spikesink.access.tiled_attention import segments
from spikesink.observer import Observer

BATCH, HEADS, KV_HEADS, TOKENS, D, D_VALUE = 2, 6, 3, 37, 5, 7


class SumsOnly(Observer):
    def __init__(self):
        self.cut = {}
        self.mass = torch.zeros(BATCH, HEADS, TOKENS)
        self.virtual = torch.zeros(BATCH, HEADS)

    def on_attention_sums(self, sums):
        self.mass[..., sums.keys] += sums.mass
        if sums.virtual_mass is not None:
            self.virtual += sums.virtual_mass
        self.cut[sums.query_stop] = self.mass.clone()


class WithRows(SumsOnly):
    def on_attention_rows(self, rows):
        pass


@contextmanager
def using(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def problem(window=None, softcap=None, sinks=None):
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(BATCH, HEADS, TOKENS, D, generator=generator) * 2
    # As transformers has them: token before head in memory.
    key = torch.randn(BATCH, TOKENS, KV_HEADS, D, generator=generator).transpose(1, 2)
    value = torch.randn(BATCH, TOKENS, KV_HEADS, D_VALUE, generator=generator).transpose(1, 2)
    mask = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    plan = plan_mask(BATCH, TOKENS, TOKENS, mask_function=mask)
    normaliser = Normaliser("softmax", sinks, 0.0)
    return Call(1, query, key, value, plan, 0.4, softcap, None, normaliser, 0)


def naive(call, window):
    """Loops over sequence, head and query in float64: output, weights, learned sinks' weights."""
    output = torch.zeros(BATCH, HEADS, TOKENS, D_VALUE, dtype=torch.float64)
    weights = torch.zeros(BATCH, HEADS, TOKENS, TOKENS, dtype=torch.float64)
    virtual = torch.zeros(BATCH, HEADS, TOKENS, dtype=torch.float64)
    for b in range(BATCH):
        for h in range(HEADS):
            key, value = (x[b, h // (HEADS // KV_HEADS)].double() for x in (call.key, call.value))
            for t in range(TOKENS):
                low = 0 if window is None else max(0, t - window + 1)
                scores = key[low : t + 1] @ call.query[b, h, t].double() * call.scaling
                if call.softcap is not None:
                    scores = torch.tanh(scores / call.softcap) * call.softcap
                powers = scores.exp()
                sink = 0.0 if call.normaliser.learned_sinks is None else call.normaliser.learned_sinks[h].double().exp()
                weights[b, h, t, low : t + 1] = powers / (powers.sum() + sink)
                virtual[b, h, t] = sink / (powers.sum() + sink)
                output[b, h, t] = weights[b, h, t, : t + 1] @ value[: t + 1]
    return output, weights, virtual


CASES = {
    "plain": {},
    "window": {"window": 11},
    "softcap": {"softcap": 1.5},
    "learned sinks": {"sinks": torch.linspace(-1, 3, HEADS)},
    "all": {"window": 19, "softcap": 2.5, "sinks": torch.linspace(-2, 1, HEADS)},
}


def small_tiles(monkeypatch, elements):
    """Tiles of 16 queries, or of more where so many scores allow it."""
    monkeypatch.setattr(tiled_attention, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(tiled_attention, "LEAST_ROWS", 1)


@pytest.mark.parametrize("how", ["tiles, 1 thread", "tiles, 3 threads", "tiles of a sequence, 3 threads", "fused"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_tiles_give_what_sums_in_float64_give(options, how, monkeypatch):
    """Several tiles of 16 queries, or one with all heads of each sequence; the sums are also right where they are cut.
    Fused: what a GPU runs, in plain operations."""
    small_tiles(monkeypatch, 10_000 if "sequence" in how else 1)
    if how == "fused":
        monkeypatch.setattr(attention, "attend_tiled", attend_fused)
    threads = 3 if "3" in how else 1
    call, seen = problem(**options), SumsOnly()
    with torch.inference_mode(), using(threads):
        output = attend(call, [seen], [], None)
    expected, weights, virtual = naive(call, options.get("window"))
    torch.testing.assert_close(output.double(), expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(seen.virtual.double(), virtual.sum(2), rtol=2e-5, atol=2e-5)
    assert list(seen.cut) == [1, 2, 4, 8, 16, 32, 37]
    for stop, mass in seen.cut.items():
        torch.testing.assert_close(mass.double(), weights[:, :, :stop].sum(2), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_row_blocks_and_tiles_tell_the_same(options, monkeypatch):
    """An observer that sees rows sends the call down the other path."""
    asked = []
    original = attention.attend_tiled
    monkeypatch.setattr(attention, "attend_tiled", lambda *given: asked.append(1) or original(*given))
    tiles, rows = SumsOnly(), WithRows()
    with torch.inference_mode():
        one = attend(problem(**options), [tiles], [], None)
        assert asked == [1]
        other = attend(problem(**options), [rows], [], None)
    assert asked == [1]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert tiles.cut.keys() == rows.cut.keys()
    for stop, mass in tiles.cut.items():
        torch.testing.assert_close(mass, rows.cut[stop], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("observer", [SumsOnly, WithRows])
def test_a_later_key_whose_score_overflows_changes_nothing_before_it(observer):
    call = problem()
    call = replace(call, query=call.query.abs())
    call.query[:, :, -1] = 0
    key = call.key.clone()
    key[:, :, -1] = 3e38
    with torch.inference_mode():
        before, after = (attend(one, [observer()], [], None) for one in (call, replace(call, key=key)))
    torch.testing.assert_close(after[:, :, :-1], before[:, :, :-1], rtol=0, atol=0)


class Shift:
    """An editor of the attention weights."""

    def edit_weights(self, block, query_start, key_start, weights):
        return weights


@pytest.mark.parametrize("why", ["padding", "bfloat16", "sigmoid", "virtual keys", "edited weights"])
def test_what_tiles_do_not_compute_goes_in_row_blocks(why, monkeypatch):
    monkeypatch.setattr(attention, "attend_tiled", None)
    call, editors, valid = problem(), [], None
    if why == "padding":
        valid = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        valid[0, :4] = False
    elif why == "bfloat16":
        call = replace(call, query=call.query.bfloat16(), key=call.key.bfloat16(), value=call.value.bfloat16())
    elif why == "sigmoid":
        call = replace(call, normaliser=Normaliser("sigmoid", None, -2.0))
    elif why == "virtual keys":
        more = [torch.cat([x[:, :, :1], x], dim=2) for x in (call.key, call.value)]
        call = replace(call, key=more[0], value=more[1], virtual_keys=1)
    else:
        editors = [Shift()]
    seen = SumsOnly()
    with torch.inference_mode():
        attend(call, [seen], editors, valid)
    queries = torch.full((BATCH, HEADS), float(TOKENS))
    if why == "padding":
        queries[0] -= 4
    if why != "sigmoid":
        torch.testing.assert_close(seen.mass.sum(-1) + seen.virtual, queries, rtol=1e-3, atol=1e-3)


def test_segments_end_at_powers_of_two():
    assert list(segments(0, 11)) == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 11)]
    assert list(segments(5, 17)) == [(5, 8), (8, 16), (16, 17)]


def test_a_scan_attends_in_tiles(monkeypatch):
    """Nothing that a scan observes asks for rows; its record is that of row blocks."""
    blocks = []
    original = attention.attend_tiled
    monkeypatch.setattr(attention, "attend_tiled", lambda *given: blocks.append(1) or original(*given))
    small_tiles(monkeypatch, 1)
    model, ids = tiny("llama"), token_ids(3, 37)
    one = scan(model, ids, batch_size=3)
    assert len(blocks) >= model.config.num_hidden_layers
    monkeypatch.setattr(attention, "_only_sums", lambda *_: False)
    other = scan(model, ids, batch_size=3)
    for name, array in one.arrays.items():
        torch.testing.assert_close(array, other.arrays[name], rtol=2e-5, atol=1e-6, msg=name)
    assert one.summary.perplexity == pytest.approx(other.summary.perplexity, rel=1e-6)


def test_threads_that_start_later_have_as_many_as_before(monkeypatch):
    """PyTorch keeps one number for all threads to come, and the workers of the tiles change it."""
    small_tiles(monkeypatch, 1)
    with torch.inference_mode(), using(3):
        attend(problem(), [SumsOnly()], [], None)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
