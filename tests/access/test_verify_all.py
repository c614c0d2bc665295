"""`verify_all` holds for what is right, and finds planted faults that the load-time check is too short to see."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny, token_ids

from spikesink import scan
from spikesink.access import access, attention, masks
from spikesink.access.verify import require_verified, verify_all
from spikesink.errors import InputError, VerificationError
from spikesink.records import VerificationRecord

TOKENS = 300
"""More than one row block."""
NAMES = ["sums", "attention", "causality", "maps", "padding right", "padding left", "long sums", "long attention"]


def failing(record):
    return {check.name for check in record.checks if check.holds is False}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "opt", "gpt_oss", "opt-post-norm"])
def test_everything_holds(family):
    accessed = access(tiny(family))
    record = verify_all(accessed, tokens=TOKENS)
    assert record.verified
    assert [check.name for check in record.checks] == NAMES
    for check in record.checks:
        assert check.holds, check.name
        assert 0 <= check.largest <= check.limit < 0.01
        if check.name != "causality":
            assert len(check.by_layer) == accessed.n_layers == 3
            assert check.largest == max(check.by_layer) == check.by_layer[check.layer_index]
    require_verified(record)


def test_the_windows_are_seen():
    record = verify_all(access(tiny("gemma3_text")), tokens=40)
    assert record.keys_seen == [5, 40, 5]


def test_the_length_follows_the_window_and_the_positions():
    assert verify_all(access(tiny("mistral", sliding_window=500))).checks[-1].tokens == 512
    assert verify_all(access(tiny("mistral", sliding_window=470, max_position_embeddings=480))).checks[-1].tokens == 480
    short = verify_all(access(tiny("mistral", sliding_window=30)), tokens=20)
    assert any("windows" in said for said in short.not_guaranteed)
    with pytest.raises(InputError, match="600 tokens; expected 2 to the model's 512"):
        verify_all(access(tiny("llama")), tokens=600)


def test_the_record_is_read_as_it_was_written(tmp_path):
    record = verify_all(access(tiny("llama")), tokens=20)
    record.save(tmp_path / "made")
    assert VerificationRecord.read(tmp_path / "made").model_dump() == record.model_dump()


def test_a_window_that_is_ignored(monkeypatch):
    """The window is wider than the load-time probe: only the long sequence shows it."""
    honest = masks.plan_mask

    def full(*args, **options):
        return honest(*args, **{**options, "mask_function": masks.causal_mask_function})

    model = tiny("mistral", sliding_window=20)
    monkeypatch.setitem(attention.AttentionMaskInterface._global_mapping, attention.BACKEND, full)
    record = verify_all(access(model), tokens=40)
    assert failing(record) == {"long attention"}
    assert not record.verified
    with pytest.raises(VerificationError, match=r"'long attention' fails: layer_index \d.*difference \d.*limit 1e-03"):
        require_verified(record)


def test_padding_that_is_ignored(monkeypatch):
    honest = masks.plan_mask

    def unpadded(*args, **options):
        return honest(*args, **{**options, "attention_mask": None})

    model = tiny("llama")
    monkeypatch.setitem(attention.AttentionMaskInterface._global_mapping, attention.BACKEND, unpadded)
    # Padding on the right lies in the future of every real token: causality hides it anyway.
    assert failing(verify_all(access(model), tokens=20)) == {"padding left"}


def test_positions_that_do_not_follow_padding_on_the_left(monkeypatch):
    """A property of the family, not an error of ours: said by `verify`, and such a batch is refused by a scan."""
    model = tiny("gpt2")
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, position_ids=None, **options: forward(self, **options))
    accessed = access(model)
    record = verify_all(accessed, tokens=20)
    assert record.verified
    assert "positions do not follow" in next(check for check in record.checks if check.name == "padding left").reason
    ids, valid = token_ids(2, 13), torch.ones(2, 13, dtype=torch.bool)
    valid[1, :4] = False
    with pytest.raises(InputError, match=r"Padding on the left.*Pad on the right"):
        scan(accessed, ids, valid=valid)
    scan(accessed, ids, valid=valid.flip(1))


def test_rows_that_are_wrong_from_the_second_block_on(monkeypatch):
    honest = attention._row_weights

    def shifted(call, start, *others):
        scaled = replace(call, scaling=1.1 * call.scaling) if start else call
        return honest(scaled, start, *others)

    monkeypatch.setattr(attention, "_row_weights", shifted)
    assert failing(verify_all(access(tiny("llama")), tokens=TOKENS)) == {"long attention"}


def test_weights_that_are_shown_otherwise_than_used(monkeypatch):
    """The output is right and the observers see other weights: nothing but the model's own maps can tell."""
    honest = attention._rows

    def other(*args):
        rows = honest(*args)
        return replace(rows, weights=rows.weights.flip(1))

    monkeypatch.setattr(attention, "_rows", other)
    assert failing(verify_all(access(tiny("llama")), tokens=20)) == {"maps"}


def test_a_layer_that_runs_twice(monkeypatch):
    """Every sum holds and attention is eager's, but which residual is block 4's? Refused when loaded."""
    model = tiny("llama")
    layer = model.model.layers[1]
    hooked = type(layer).__call__

    def again(self, hidden_states, **options):
        output = hooked(self, hidden_states, **options)
        return hooked(self, output, **options) if self is layer else output

    monkeypatch.setattr(type(layer), "__call__", again)
    with pytest.raises(VerificationError, match=r"Layer_index 1 runs 2 times in one forward pass; expected once"):
        access(model)


def test_attention_twice_in_a_layer(monkeypatch):
    """As in differential attention: two maps, and no single sink ratio."""
    from transformers.models.llama import modeling_llama

    model = tiny("llama")
    honest = modeling_llama.ALL_ATTENTION_FUNCTIONS.get_interface

    def twice(*args):
        function = honest(*args)

        def both(*inputs, **options):
            function(*inputs, **options)
            return function(*inputs, **options)

        return both

    monkeypatch.setattr(type(modeling_llama.ALL_ATTENTION_FUNCTIONS), "get_interface", lambda self, *args: twice(*args))
    with pytest.raises(VerificationError, match="Layer_index 0 attends 2 times in one forward pass; expected once"):
        access(model)


def test_a_forward_that_fails_is_refused_and_not_a_traceback(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(model.model.layers[2].mlp, "forward", lambda hidden: hidden[:, :, 1:])
    with pytest.raises(
        VerificationError, match=r"forward pass fails with spikesink's attention and hooks \(RuntimeError"
    ):
        access(model)


def test_in_half_precision():
    """Within the limits of the dtype, which are the stated ones."""
    for dtype, limit in ((torch.bfloat16, 0.15), (torch.float16, 0.05)):
        record = verify_all(access(tiny("llama").to(dtype)), tokens=40)
        assert record.verified, [(check.name, check.largest) for check in record.checks]
        assert record.checks[1].limit == limit
