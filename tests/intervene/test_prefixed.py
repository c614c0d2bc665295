"""A prefix: in a cache it is what it is as tokens; BOS once; what is measured is what a cache gives."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import spiking, tiny, token_ids

from spikesink.access import access
from spikesink.analyse.evaluation import evaluate
from spikesink.errors import DoesNotApplyError, InputError
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


def test_what_a_cache_would_drop_is_refused(accessed):
    with pytest.raises(DoesNotApplyError, match="do not keep the first tokens"):
        prefix_states(access(tiny("mistral")), PREFIX)
    other = {name: state for name, state in prefix_states(accessed, PREFIX).items() if not name.endswith(".2")}
    with pytest.raises(InputError, match="2 layers for a model of 3"):
        load_prefix(other, accessed.model, token_ids(2, 5))
