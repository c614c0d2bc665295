"""Hooks live inside the `with`; editing reaches the model; padding and windows hold through whole models."""

import pytest
import torch
from tiny import FAMILIES, VARIANTS, tiny, token_ids

from spikesink import scan
from spikesink.access import Batch, access, editing, full_batch, logits, observing, run, watch


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Silent:
    def on_residual(self, block, hidden):
        pass


class Failing:
    def on_residual(self, block, hidden):
        raise KeyError("observer failed")


def test_hooks_and_backend_are_gone_after_the_context():
    accessed = access(tiny("llama"))
    model = accessed.model
    before, implementation = hook_count(model), model.config._attn_implementation
    with observing(accessed, [Silent()]):
        assert hook_count(model) > before
        with observing(accessed, [Silent()]):
            run(accessed, full_batch(token_ids()))
        assert model.config._attn_implementation == "spikesink"
    assert hook_count(model) == before
    assert model.config._attn_implementation == implementation


def test_hooks_are_gone_after_an_exception():
    accessed = access(tiny("gpt2"))
    before, implementation = hook_count(accessed.model), accessed.model.config._attn_implementation
    with pytest.raises(KeyError, match="observer failed"), observing(accessed, [Failing()]):
        run(accessed, full_batch(token_ids()))
    assert hook_count(accessed.model) == before
    assert accessed.model.config._attn_implementation == implementation


def test_training_mode_is_restored():
    accessed = access(tiny("llama"))
    accessed.model.train()
    accessed.model.model.layers[1].eval()
    with observing(accessed, []):
        assert not accessed.model.training
    assert accessed.model.training
    assert not accessed.model.model.layers[1].training
    assert accessed.model.model.layers[0].training


class SetResidual:
    def __init__(self, block, value):
        self.block, self.value = block, value

    def edit_residual(self, block, hidden):
        return torch.full_like(hidden, self.value) if block == self.block else hidden


class Keep:
    def __init__(self):
        self.residuals = {}

    def on_residual(self, block, hidden):
        self.residuals[block] = hidden.clone()


@pytest.mark.parametrize("family", ["llama", "olmo2", "granite", "gpt2", "gemma2"])
@pytest.mark.parametrize("block", [0, 1, 2, 5])
def test_an_edit_of_the_residual_is_what_the_next_block_reads(family, block):
    accessed = access(tiny(family))
    seen = Keep()
    with observing(accessed, [seen]), editing(accessed, SetResidual(block, 0.75)):
        changed = run(accessed, full_batch(token_ids()))
    assert torch.allclose(seen.residuals[block], torch.full_like(seen.residuals[block], 0.75), atol=1e-5)
    with observing(accessed, []):
        plain = run(accessed, full_batch(token_ids()))
    # The same constant everywhere: predictions no longer depend on the token.
    if block == 0:
        assert torch.allclose(changed[0, 0], changed[1, 0], atol=1e-4)
    assert not torch.allclose(changed, plain, atol=1e-3)


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_right_padding_changes_nothing(family):
    accessed = access(tiny(family))
    ids = token_ids(sequences=3, tokens=13)
    record = scan(accessed, ids, epsilon=0.2)
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    valid = torch.ones(3, 17, dtype=torch.bool)
    valid[:, 13:] = False
    again = scan(accessed, padded, valid=valid, epsilon=0.2)
    for name in ("perplexity", "sink_ratio_sun2026", "sink_ratio_gu2025", "sink1_gu2025", "spike", "max_over_median"):
        assert getattr(again.summary, name) == pytest.approx(getattr(record.summary, name), rel=1e-4), name
    for head, other in zip(record.sinks.heads, again.sinks.heads, strict=True):
        assert head.max_importance == pytest.approx(other.max_importance, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox", "gemma2"])
def test_left_padding_changes_nothing(family):
    accessed = access(tiny(family))
    ids = token_ids(sequences=2, tokens=13)
    record = scan(accessed, ids, epsilon=0.2)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[:, :3] = False
    again = scan(accessed, padded, valid=valid, epsilon=0.2)
    for name in ("perplexity", "sink_ratio_sun2026", "sink_ratio_gu2025", "sink1_gu2025", "spike"):
        assert getattr(again.summary, name) == pytest.approx(getattr(record.summary, name), rel=2e-4), name


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt_oss"])
def test_windows_and_padding_at_length(family):
    """T = 600 spans several row blocks and many windows; compared with the family's own eager attention."""
    model = tiny(family, max_position_embeddings=1024)
    ids = token_ids(sequences=2, tokens=600)
    valid = torch.ones(2, 600, dtype=torch.bool)
    valid[1, 550:] = False
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=valid.long(), use_cache=False).logits
    accessed = access(model)
    with observing(accessed, []):
        ours = run(accessed, Batch(ids, valid))
    assert torch.allclose(ours[valid], expected[valid], atol=2e-4, rtol=1e-3)


