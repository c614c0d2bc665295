"""Layers that are taken over from an earlier pass: the same bits as computed ones, and really not computed."""

import pytest
import torch
from tiny import FAMILIES, VARIANTS, tiny, token_ids

from spikesink.access import access, editing, full_batch, observing, run
from spikesink.access.prefix import Prefix
from spikesink.observer import Observer


class Seen(Observer):
    """Everything that is kept, as shown."""

    def __init__(self):
        self.calls = []

    def on_residual(self, block, hidden):
        self.calls.append(("residual", block, hidden.clone()))

    def on_attention(self, inputs):
        self.calls.append(("attention", inputs.block, inputs.query.clone()))

    def on_attention_sums(self, sums):
        self.calls.append(("sums", sums.block, sums.mass.clone()))

    def on_logits(self, logits, start):
        self.calls.append(("logits", start, logits.clone()))


class Rows(Observer):
    def __init__(self):
        self.blocks = []

    def on_attention_rows(self, rows):
        self.blocks.append(rows.block)


class AddAfter:
    """Adds one to the residual after a block."""

    def __init__(self, block):
        self.block = block

    def edit_residual(self, block, hidden):
        return hidden + 1 if block == self.block else hidden


def same(seen, other):
    assert [call[:2] for call in seen.calls] == [call[:2] for call in other.calls]
    for call, others in zip(seen.calls, other.calls, strict=True):
        assert torch.equal(call[2], others[2]), call[:2]


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_what_is_shown_and_the_logits_are_the_same_bits(family):
    accessed = access(tiny(family))
    batches = [full_batch(token_ids(3), 0), full_batch(token_ids(2, seed=5), 3)]
    prefix, plain, again, later = Prefix(accessed, watched=2), Seen(), Seen(), Seen()
    with observing(accessed, [plain]), prefix.keeping():
        for batch in batches:
            run(accessed, batch)
    with observing(accessed, [again]), prefix.replaying(2):
        for batch in batches:
            run(accessed, batch)
    same(plain, again)
    with observing(accessed, [later]):
        for batch in batches:
            run(accessed, batch)
    same(plain, later)


@pytest.mark.parametrize("layers", [3, 2])
def test_an_edit_behind_the_layers_acts_as_without_them_and_they_are_not_computed(layers):
    accessed = access(tiny("llama", num_hidden_layers=4))
    batch = full_batch(token_ids())
    prefix, edited, again, computed = Prefix(accessed, watched=4), Seen(), Seen(), []
    with prefix.keeping():
        run(accessed, batch)
    with editing(accessed, AddAfter(6)), observing(accessed, [edited]):
        run(accessed, batch)
    for index, layer in enumerate(accessed.layers):
        layer.ffn.inner.register_forward_pre_hook(lambda *_, index=index: computed.append(index))
    with editing(accessed, AddAfter(6)), observing(accessed, [again]), prefix.replaying(layers):
        run(accessed, batch)
    assert computed == list(range(layers, 4))
    same(edited, again)


def test_what_was_not_kept_is_computed():
    accessed = access(tiny("llama"))
    batch, other = full_batch(token_ids()), full_batch(token_ids(seed=9))
    prefix = Prefix(accessed, watched=1)
    with prefix.keeping():
        run(accessed, batch)
    plain, again, rows = Seen(), Seen(), Rows()
    with observing(accessed, [plain]):
        run(accessed, other)
    with observing(accessed, [again]), prefix.replaying(3):
        run(accessed, other)
    same(plain, again)
    with observing(accessed, [rows]), prefix.replaying(3):
        run(accessed, batch)
    assert set(rows.blocks) == {1, 3, 5}
    whole, watched = Seen(), Seen()
    with observing(accessed, [whole]):
        run(accessed, batch)
    with observing(accessed, [watched]), prefix.replaying(3):
        run(accessed, batch)
    same(whole, watched)


def test_memory_is_bounded_and_the_first_layers_come_first():
    accessed = access(tiny("llama"))
    batch = full_batch(token_ids())
    whole = Prefix(accessed, watched=0)
    with whole.keeping():
        run(accessed, batch)
    assert whole.bytes == 3 * 3 * 13 * 24 * 4
    part = Prefix(accessed, watched=0, max_bytes=whole.bytes - 1)
    with part.keeping():
        run(accessed, batch)
    assert part.bytes == 2 * 3 * 13 * 24 * 4
    plain, again = Seen(), Seen()
    with observing(accessed, [plain]):
        run(accessed, batch)
    with observing(accessed, [again]), part.replaying(3):
        run(accessed, batch)
    same(plain, again)
