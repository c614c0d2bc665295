"""Known answers: where a variant must equal another computation exactly, and parameter counts by hand."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from zoo_grid import BASE, decoder, spec_of, token_ids

from spikesink.errors import UnsupportedModelError
from spikesink.zoo import (
    ConditionalGate,
    DecoderSpec,
    KeyValueBias,
    LearnedPosition,
    LearnedSink,
    NoNorm,
    NoPosition,
    OffByOne,
    Registers,
    RMSNorm,
    Sandwich,
    SandwichQK,
    Sigmoid,
    UnconditionalGate,
    build,
    from_hf,
    to_hf,
)


def logits(model, ids=None):
    with torch.no_grad():
        return model(token_ids() if ids is None else ids).logits


def twin(model, **changes):
    """The same weights under a changed spec; what the change adds keeps its fresh value, what it drops is left out."""
    torch.manual_seed(5)
    other = build(model.config.decoder_spec.model_copy(update=changes)).eval()
    wanted = other.state_dict()
    other.load_state_dict({**wanted, **{k: v for k, v in model.state_dict().items() if k in wanted}})
    return other


def test_parameter_count_of_table_9():
    with torch.device("meta"):
        model = build(DecoderSpec())
    per_layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    assert sum(p.numel() for p in model.parameters()) == 2 * 32000 * 4096 + 32 * per_layer + 4096 == 6_738_415_616


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # d 24, 4 heads of 10, 2 KV heads, d_ffn 40, 3 layers, vocabulary 53
        ("baseline", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24) + 24),
        ("tied", 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24) + 24),
        ("sandwich", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 4 * 24) + 24),
        ("sandwich-qk", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24 + 40 + 20) + 24),
        ("pre-qk", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24 + 10 + 10) + 24),
        ("dyt", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * (2 * 24 + 1)) + 2 * 24 + 1),
        ("gelu", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 2 * 24 * 40 + 2 * 24) + 24),
        ("linear", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 24 * 24 + 2 * 24) + 24),
        ("attention-ffn", 2 * 53 * 24 + 3 * (2 * (2 * 24 * 40 + 2 * 24 * 20) + 2 * 24) + 24),
        ("gate-conditional-channel", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 4 * 24 * 40 + 2 * 24) + 24),
        ("gate-unconditional-head", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24 + 4) + 24),
        ("prefix", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24 + 2 * 5 * 20) + 24),
        ("registers", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40 + 2 * 24) + 24 + 2 * 24),
        ("no-norm", 2 * 53 * 24 + 3 * (2 * 24 * 40 + 2 * 24 * 20 + 3 * 24 * 40)),
    ],
)  # fmt: skip
def test_parameter_counts(name, expected):
    assert build(spec_of(name)).num_parameters() == expected


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3"])
def test_hugging_face_checkpoints_give_their_logits(family, tmp_path):
    torch.manual_seed(2)
    config = AutoConfig.for_model(
        family, vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=64, rms_norm_eps=1e-6, pad_token_id=None,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter * 6 if parameter.ndim > 1 else parameter + 0.2 * torch.randn_like(parameter))
    ours = from_hf(theirs)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    back = to_hf(ours)
    assert type(back) is type(theirs)
    back.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(theirs))


def test_what_no_family_expresses_is_named():
    with pytest.raises(UnsupportedModelError, match=r"norm \(dyt\)"):
        to_hf(decoder(spec_of("dyt")))
    with pytest.raises(UnsupportedModelError, match=r"d_head \(10"):
        to_hf(decoder(BASE))
    with pytest.raises(UnsupportedModelError, match="'gpt2' is no point of the zoo"):
        from_hf(
            AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=2, vocab_size=9))
        )


@pytest.mark.parametrize("per", ["channel", "head", "single"])
def test_a_gate_forced_open_is_no_gate(per):
    base = decoder(BASE)
    conditional = twin(base, gate=ConditionalGate(per=per, bias=True))
    unconditional = twin(base, gate=UnconditionalGate(per=per))
    assert not torch.allclose(logits(conditional), logits(base), atol=1e-3)
    with torch.no_grad():
        for layer in conditional.model.layers:
            layer.self_attn.gate.proj.bias.fill_(100.0)
        for layer in unconditional.model.layers:
            layer.self_attn.gate.logits.fill_(100.0)
    assert torch.allclose(logits(conditional), logits(base), atol=1e-6)
    assert torch.allclose(logits(unconditional), logits(base), atol=1e-6)


def test_a_gate_multiplies_each_head_before_the_output_projection():
    """Gate of one head at 0 equals that head's rows of W_O at 0."""
    base = decoder(BASE)
    gated = twin(base, gate=UnconditionalGate(per="head"))
    with torch.no_grad():
        for layer in gated.model.layers:
            layer.self_attn.gate.logits.fill_(100.0)
            layer.self_attn.gate.logits[2].fill_(-1000.0)
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight[:, 20:30] = 0
    assert torch.allclose(logits(gated), logits(base), atol=1e-5)


