"""Smoothing and rotation in the weights: the same logits, other inputs, and the weights back bit for bit."""

import pytest
import torch
from tiny import tiny, token_ids
from transformers import AutoModelForCausalLM

from spikesink.access import access, full_batch, run
from spikesink.access.linears import editing_inputs, find_linears
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.fold import rotated, smoothed
from spikesink.measure.states import ChannelRange

BATCH = full_batch(token_ids())


def entering(accessed):
    """Logits and the largest magnitudes that enter every linear map."""
    ranges = ChannelRange()

    def note(site, values):
        ranges.update(site.name, values)
        return values

    with editing_inputs(find_linears(accessed), note):
        return run(accessed, BATCH), ranges.largest


def same(logits, expected):
    return float((logits - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_smoothing_divides_what_enters_and_changes_no_logit(family):
    accessed = access(tiny(family))
    before = {name: value.clone() for name, value in accessed.model.state_dict().items()}
    logits, largest = entering(accessed)
    site = next(site for site in find_linears(accessed) if site.kind == "down_proj")
    weight = site.weight.detach().abs().amax(0)
    with smoothed(accessed, largest):
        smooth, after = entering(accessed)
        assert same(smooth, logits)
        # With half of the range on each side, both have the same: sqrt(max |X| max |W|).
        expected = (largest[site.name] * weight).sqrt()
        torch.testing.assert_close(after[site.name], expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(site.weight.detach().abs().amax(0), expected, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in accessed.model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite"])
def test_a_rotated_checkpoint_is_a_plain_one_with_the_same_logits(family, tmp_path):
    accessed = access(tiny(family, tie_word_embeddings=True))
    logits, largest = entering(accessed)
    with rotated(accessed) as wrong:
        turned, after = entering(accessed)
        accessed.model.save_pretrained(tmp_path)
        assert same(turned, logits) and wrong < 1e-5
    assert accessed.model.config.tie_word_embeddings
    assert torch.equal(run(accessed, BATCH), logits)
    first, last = find_linears(accessed)[0].name, find_linears(accessed)[-1].name
    assert not torch.allclose(after[first], largest[first], rtol=0.1)
    # No plain checkpoint turns what stands behind the activation.
    torch.testing.assert_close(after[last], largest[last], rtol=1e-3, atol=1e-5)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert same(loaded(BATCH.ids).logits, logits)


@pytest.mark.parametrize(
    ("family", "why"),
    [("olmo2", "norms"), ("gptj", "LayerNorm"), ("mixtral", "not all known: .*experts"), ("gpt2", "transposed")],
)
def test_what_cannot_be_rotated_is_refused_and_left_as_it_was(family, why):
    accessed = access(tiny(family))
    before = {name: value.clone() for name, value in accessed.model.state_dict().items()}
    with pytest.raises(DoesNotApplyError, match=why), rotated(accessed):
        pass
    assert all(torch.equal(value, before[name]) for name, value in accessed.model.state_dict().items())
