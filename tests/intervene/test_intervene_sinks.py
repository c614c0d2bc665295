"""Every intervention on sinks and on the input against a Llama written out by hand with the same change."""

import math
from dataclasses import replace

import pytest
import torch
from hand_llama import Hand
from planted import EDIT_BLOCK, close
from tiny import tiny

from spikesink.access import access, full_batch, observing, run
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene import (
    drop_bos,
    isolate_token,
    mask_sinks,
    mask_sinks_everywhere,
    mask_sinks_in_sink_heads,
    move_bos,
    move_sinks,
    repeat_bos,
    softmax_off_by_one,
    spread_sink_weight,
    spread_sink_weight_in_sink_heads,
    zero_sink_values,
    zero_sink_values_in_sink_heads,
)
from spikesink.measure.perplexity import LossMeasure


def on_sinks(case, block, heads, change, tensor):
    """Call `change(row, sink keys, query)` for every query of the blocks and heads that an edit acts on."""
    result = tensor.clone()
    if block <= EDIT_BLOCK:
        return result
    batch, n_heads, tokens, _ = result.shape
    for b in range(batch):
        sinks = {0, 2} | set(case.spikes[b].nonzero().flatten().tolist())
        for h in range(n_heads):
            if heads == "sinks" and (block, h) not in case.targets.sink_heads:
                continue
            for t in range(tokens):
                chosen = sorted(key for key in sinks if key < t)
                if chosen:
                    change(result[b, h, t], chosen, t)
    return result


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(("intervention", "heads"), [(mask_sinks, "all"), (mask_sinks_in_sink_heads, "sinks")])
def test_mask(case, intervention, heads, strength):
    def change(row, sinks, t):
        row[sinks] = row[sinks] + math.log(1 - strength) if strength < 1 else -math.inf

    ours = case.logits(intervention(case.accessed, case.targets, strength=strength))
    hand = Hand(case.model, scores=lambda block, scores: on_sinks(case, block, heads, change, scores))
    assert close(ours, hand(case.ids))
    assert not close(ours, case.plain)


def test_mask_from_the_first_block_on(case):
    """Only the positions of the sinks: there are no spike tokens yet."""

    def masked(_block, scores):
        scores = scores.clone()
        for t in range(scores.shape[2]):
            scores[:, :, t, [key for key in (0, 2) if key < t]] = -math.inf
        return scores

    ours = case.logits(mask_sinks_everywhere(case.accessed, case.targets))
    assert close(ours, Hand(case.model, scores=masked)(case.ids))
    assert not close(ours, case.logits(mask_sinks(case.accessed, case.targets)))


def test_move(case):
    """Every query from position 3 on gives the weight on keys 0 and 2 to key 3."""

    def moved(_block, _scores, weights):
        weights = weights.clone()
        for t in range(3, weights.shape[2]):
            weights[:, :, t, 3] += weights[:, :, t, 0] + weights[:, :, t, 2]
            weights[:, :, t, [0, 2]] = 0
        return weights

    ours = case.logits(move_sinks(case.accessed, case.targets, position=3))
    assert close(ours, Hand(case.model, weights=moved)(case.ids))
    with pytest.raises(InputError, match="position is 0"):
        move_sinks(case.accessed, case.targets, position=0)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(
    ("intervention", "heads"), [(zero_sink_values, "all"), (zero_sink_values_in_sink_heads, "sinks")]
)
def test_zero_values(case, intervention, heads, strength):
    def change(row, sinks, t):
        row[sinks] *= 1 - strength

    ours = case.logits(intervention(case.accessed, case.targets, strength=strength))
    hand = Hand(case.model, weights=lambda block, _, weights: on_sinks(case, block, heads, change, weights))
    assert close(ours, hand(case.ids))
    assert not close(ours, case.plain)


class Rows:
    """Keeps attention weights (batch, head, query, key) by block; the sequences are short enough for one row block."""

    def __init__(self):
        self.weights = {}

    def on_attention_rows(self, rows):
        self.weights[rows.block] = rows.weights.clone()


def weights_under(case, context):
    rows = Rows()
    with context, observing(case.accessed, [rows]):
        run(case.accessed, full_batch(case.ids))
    return rows.weights


def test_zeroed_values_keep_their_weight(case):
    sums = weights_under(case, zero_sink_values(case.accessed, case.targets))[5].sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(
    ("intervention", "heads"), [(spread_sink_weight, "all"), (spread_sink_weight_in_sink_heads, "sinks")]
)
def test_spread(case, intervention, heads, strength):
    def change(row, sinks, t):
        taken = strength * sum(float(row[key]) for key in sinks)
        others = [key for key in range(t + 1) if key not in sinks]
        row[sinks] *= 1 - strength
        # A sink that sees only sinks keeps its own weight beside what it would have given away.
        for key in others or [t]:
            row[key] += taken / max(1, len(others))

    ours = case.logits(intervention(case.accessed, case.targets, strength=strength))
    hand = Hand(case.model, weights=lambda block, _, weights: on_sinks(case, block, heads, change, weights))
    assert close(ours, hand(case.ids))
    assert not close(ours, case.plain)