def test_sandwich_without_an_operator_is_pre_norm_without_one():
    base = decoder(BASE.model_copy(update={"norm": NoNorm()}))
    assert torch.equal(logits(twin(base, arrangement=Sandwich())), logits(base))
    assert torch.equal(logits(twin(base, arrangement=SandwichQK())), logits(base))


def test_sandwich_output_norm_sets_the_size_of_a_write():
    """With scale gamma, every write of a sandwich has norm gamma sqrt(d), whatever the block computes."""
    model = decoder(spec_of("sandwich"))
    writes = []
    for layer in model.model.layers:
        for norm in (layer.post_attention_norm, layer.post_ffn_norm):
            with torch.no_grad():
                norm.weight.fill_(0.7)
            norm.register_forward_hook(lambda _module, _args, output: writes.append(output.norm(dim=-1)))
    logits(model)
    assert len(writes) == 6
    assert all(torch.allclose(write, torch.tensor(0.7 * math.sqrt(24)), rtol=1e-3) for write in writes)


def test_a_norm_under_autocast_is_computed_in_its_weights_dtype(recwarn):
    norm = RMSNorm(eps=1e-3).build(7)
    torch.nn.init.normal_(norm.weight)
    write = torch.randn(3, 5, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        normed = norm(write)
    rms = (write.double().square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(normed, (write.double() / rms * norm.weight.double()).float())
    assert not recwarn.list


def test_a_learned_sink_at_minus_infinity_is_softmax_and_at_zero_off_by_one():
    base = decoder(BASE)
    sink = twin(base, normaliser=LearnedSink())
    assert torch.allclose(logits(sink), logits(twin(base, normaliser=OffByOne())), atol=1e-6)
    assert not torch.allclose(logits(sink), logits(base), atol=1e-3)
    with torch.no_grad():
        for layer in sink.model.layers:
            layer.self_attn.sinks.logits.fill_(-1e4)
    assert torch.allclose(logits(sink), logits(base), atol=1e-5)


def test_off_by_one_by_hand():
    """exp(s) / (1 + sum exp(s)) from the scores of the first layer, token by token."""
    model = decoder(spec_of("off-by-one"))
    model.set_attn_implementation("eager")
    ids = token_ids(1, 5)
    with torch.no_grad():
        ours = model(ids, output_attentions=True).attentions[0][0]
        plain = twin(model, normaliser=BASE.normaliser)
        plain.set_attn_implementation("eager")
        softmax = plain(ids, output_attentions=True).attentions[0][0]
    # softmax weights are exp(s) up to the row's sum Z; ours are exp(s) / (1 + Z) = softmax * Z / (1 + Z).
    factor = (ours / softmax.clamp_min(1e-12))[..., 0]
    assert torch.allclose(ours, softmax * factor[..., None], atol=1e-6)
    first = model.model.layers[0].self_attn
    with torch.no_grad():
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids[:, :1]))
        query, key = first.q_proj(hidden).view(4, 10), first.k_proj(hidden).view(2, 10)
        score = (query * key.repeat_interleave(2, 0)).sum(-1) / math.sqrt(10)
    assert torch.allclose(ours[:, 0, 0], score.exp() / (1 + score.exp()), atol=1e-6)


