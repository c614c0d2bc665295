"""What `scan` takes besides ids and a bare model: wrapped models, masks of any kind, lists; the rest is refused."""

import numpy as np
import pytest
import torch
from tiny import tiny, token_ids

from spikesink import dissociate, scan
from spikesink.errors import InputError, UnsupportedModelError

IDS = token_ids(3, 13)


def numbers(record):
    return record.summary.perplexity, record.summary.spike


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def expected(model):
    return numbers(scan(model, IDS))


def test_wrapped_models(model, expected):
    assert numbers(scan(torch.nn.DataParallel(model), IDS)) == expected
    assert numbers(scan(torch.compile(model), IDS)) == expected


def test_what_is_no_model():
    with pytest.raises(UnsupportedModelError, match=r"type Linear; expected a Hugging Face causal LM"):
        scan(torch.nn.Linear(2, 2), IDS)


def test_ids_as_lists(model, expected):
    assert numbers(scan(model, IDS.tolist())) == expected
    with pytest.raises(InputError, match="expected rows of one length"):
        scan(model, [[1, 2, 3], [4, 5]])


def test_masks_of_any_kind(model):
    valid = torch.ones(3, 13, dtype=torch.bool)
    valid[1, 9:] = False
    padded = numbers(scan(model, IDS, valid=valid))
    assert padded != numbers(scan(model, IDS))
    for other in (valid.long(), valid.numpy(), valid.float(), valid.tolist(), valid.long().numpy()):
        assert numbers(scan(model, IDS, valid=other)) == padded


@pytest.mark.parametrize(
    ("valid", "words"),
    [
        (np.ones((3, 12)), r"shape \(3, 12\); expected that of the token ids, \(3, 13\)"),
        (2 * np.ones((3, 13)), "other values than 0 and 1"),
        (np.array([[1] * 13, [0] * 13, [1] * 13]), "no token of sequence 1"),
    ],
)
def test_masks_that_are_none(model, valid, words):
    with pytest.raises(InputError, match=words):
        scan(model, IDS, valid=valid)


def test_positions_of_a_scaled_rotation(expected):
    """The config's limit is the length before scaling: four times as many positions are there."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    model = tiny("llama", max_position_embeddings=16, rope_parameters=rope)
    scan(model, token_ids(2, 64))
    with pytest.raises(InputError, match="65 tokens are beyond the model's 64 positions"):
        scan(model, token_ids(2, 65))


@pytest.mark.parametrize("tokens", [2, 3])
def test_edits_of_the_input_on_short_sequences_are_rows_that_do_not_apply(model, tokens):
    ids = token_ids(8, tokens)
    ids[:, 0] = model.config.bos_token_id
    record = dissociate(model, ids, which="input", held_out=4, draws=1)
    rows = {row.name: row for row in record.interventions}
    assert rows["repeat_bos"].applicable
    for name in ("move_bos", "move_bos/second_token") + (("drop_bos",) if tokens == 2 else ()):
        assert not rows[name].applicable
        assert f"{tokens} tokens are too short" in rows[name].reason
