"""Tiny random models of every supported family, built from configs, with pairwise different sizes; and a tokenizer."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 97
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "olmo2": {},
    "phi3": {"resid_pdrop": 0.0, "sliding_window": None},
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 40},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5},
    "gptj": {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 40, "rotary_dim": 4},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 24},
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
        "decoder_sparse_step": 2,
    },
    "granite": {"residual_multiplier": 0.6, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "smollm3": {"no_rope_layer_interval": 2},
}
VARIANTS: dict[str, tuple[str, dict]] = {
    "opt-post-norm": ("opt", {"ffn_dim": 40, "word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    # Not listed in access/families.py: guessed, three of them parallel with one norm.
    "cohere": ("cohere", {}),
    "phi": ("phi", {"hidden_size": 32, "num_key_value_heads": 4, "head_dim": 8}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "vaultgemma": ("vaultgemma", {"sliding_window": 5}),
}


def tiny(family: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A random model of a family (or named variant), with weights large enough that attention is far from uniform."""
    model_type, options = VARIANTS.get(family, (family, FAMILIES.get(family, {})))
    config = AutoConfig.for_model(model_type, **{**COMMON, **options, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
            else:
                # Norm scales and biases away from their trivial starting values, so that each matters.
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


MARKED = 5
"""Token ids below this spike in a `spiking` model: about one token in twenty."""


def spiking(channel: int = 3, marker: int = 7, **changes) -> PreTrainedModel:
    """A tiny Llama in which the first FFN writes a spike at marked tokens, and nowhere else.

    Their embeddings alone have a value in the marker's channel; one hidden unit reads it and writes the spike.
    """
    model = tiny("llama", **changes)
    first = model.model.layers[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[:, marker] = 0
        model.get_input_embeddings().weight[:MARKED, marker] = 1.0
        first.self_attn.o_proj.weight[marker] = 0
        for matrix in (first.mlp.gate_proj, first.mlp.up_proj):
            matrix.weight[0] = 0
            matrix.weight[0, marker] = 6.0
        first.mlp.down_proj.weight[:, 0] = 0
        first.mlp.down_proj.weight[channel, 0] = 4.0
    return model


def token_ids(sequences: int = 3, tokens: int = 13, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of VOCAB whole words w3 ... and an unknown one."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
