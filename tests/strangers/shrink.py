"""A tiny random model of any causal-LM architecture of transformers: its default config, made small."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
LAYERS = 3
POSITIONS = 640
PARAMETERS_MAX = 50_000_000
"""A config that is still larger than this after shrinking is not built."""

SIZES: dict[str, str] = {
    "layers": """num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers
        num_decoder_layers depth""",
    "hidden": """hidden_size n_embd d_model dim embed_dim emb_dim embedding_size embedding_dim word_embed_proj_dim
        backbone_hidden_size attention_hidden_size""",
    "inner": """intermediate_size ffn_dim n_inner d_ff dff dim_ff ffn_hidden_size d_inner decoder_ffn_dim
        encoder_ffn_dim feed_forward_size dense_intermediate_size intermediate_size_mlp shared_intermediate_size
        expert_ffn_hidden_size prefix_dense_intermediate_size""",
    "expert": """moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size""",
    "heads": """num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads""",
    "kv_heads": "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads",
    "head": """head_dim d_head v_head_dim kv_channels dim_head attention_head_size swa_head_dim global_head_dim
        linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim mamba_head_dim mamba_d_head
        swa_v_head_dim attention_head_dim""",
}
"""Names of the same size in different configs."""
FIXED: dict[str, int] = {
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "n_positions": POSITIONS,
    "n_ctx": POSITIONS,
    "max_position_embeddings": POSITIONS,
    "max_seq_len": POSITIONS,
    "max_sequence_length": POSITIONS,
    "max_target_positions": POSITIONS,
    "sliding_window": 5,
    "sliding_window_size": 5,
    "window_size": 5,
    "attention_window_size": 5,
    "local_attention": 6,
    "attention_chunk_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "num_expert_group": 1,
    "n_groups": 4,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "o_lora_rank": 8,
    "o_groups": 2,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "index_n_heads": 2,
    "index_topk": 8,
    "rotary_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "mamba_n_heads": 12,
    "mamba_num_heads": 12,
    "n_mamba_heads": 2,
    "mamba_d_state": 8,
    "mamba_d_ssm": 96,
    "ssm_state_size": 8,
    "state_size": 8,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "type_vocab_size": 2,
    "num_mtp_layers": 0,
    "num_nextn_predict_layers": 0,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "lru_width": 48,
}
VARIANTS: tuple[dict[str, int], ...] = (
    {"hidden": 48, "inner": 40, "expert": 20, "heads": 4, "kv_heads": 2, "head": 8},
    {"hidden": 48, "inner": 40, "expert": 20, "heads": 4, "kv_heads": 2, "head": 12},
    {"hidden": 64, "inner": 80, "expert": 32, "heads": 4, "kv_heads": 4, "head": 16},
    {"hidden": 48, "inner": 40, "expert": 20, "heads": 4, "kv_heads": 2, "head": 12, "fill": 1},
)
"""Sizes tried in turn: some families want heads x d_head = hidden, or as many key heads as query heads, or a number
where the default is None."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "gemma3n_text": {"intermediate_size": [40, 40, 40], "activation_sparsity_pattern": [0.0, 0.0, 0.0]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 12, "head_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 2,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2},
    "zamba2": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 96,
        "attention_head_dim": 24,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beyond smaller numbers; keys of sub-configs are dictionaries."""


OLD_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}
"""Kinds of layers by the names that some families had for them in older versions."""


class NotBuiltError(Exception):
    """The shrunken config makes no model; says why."""


def causal_types() -> list[str]:
    """Every model type that the installed transformers makes a causal LM of."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model that runs. Raises NotBuiltError with what the family says of each size that was tried."""
    reasons = []
    for variant in VARIANTS:
        try:
            config = config_of(model_type, variant)
            with torch.device("meta"):
                size = sum(p.numel() for p in _model(config).parameters())
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
            continue
        if size > PARAMETERS_MAX:
            reasons.append(f"still {size / 1e6:.0f}M parameters")
            continue
        for scale in (6.0, 2.0, 1.0):
            try:
                model = _random(config, seed, scale)
                if _finite(model):
                    return model
                reasons.append(f"not finite with weights x {scale:g}")
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
                break
    raise NotBuiltError(reasons[0])


def _model(config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def _random(config: PreTrainedConfig, seed: int, scale: float) -> PreTrainedModel:
    """Weights large enough that attention is not uniform, and no norm scale, bias or buffer at its trivial start."""
    torch.manual_seed(seed)
    model = _model(config)
    persistent = set(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name in persistent and buffer.is_floating_point():
                buffer.add_(0.2 * torch.randn_like(buffer))
    return model


def _finite(model: PreTrainedModel) -> bool:
    with torch.inference_mode():
        return bool(torch.isfinite(model(input_ids=token_ids(1, 16), use_cache=False).logits).all())


def token_ids(sequences: int, tokens: int, seed: int = 1) -> torch.Tensor:
    # Not the first ids: some families give special meaning to padding.
    return torch.randint(3, VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def config_of(model_type: str, variant: dict[str, int]) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[model_type]
    return kind(**_options(kind, variant, OVERRIDES.get(model_type, {})))


def _options(kind: type, variant: dict[str, int], overrides: dict[str, Any]) -> dict[str, Any]:
    """What the config class is called with: every known size in its defaults, made small."""
    default: Any = kind()
    small = {**FIXED, "layers": LAYERS}
    for role, names in SIZES.items():
        small |= dict.fromkeys(names.split(), variant.get(role, LAYERS))
    settable = {name for name, _ in _values(default)}
    kinds = (int, type(None)) if variant.get("fill") else (int,)
    options = {name: small[name] for name, value in _values(default) if name in small and type(value) in kinds}
    if "kv_lora_rank" in options:
        # Multi-head latent attention: what is rotated is a part of the head, and every query head has its key.
        options |= {"head_dim": small["qk_rope_head_dim"]} if "head_dim" in settable else {}
        options |= {"num_key_value_heads": variant["heads"]} if "num_key_value_heads" in settable else {}
    if "is_decoder" in settable:
        options["is_decoder"] = True
    for name, value in _values(default):
        if isinstance(value, list) and len(value) == getattr(default, "num_hidden_layers", -1):
            options[name] = _pattern(value)
    for name in getattr(kind, "sub_configs", {}):
        sub = getattr(default, name, None)
        if isinstance(sub, PreTrainedConfig):
            options[name] = _sub(sub, variant, overrides.get(name, {}))
    for name, value in overrides.items():
        if not isinstance(value, dict) or name not in getattr(kind, "sub_configs", {}):
            options[name] = _as_named(value, getattr(default, name, None))
    return options


def _sub(sub: PreTrainedConfig, variant: dict[str, int], overrides: dict[str, Any]) -> dict[str, Any]:
    return {**_options(type(sub), variant, overrides), "model_type": sub.model_type}


def _values(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in vars(config).items() if not name.startswith("_"))


def _as_named(value: Any, default: Any) -> Any:
    """Kinds of layers by the names that the default config of this version has for them."""
    if isinstance(value, list) and isinstance(default, list) and "mamba" in default:
        return [OLD_KINDS.get(kind, kind) for kind in value]
    return value


def _pattern(per_layer: list) -> list:
    """One of each kind of layer, in order of appearance, repeated to LAYERS."""
    kinds = list(dict.fromkeys(per_layer))
    return [kinds[index % len(kinds)] for index in range(max(LAYERS, len(kinds)))]
