"""Plain families as points of the zoo: same logits there and back, others refused by what the zoo lacks."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spikesink.errors import UnsupportedModelError
from spikesink.zoo import from_hf, to_hf
from spikesink.zoo.convert import CONVERTIBLE, spec_of

SIZES = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 48,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES = {
    "llama": {"tie_word_embeddings": True},
    "olmo2": {},
    "qwen3": {"head_dim": 10},
    "mistral": {"sliding_window": 32},
    "qwen2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "gemma2": {"query_pre_attn_scalar": 9, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.7},
    "gemma3_text": {
        "query_pre_attn_scalar": 9,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 32,
    },
}


def tiny(model_type: str, **options):
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **{**SIZES, **CASES.get(model_type, {}), **options})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        # At their start norms and biases are constants, and a mix-up of two would not show.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def difference(one, other) -> float:
    ids = torch.randint(0, SIZES["vocab_size"], (2, 29), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return float((one(input_ids=ids).logits - other(input_ids=ids).logits).abs().max())


def test_every_family_is_tried():
    assert set(CASES) == {family.model_type for family in CONVERTIBLE}


@pytest.mark.parametrize("model_type", CASES)
def test_logits_are_the_originals(model_type):
    model = tiny(model_type)
    decoder = from_hf(model)
    assert difference(model, decoder) <= 1e-5


@pytest.mark.parametrize("model_type", ["llama", "olmo2", "qwen3", "gemma2"])
def test_there_and_back(model_type):
    decoder = from_hf(tiny(model_type))
    back = to_hf(decoder)
    assert back.config.model_type == model_type
    assert difference(decoder, back) <= 1e-5


@pytest.mark.parametrize(
    ("model_type", "options", "lacking"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type linear"),
        ("llama", {"hidden_act": "relu"}, "activation relu"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("gpt2", {}, "no point of the zoo"),
    ],
)
def test_others_are_refused_by_what_the_zoo_lacks(model_type, options, lacking):
    with pytest.raises(UnsupportedModelError, match=lacking):
        spec_of(AutoConfig.for_model(model_type, **options))


@pytest.mark.embedded
def test_embedded(embedded, golden_ids):
    decoder = from_hf(embedded.model)
    with torch.no_grad():
        ids = golden_ids[:1, :24]
        ours, theirs = decoder(input_ids=ids).logits, embedded.model(input_ids=ids).logits
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