def test_softmax_off_by_one(case):
    def weights(block, scores, _):
        raised = scores.exp()
        return raised / (1 + raised.sum(-1, keepdim=True))

    ours = case.logits(softmax_off_by_one(case.accessed, case.targets))
    assert close(ours, Hand(case.model, weights=weights)(case.ids))
    assert not close(ours, case.plain)


@pytest.mark.parametrize("position", [None, 4])
def test_isolate_token(case, position):
    token = 11 // 2 if position is None else position

    def scores(block, scores):
        if block <= EDIT_BLOCK:
            scores[:, :, token, :token] = -math.inf
        return scores

    ours = case.logits(isolate_token(case.accessed, case.targets, position=position))
    assert close(ours, Hand(case.model, scores=scores)(case.ids))
    assert not close(ours, case.plain)


def test_random_keys_are_as_many_of_the_first_half_and_no_sinks(case):
    weights = weights_under(case, mask_sinks(case.accessed, case.targets, control="random_keys", seed=2))
    masked = (weights[3] == 0)[:, 0, -1]
    sinks = case.spikes.clone()
    sinks[:, [0, 2]] = True
    assert torch.equal(masked, (weights[5] == 0)[:, 0, -1])
    assert not (masked & sinks).any()
    assert not masked[:, 5:].any()
    assert masked.any(1).all()
    assert not (weights[1][:, :, -1] == 0).any()


def test_random_heads_are_as_many_and_no_sink_heads(case):
    context = mask_sinks_in_sink_heads(case.accessed, case.targets, control="random_heads", seed=2)
    masked = (weights_under(case, context)[3][:, :, -1, 0] == 0).all(0)
    assert int(masked.sum()) == 2
    assert not masked[[1, 2]].any()


def test_where_there_are_not_as_many_other_heads_the_control_does_not_apply(case):
    """Three of the four heads of block 3 sink: one other is no control of the same size."""
    targets = replace(case.targets, sink_heads=((3, 0), (3, 1), (3, 2), (5, 1)))
    context = mask_sinks_in_sink_heads(case.accessed, targets, control="random_heads", seed=2)
    with pytest.raises(DoesNotApplyError, match=r"block 3 .* has 3 sink heads and only 1 other"):
        case.logits(context)
    assert close(case.logits(), case.plain), "and nothing is left of it"


def losses(case, context, ids, accessed=None):
    measure, accessed = LossMeasure(), accessed or case.accessed
    with context, observing(accessed, [measure]):
        run(accessed, full_batch(ids))
    return measure


def token_losses(case, ids, targets):
    log_likelihoods = Hand(case.model)(ids).double().log_softmax(-1)
    return [
        -sum(float(log_likelihoods[row, target - 1, ids[row, target]]) for target in targets) for row in range(len(ids))
    ]


def bos_first(case):
    ids = case.ids.clone()
    ids[:, 0] = 1
    return ids


def test_repeat_bos(case):
    measured = losses(case, repeat_bos(case.accessed, case.targets, copies=3), case.ids)
    longer = torch.cat([torch.ones(3, 3, dtype=torch.long), case.ids], 1)
    assert measured.predictions == [10, 10, 10]
    assert measured.loss_sums == pytest.approx(token_losses(case, longer, range(4, 14)), rel=1e-4)


def test_copies_need_positions(case):
    """GPT-2 has learned ones, and no seventeenth here."""
    short = access(tiny("gpt2", n_positions=16, max_position_embeddings=16))
    assert losses(case, repeat_bos(short, case.targets, copies=5), case.ids, short).predictions == [10, 10, 10]
    with pytest.raises(DoesNotApplyError, match="would have 17 tokens, and the model has 16 positions"):
        losses(case, repeat_bos(short, case.targets, copies=6), case.ids, short)


def test_drop_bos(case):
    ids = bos_first(case)
    measured = losses(case, drop_bos(case.accessed, case.targets), ids)
    assert measured.predictions == [9, 9, 9]
    assert measured.loss_sums == pytest.approx(token_losses(case, ids[:, 1:], range(1, 10)), rel=1e-4)
    with pytest.raises(DoesNotApplyError, match="do not begin with BOS"):
        losses(case, drop_bos(case.accessed, case.targets), case.ids)


def test_move_bos(case):
    ids = bos_first(case)
    measured = losses(case, move_bos(case.accessed, case.targets, position=4), ids)
    moved = torch.cat([ids[:, 1:5], ids[:, :1], ids[:, 5:]], 1)
    assert measured.predictions == [9, 9, 9]
    assert measured.loss_sums == pytest.approx(token_losses(case, moved, [1, 2, 3, *range(5, 11)]), rel=1e-4)


def test_options_are_checked(case):
    with pytest.raises(InputError, match="did you mean 'random_keys'"):
        mask_sinks(case.accessed, case.targets, control="random_key")
    with pytest.raises(InputError, match="heads"):
        mask_sinks(case.accessed, case.targets, heads="some")
    with pytest.raises(InputError, match="position"):
        isolate_token(case.accessed, case.targets, position=0)
    with pytest.raises(InputError, match="copies"):
        repeat_bos(case.accessed, case.targets, copies=0)