class Logits:
    def __init__(self):
        self.pieces = []

    def on_logits(self, logits, start):
        assert start == sum(piece.shape[1] for piece in self.pieces)
        self.pieces.append(logits.clone())


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_logits_are_the_logits(family, monkeypatch):
    """Also where the family scales or caps them after its unembedding; the decoder computes once."""
    accessed = access(tiny(family))
    decoder, ids = accessed.model.get_decoder(), token_ids(2, 11)
    monkeypatch.setattr(logits, "PIECE_ELEMENTS", 2 * 4 * accessed.vocab_size)
    layers, seen = [], Logits()
    handle = accessed.layers[0].layer.register_forward_hook(lambda *_: layers.append(1))
    with observing(accessed, [seen]):
        watch(accessed, full_batch(ids))
        assert len(layers) == 1
        pieces = seen.pieces
        seen.pieces = []
        whole = run(accessed, full_batch(ids))
    handle.remove()
    assert [piece.shape[1] for piece in pieces] in ([4, 4, 3], [11])
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(decoder)


class Columns(Logits):
    def on_logit_columns(self, logits, start):
        assert start == sum(piece.shape[2] for piece in self.pieces)
        self.pieces.append(logits.clone())


def watched_pieces(accessed, observers, monkeypatch):
    """Logits of 2 x 11 tokens as the first observer sees them, in pieces of 4 positions or 37 tokens of the vocabulary,
    the others beside it; the whole; how often the first layer ran for the pieces."""
    monkeypatch.setattr(logits, "PIECE_ELEMENTS", 2 * 4 * accessed.vocab_size)
    monkeypatch.setattr(logits, "COLUMN_ELEMENTS", 2 * 11 * 37)
    monkeypatch.setattr(logits, "MIN_COLUMNS", 37)
    layers, ids = [], token_ids(2, 11)
    handle = accessed.layers[0].layer.register_forward_hook(lambda *_: layers.append(1))
    with observing(accessed, observers):
        watch(accessed, full_batch(ids))
    handle.remove()
    with observing(accessed, []):
        return observers[0].pieces, run(accessed, full_batch(ids)), len(layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_of_logits_are_the_logits(family, monkeypatch):
    accessed = access(tiny(family))
    pieces, whole, passes = watched_pieces(accessed, [Columns()], monkeypatch)
    assert passes == 1
    assert pieces[0].shape == (2, 11, 37)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ruled_out", [5, -1, 90])
def test_logits_that_the_models_code_writes_by_token_come_in_positions(ruled_out, monkeypatch):
    accessed = access(tiny("llama"))
    original = accessed.model.forward

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits[..., ruled_out] = -1e4
        return output

    monkeypatch.setattr(accessed.model, "forward", forward)
    pieces, whole, passes = watched_pieces(accessed, [Columns()], monkeypatch)
    assert passes == 1 and [piece.shape[1] for piece in pieces] == [4, 4, 3]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_columns_are_for_listeners_that_all_take_them_and_heads_that_nobody_watches(monkeypatch):
    accessed = access(tiny("llama"))
    by_position = ([4, 4, 3], [accessed.vocab_size] * 3)
    pieces, _, _ = watched_pieces(accessed, [Columns(), Logits()], monkeypatch)
    assert ([piece.shape[1] for piece in pieces], [piece.shape[2] for piece in pieces]) == by_position
    handle = accessed.model.get_output_embeddings().register_forward_pre_hook(lambda _module, args: args)
    pieces, _, _ = watched_pieces(accessed, [Columns()], monkeypatch)
    handle.remove()
    assert ([piece.shape[1] for piece in pieces], [piece.shape[2] for piece in pieces]) == by_position
    pieces, _, _ = watched_pieces(accessed, [Columns()], monkeypatch)
    assert pieces[0].shape == (2, 11, 37) and "forward" not in vars(accessed.model.get_output_embeddings())


def test_the_model_is_whole_again_after_a_listener_that_raises(monkeypatch):
    class Raises(Columns):
        def on_logit_columns(self, logits, start):
            super().on_logit_columns(logits, start)
            if start:
                raise KeyboardInterrupt

    accessed = access(tiny("llama"))
    with pytest.raises(KeyboardInterrupt) as kept:
        watched_pieces(accessed, [Raises()], monkeypatch)
    modules = (accessed.model.get_decoder(), accessed.model.get_output_embeddings())
    assert kept.value is not None and not any("forward" in vars(module) for module in modules)


def test_without_a_listener_one_position_is_unembedded():
    accessed = access(tiny("llama"))
    shapes = []
    head = accessed.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape[:2]))
    with observing(accessed, [Silent()]):
        watch(accessed, full_batch(token_ids(2, 11)))
    handle.remove()
    assert shapes == [(2, 1)]
