"""Extracted weights against the model's own modules: gamma folded, experts, fused halves, refusals."""

import pytest
import torch
from naive import naive
from tiny import FAMILIES, tiny, token_ids
from transformers.activations import ACT2FN

from spikesink.access import access, full_batch, observing, run
from spikesink.access.gated_ffn import gated_ffns
from spikesink.access.norm_weights import input_norm, norm_scale
from spikesink.access.rotary import unrotating
from spikesink.access.weights import attention_weights, key_projection, output_projection, probe, unembedding
from spikesink.errors import DoesNotApplyError

GATED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "granite", "smollm3"]


def forward(ffn, entering):
    return (ACT2FN[ffn.activation](entering @ ffn.gate.T) * (entering @ ffn.up.T)) @ ffn.down.T


@pytest.mark.parametrize("family", GATED)
def test_a_gated_ffn_from_its_weights_is_what_the_block_writes(family):
    """h~ of the naive residual through the folded weights, then output norm and multiplier, is the naive write."""
    model, ids = tiny(family), token_ids()
    reference = naive(model, family, ids)
    accessed = access(model)
    for layer_index in range(3):
        block = 2 * layer_index + 2
        sites = accessed.blocks()[block - 1]
        (ffn,) = gated_ffns(accessed, block)
        entering = reference.residuals[block - 1].float()
        norm = input_norm(accessed, block)
        assert (norm is not None) == ffn.input_normed
        output = forward(ffn, entering if norm is None else norm(entering))
        assert ffn.output_normed == (sites.output_norm is not None)
        if sites.output_norm is not None:
            with torch.no_grad():
                output = sites.output_norm(output)
        assert torch.allclose(output * sites.multiplier, reference.writes[block], rtol=1e-3, atol=1e-4)
        assert (ffn.d_ffn, ffn.d_model) == (40, 24)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_and_the_router_make_the_block(family):
    model, ids = tiny(family), token_ids()
    reference = naive(model, family, ids)
    accessed = access(model)
    for block in (2, 4, 6):
        ffns = {ffn.expert: ffn for ffn in gated_ffns(accessed, block)}
        inner = accessed.blocks()[block - 1].inner
        entering = input_norm(accessed, block)(reference.residuals[block - 1]).flatten(0, 1)
        scaled = entering * norm_scale(accessed.blocks()[block - 1], 24).gain
        if None in ffns:
            output = forward(ffns[None], entering)
        else:
            assert sorted(ffns) == ([0, 1, 2] if family == "mixtral" else [-1, 0, 1, 2])
            with torch.no_grad():
                _, weights, chosen = inner.gate(scaled)
            output = torch.zeros_like(entering)
            for token in range(len(entering)):
                for weight, expert in zip(weights[token], chosen[token], strict=True):
                    output[token] += weight * forward(ffns[int(expert)], entering[token])
            if -1 in ffns:
                with torch.no_grad():
                    output += torch.sigmoid(inner.shared_expert_gate(scaled)) * forward(ffns[-1], entering)
        assert torch.allclose(output, reference.writes[block].flatten(0, 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gpt2", "not gated"), ("gpt_neox", "not gated"), ("opt", "not gated"), ("gpt_oss", "linear term")],
)
def test_other_ffns_say_why(family, reason):
    with pytest.raises(DoesNotApplyError, match=reason):
        gated_ffns(access(tiny(family)), 2)


def test_biases_and_attention_blocks_are_refused():
    with pytest.raises(DoesNotApplyError, match="biases"):
        gated_ffns(access(tiny("llama", mlp_bias=True)), 2)
    with pytest.raises(DoesNotApplyError, match=r"Block 3 \(layer 1, attention\) is no FFN"):
        gated_ffns(access(tiny("llama")), 3)


def test_a_norm_that_is_no_norm_is_refused():
    accessed = access(tiny("llama"))
    accessed.layers[1].ffn.input_norm.forward = torch.tanh
    with pytest.raises(DoesNotApplyError, match="neither an RMSNorm nor a LayerNorm"):
        gated_ffns(accessed, 4)


def test_an_ffn_that_does_something_else_is_refused():
    accessed = access(tiny("llama"))
    inner = accessed.layers[1].ffn.inner
    plain = inner.forward
    inner.forward = lambda hidden: 1.5 * plain(hidden)
    with pytest.raises(DoesNotApplyError, match="differs from"):
        gated_ffns(accessed, 4)


def test_kinds_of_norms():
    for family, centred in (("llama", False), ("gpt2", True), ("gemma2", False)):
        scale = norm_scale(access(tiny(family)).blocks()[0], 24)
        assert scale.norm.centred == centred
    assert input_norm(access(tiny("olmo2")), 1) is None


@pytest.mark.parametrize("family", [*FAMILIES])
def test_the_first_tokens_attention_is_a_fixed_map(family):
    """W_VO on other tokens than those it was checked on; what is not known is refused, never wrong."""
    accessed = access(tiny(family))
    seen = probe(accessed)
    if family in ("gpt_oss", "gpt_neox"):
        with pytest.raises(DoesNotApplyError, match=r"W_VO|value projection"):
            attention_weights(accessed, 3, seen)
        return
    reference = naive(accessed.model, family, token_ids(seed=5))
    for block in (1, 5):
        weights = attention_weights(accessed, block, seen)
        sites = accessed.blocks()[block - 1]
        norm = input_norm(accessed, block)
        before = 0 if block == 1 else block - 1
        hidden = reference.residuals[before] if before else _embedded(accessed)
        entering = hidden[:, 0] if norm is None else norm(hidden[:, 0])
        output = entering @ weights.first_token_map().T + (0 if weights.offset is None else weights.offset)
        with torch.no_grad():
            output = output if sites.output_norm is None else sites.output_norm(output)
        assert torch.allclose(output * sites.multiplier, reference.writes[block][:, 0], rtol=2e-3, atol=2e-4)


def _embedded(accessed):
    class Keep:
        def on_residual(self, block, hidden):
            if block == 0:
                self.hidden = hidden.clone()

    keep = Keep()
    with observing(accessed, [keep]):
        run(accessed, full_batch(token_ids(seed=5)))
    return keep.hidden


@pytest.mark.parametrize(
    ("family", "exact"),
    [("llama", True), ("qwen2", True), ("phi3", True), ("gpt2", True), ("qwen3", False)],
)
def test_the_key_projection_gives_the_keys_before_rope(family, exact):
    """Fused projections (phi3) and GPT-2's Conv1D included; a norm of the keys (qwen3) is not."""

    class Keys:
        def __init__(self, rotary):
            self.rotary, self.seen = rotary, {}

        def on_attention(self, inputs):
            self.seen[inputs.block] = self.rotary.unrotated(inputs)[1]

    accessed, ids = access(tiny(family)), token_ids()
    reference = naive(accessed.model, family, ids)
    with unrotating(accessed) as rotary:
        keys = Keys(rotary)
        with observing(accessed, [keys]):
            run(accessed, full_batch(ids))
    for block in (3, 5):
        true = keys.seen[block].transpose(1, 2).flatten(2)
        weight, offset = key_projection(accessed, block, true.shape[-1])
        ours = input_norm(accessed, block)(reference.residuals[block - 1].float()) @ weight.T + offset
        assert torch.allclose(ours, true, atol=2e-3, rtol=1e-3) == exact


def test_keys_that_stand_between_queries_and_values_are_not_taken():
    with pytest.raises(DoesNotApplyError, match=r"key projection of block 3 \(layer 1, attention\)"):
        key_projection(access(tiny("gpt_neox")), 3, 24)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_the_unembedding_gives_the_models_logits(family):
    accessed = access(tiny(family))
    unembed = unembedding(accessed, probe(accessed))
    reference = naive(accessed.model, family, token_ids(seed=7))
    with torch.no_grad():
        assert torch.allclose(unembed(reference.residuals[6]), reference.logits, rtol=1e-3, atol=1e-4)


def test_an_output_that_is_gated_before_the_projection_is_refused():
    accessed = access(tiny("llama"))
    projection = accessed.layers[1].attention.inner.o_proj
    projection.register_forward_pre_hook(lambda module, args: (0.5 * args[0],))
    with pytest.raises(DoesNotApplyError, match="a gate"):
        output_projection(accessed, 3, probe(accessed))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_norms_in_float64_are_those_in_float32(family):
    """Llama's computes in float32 all the same, so that float64's limits would refuse it."""
    sites = [access(tiny(family).to(dtype)).blocks()[0] for dtype in (torch.float32, torch.float64)]
    single, double = (norm_scale(site, 24) for site in sites)
    assert single.norm == double.norm
    assert torch.equal(single.gain, double.gain)
