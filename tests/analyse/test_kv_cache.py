"""The streaming window: masking equals a cache of that size, token by token; the table's rule."""

import pytest
import torch
from tiny import tiny, token_ids

from spikesink.access import access, full_batch, observing, run
from spikesink.access.rotary import unrotating
from spikesink.access.sink_cache import sink_cache
from spikesink.analyse.interventions import dissociate
from spikesink.analyse.kv_cache import fewest
from spikesink.errors import DoesNotApplyError, InputError, UnsupportedModelError
from spikesink.intervene.window import reassigned_window, streaming_window
from spikesink.records.deployment import KeptSinks
from spikesink.records.intervals import Estimate


def streamed(model, ids, cache):
    """Logits of every token, fed one at a time."""
    logits = []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            logits.append(model(input_ids=ids[:, t : t + 1], cache=cache, use_cache=True).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(("window", "keep"), [(5, 0), (5, 1), (6, 4), (20, 2)])
def test_masking_is_streaming_with_a_cache_of_that_size(family, window, keep):
    accessed = access(tiny(family))
    ids = token_ids(sequences=2, tokens=17)
    expected = streamed(accessed.model, ids, sink_cache(accessed, window, keep))
    with streaming_window(accessed, window, keep), observing(accessed, []):
        ours = run(accessed, full_batch(ids))
    assert torch.allclose(ours, expected, atol=2e-4, rtol=2e-4)
    with observing(accessed, []):
        plain = run(accessed, full_batch(ids))
    assert torch.allclose(ours, plain, atol=1e-3) == (window >= 17)


def streamed_reassigned(model, ids, window, keep):
    """As streaming-llm does: keys are kept unrotated and turned by their places in the cache at every step."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    inner, logits = model.model, []
    caches = [[] for _ in inner.layers]
    for t in range(ids.shape[1]):
        hidden = inner.embed_tokens(ids[:, t : t + 1])
        for layer, cache in zip(inner.layers, caches, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            states = [getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, 6)) for name in "qkv"]
            if hasattr(attention, "q_norm"):
                states[:2] = attention.q_norm(states[0]), attention.k_norm(states[1])
            query, key, value = (state.transpose(1, 2) for state in states)
            cache.append((key, value))
            if len(cache) > window:
                del cache[keep]
            keys, values = (torch.cat(kept, 2) for kept in zip(*cache, strict=True))
            cos, sin = inner.rotary_emb(keys, torch.arange(len(cache))[None])
            _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
            query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
            scores = query @ repeat_kv(keys, 2).mT * attention.scaling
            output = (scores.softmax(-1) @ repeat_kv(values, 2)).transpose(1, 2).flatten(2)
            hidden = hidden + attention.o_proj(output)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits.append(model.lm_head(inner.norm(hidden)))
    return torch.cat(logits, 1)


@pytest.mark.parametrize(("family", "window", "keep"), [("llama", 6, 4), ("qwen3", 5, 1), ("llama", 20, 2)])
def test_reassigned_positions_are_places_in_the_cache(family, window, keep):
    accessed = access(tiny(family))
    ids = token_ids(sequences=2, tokens=17)
    with torch.no_grad():
        expected = streamed_reassigned(accessed.model, ids, window, keep)
    with reassigned_window(accessed, window, keep), observing(accessed, []):
        ours = run(accessed, full_batch(ids))
    assert torch.allclose(ours, expected, atol=2e-4, rtol=2e-4)
    with streaming_window(accessed, window, keep), observing(accessed, []):
        true = run(accessed, full_batch(ids))
    assert torch.allclose(true, expected, atol=1e-2) == (window >= 17)


@pytest.mark.parametrize("family", ["gpt_neox", "gptj", "smollm3"])
def test_states_move_to_other_positions_by_every_convention(family):
    class Keys:
        def on_attention(self, inputs):
            self.seen = {**getattr(self, "seen", {}), inputs.block: inputs.key}

    accessed, ids, keys = access(tiny(family)), token_ids(sequences=1, tokens=13), Keys()
    with unrotating(accessed) as rotary, observing(accessed, [keys]), torch.no_grad():
        accessed.model(input_ids=ids, position_ids=torch.arange(13)[None] + 5)
        shifted = keys.seen[1]
        accessed.model(input_ids=ids, position_ids=torch.arange(13)[None])
        places = torch.arange(8)
        moved = rotary.moved(1, keys.seen[1][:, :, :8], places, places + 5)
    assert torch.allclose(moved, shifted[:, :, :8], atol=1e-5)
    assert not torch.allclose(keys.seen[1], shifted, atol=1e-2)


def test_what_cannot_be_reassigned_says_why():
    with pytest.raises(DoesNotApplyError, match="no rotation"), reassigned_window(access(tiny("gpt2")), 6, 2):
        pass
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    grown = access(tiny("llama", rope_parameters=rope))
    with pytest.raises(DoesNotApplyError, match="changes with the number"), reassigned_window(grown, 6, 2):
        pass
    local = access(tiny("gemma3_text"))
    window, watch = reassigned_window(local, 6, 2), observing(local, [])
    with pytest.raises(DoesNotApplyError, match=r"block 1 \(layer 0, attention\) has a window"), window, watch:
        run(local, full_batch(token_ids(sequences=1, tokens=17)))


def test_the_cache_holds_what_it_says():
    accessed = access(tiny("llama"))
    cache = sink_cache(accessed, 6, 2)
    streamed(accessed.model, token_ids(sequences=2, tokens=17), cache)
    assert [layer.keys.shape for layer in cache.layers] == [(2, 2, 6, 6)] * 3
    assert cache.get_seq_length() == 17


def test_what_each_query_sees():
    class Rows:
        def on_attention_rows(self, rows):
            self.seen = (rows.weights > 0)[0, 0]

    accessed, rows = access(tiny("llama")), Rows()
    with streaming_window(accessed, 4, 1), observing(accessed, [rows]):
        run(accessed, full_batch(token_ids(sequences=1, tokens=7)))
    seen = [row.nonzero().flatten().tolist() for row in rows.seen]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5], [0, 4, 5, 6]]
    with streaming_window(accessed, 4, 1, first=1), observing(accessed, [rows]):
        run(accessed, full_batch(token_ids(sequences=1, tokens=7)))
    assert rows.seen[6].nonzero().flatten().tolist() == [1, 4, 5, 6]


def test_refusals():
    accessed = access(tiny("llama"))
    for window, keep in ((4, 4), (4, -1)):
        with pytest.raises(InputError, match="expected 0 to 3"):
            streaming_window(accessed, window, keep)
    cache = sink_cache(accessed, 4, 1)
    with torch.no_grad(), pytest.raises(InputError, match="one token at a time"):
        accessed.model(input_ids=token_ids(1, 5), cache=cache, use_cache=True)
    with pytest.raises(UnsupportedModelError, match="windows of their own"):
        sink_cache(access(tiny("gemma3_text")), 4, 1)


def row(window, keep, loss, first=0):
    exact = Estimate(value=loss, low=loss, high=loss)
    return KeptSinks(window=window, keep=keep, first=first, perplexity=exact, loss_difference_nats=exact)


def test_a_window_that_is_left_out_is_named(monkeypatch):
    monkeypatch.setattr("spikesink.analyse.kv_cache.WINDOWS", (9, 16))
    cache = dissociate(access(tiny("gpt2")), token_ids(4, 20), which="kv_cache", held_out=2).kv_cache
    assert {each.window for each in cache.table} == {None, 9}
    assert cache.note == "No window of 16: it needs sequences of 32 tokens, these have 20."


def test_the_fewest_kept_tokens():
    table = [row(8, 0, 1.0), row(8, 1, 0.119), row(8, 2, 0.1), row(8, 4, 0.1), row(8, 4, -5.0, first=1)]
    assert fewest([*table, row(4, 0, -9.0)], 8) == 1
    assert fewest([row(8, 0, 1.0), row(8, 1, 0.13), row(8, 2, 0.1)], 8) == 2
