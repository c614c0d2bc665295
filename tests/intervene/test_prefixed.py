"""A prefix: in a cache it is what it is as tokens; BOS once; what is measured is what a cache gives."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file
from tiny import spiking, tiny, token_ids

from spikesink.access import access
from spikesink.access.rotary import learns_positions, rotates
from spikesink.analyse.evaluation import evaluate
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene.inputs import require_positions
from spikesink.intervene.prefix import IDS, load_prefix, prefix_states, prefixed

PREFIX = (1, 4)


@pytest.fixture(scope="module")
def accessed():
    return access(spiking())


def test_generate_gives_the_text_that_the_ids_give(accessed, tmp_path):
    states = prefix_states(accessed, PREFIX)
    save_file(states, tmp_path / "prefix.safetensors")
    given = token_ids(2, 5)
    cache, ids = load_prefix(tmp_path / "prefix.safetensors", accessed.model, given)
    assert ids.tolist() == [[*PREFIX, *row] for row in given.tolist()]
    assert cache.get_seq_length() == 2
    told = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    plain = accessed.model.generate(ids, **told)
    assert torch.equal(accessed.model.generate(ids, past_key_values=cache, **told), plain)
    # A cache with other states gives another text, or the comparison says nothing.
    changed = {name: state if name == IDS else state + 1.0 for name, state in states.items()}
    assert not torch.equal(
        accessed.model.generate(ids, past_key_values=load_prefix(changed, accessed.model, given)[0], **told), plain
    )


def test_what_is_no_prefix_is_refused(accessed, tmp_path):
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    for name in ("missing", "other.safetensors"):
        with pytest.raises(InputError, match=rf"{name}' is no prefix.*--for prefix"):
            load_prefix(tmp_path / name, accessed.model, token_ids(2, 5))


def test_bos_is_not_doubled(accessed):
    given = torch.tensor([[1, 9, 11], [1, 30, 31]])
    _, ids = load_prefix(prefix_states(accessed, PREFIX), accessed.model, given)
    assert ids.tolist() == [[1, 4, 9, 11], [1, 4, 30, 31]]


def test_the_measured_loss_is_that_of_the_cache(accessed):
    given = token_ids(3, 7)
    measured = evaluate(accessed, given, prefixed(accessed, PREFIX), loss_only=True)
    cache, ids = load_prefix(prefix_states(accessed, PREFIX), accessed.model, given)
    with torch.no_grad():
        losses = accessed.model(ids[:, 2:], past_key_values=cache).logits[:, :-1].log_softmax(-1)
    expected = -losses.gather(-1, given[:, 1:, None])[..., 0].sum(1)
    assert measured.predictions == [6, 6, 6]
    assert measured.loss_sums == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("begins", [(1, 1, 1), (1, 9, 1)])
def test_whether_bos_is_doubled_is_one_answer_for_the_whole_run(accessed, begins):
    """In batches of one too: it is there once where every row of the run begins with it, else twice where one does."""
    given = token_ids(3, 7)
    given[:, 0] = torch.tensor(begins)
    measured = evaluate(accessed, given, prefixed(accessed, PREFIX, given), loss_only=True, batch_size=1)
    behind = given[:, 1:] if set(begins) == {1} else given
    ids = torch.cat([torch.tensor(PREFIX).expand(3, -1), behind], 1)
    with torch.no_grad():
        losses = -accessed.model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert measured.predictions == [6, 6, 6]
    assert measured.loss_sums == pytest.approx(losses[:, -6:].sum(1).tolist(), rel=1e-4)


def test_a_prefix_needs_positions():
    short, given = access(tiny("gpt2", n_positions=16, max_position_embeddings=16)), token_ids(2, 15)
    with pytest.raises(DoesNotApplyError, match="would have 17 tokens, and the model has 16 positions"):
        evaluate(short, given, prefixed(short, PREFIX, given), loss_only=True)


def test_what_a_cache_would_drop_is_refused(accessed):
    with pytest.raises(DoesNotApplyError, match="do not keep the first tokens"):
        prefix_states(access(tiny("mistral")), PREFIX)
    other = {name: state for name, state in prefix_states(accessed, PREFIX).items() if not name.endswith(".2")}
    with pytest.raises(InputError, match="2 layers for a model of 3"):
        load_prefix(other, accessed.model, token_ids(2, 5))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_only_a_table_of_positions_ends(family):
    """Rotations go on; a table as short as 16, and OPT's with two rows more, do not."""
    accessed = access(tiny(family, n_positions=16, max_position_embeddings=16))
    assert accessed.max_positions == 16
    assert (learns_positions(accessed), rotates(accessed)) == ((True, False) if family != "llama" else (False, True))
    with pytest.raises(DoesNotApplyError) if family != "llama" else nullcontext():
        require_positions(accessed, 17)
    require_positions(accessed, 16)