def test_sigmoid_by_hand():
    bias = -1.3
    model = decoder(BASE.model_copy(update={"normaliser": Sigmoid(bias=bias), "position": NoPosition()}))
    model.set_attn_implementation("eager")
    ids = token_ids(1, 4)
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions[0][0]
        first = model.model.layers[0]
        hidden = first.input_layernorm(model.model.embed_tokens(ids))[0]
        query = first.self_attn.q_proj(hidden).view(4, 4, 10)
        key = first.self_attn.k_proj(hidden).view(4, 2, 10).repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(10)
    expected = torch.sigmoid(scores + bias) * torch.ones(4, 4).tril()
    assert torch.allclose(weights, expected, atol=1e-6)


def test_a_zero_key_and_value_is_off_by_one():
    """A virtual key of zeros has logit 0 and its value adds nothing: the softmax gets a 1 in its denominator."""
    base = decoder(BASE)
    biased = twin(base, virtual_keys=KeyValueBias(n=1))
    with torch.no_grad():
        for layer in biased.model.layers:
            layer.self_attn.virtual.key.zero_()
            layer.self_attn.virtual.value.zero_()
    assert torch.allclose(logits(biased), logits(twin(base, normaliser=OffByOne())), atol=1e-5)


def test_registers_are_learned_tokens_in_front():
    """The same as their vectors put before the embeddings, since RoPE sees differences of positions only."""
    base = decoder(BASE)
    with_registers = twin(base, virtual_keys=Registers(n=2))
    ids = token_ids()
    with torch.no_grad():
        vectors = with_registers.model.registers.weight.mul_(20.0).expand(2, -1, -1)
        in_front = torch.cat([vectors, base.model.embed_tokens(ids)], dim=1)
        expected = base(inputs_embeds=in_front).logits[:, 2:]
    assert torch.allclose(logits(with_registers), expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(logits(with_registers), logits(base), atol=1e-2)


def test_learned_positions_at_zero_are_no_positions():
    base = decoder(BASE.model_copy(update={"position": NoPosition()}))
    learned = twin(base, position=LearnedPosition())
    assert not torch.allclose(logits(learned), logits(base), atol=1e-3)
    with torch.no_grad():
        learned.model.embed_positions.weight.zero_()
    assert torch.equal(logits(learned), logits(base))


def test_without_positions_the_order_of_the_past_does_not_matter_in_one_layer():
    model = decoder(BASE.model_copy(update={"position": NoPosition(), "n_layers": 1}))
    ids = token_ids(1, 6)
    swapped = ids[:, [2, 0, 1, 4, 3, 5]]
    assert torch.allclose(logits(model, ids)[:, -1], logits(model, swapped)[:, -1], atol=1e-5)
    rope = twin(model, position=BASE.position)
    assert not torch.allclose(logits(rope, ids)[:, -1], logits(rope, swapped)[:, -1], atol=1e-3)


def test_initialisations():
    torch.manual_seed(0)
    wide = {"d_model": 192, "d_head": 48, "n_kv_heads": 4}
    for name, expected in (
        ("baseline", 0.02),
        ("scaled-init", 0.02 / math.sqrt(6)),
        ("fan-in-init", 1 / math.sqrt(192)),
    ):
        layer = build(spec_of(name).model_copy(update=wide)).model.layers[1]
        assert float(layer.self_attn.o_proj.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        up = 1 / math.sqrt(192) if name == "fan-in-init" else 0.02
        assert float(layer.mlp.up_proj.weight.detach().std()) == pytest.approx(up, rel=0.05)


def test_positional_gate_sees_positions_and_the_token_gate_tokens():
    """A gate's signal alone decides: same position, other token (and the other way round) gives the same gate."""
    from spikesink.zoo.context import Context
    from spikesink.zoo.gates import build_gate

    attended = torch.ones(1, 2, 4, 10)
    hidden = torch.randn(1, 2, 24)
    embedding = torch.randn(1, 2, 24)

    def opened(kind, positions, embedding, hidden):
        torch.manual_seed(1)
        gate = build_gate(spec_of(kind).gate, 24, 4, 10)
        return gate(attended, hidden, Context(torch.tensor([positions]), embedding, None))

    for kind, moved in (("gate-positional", 0), ("gate-token-embedding", 1), ("gate-conditional-channel", 2)):
        start = opened(kind, [3, 9], embedding, hidden)
        changes = (([3, 8], embedding, hidden), ([3, 9], embedding + 1, hidden), ([3, 9], embedding, hidden + 1))
        for index, change in enumerate(changes):
            assert torch.equal(opened(kind, *change), start) == (index != moved)
