"""Between the zoo and plain Hugging Face families: Llama, OLMo 2 and Qwen 3 are points of the zoo.

Only tensor names and the config differ; the weights are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spikesink.errors import UnsupportedModelError
from spikesink.zoo.arrangements import Arrangement, PreNorm, PreNormQK, SandwichQK
from spikesink.zoo.decoder import SpikesinkDecoderForCausalLM, build
from spikesink.zoo.ffn import SwiGLU
from spikesink.zoo.gates import NoGate
from spikesink.zoo.normalisers import NoVirtualKeys, Softmax
from spikesink.zoo.norms import RMSNorm
from spikesink.zoo.positions import RoPE
from spikesink.zoo.spec import DecoderSpec


@dataclass(frozen=True)
class Family:
    """A Hugging Face model type that is one point of the zoo."""

    model_type: str
    arrangement: Arrangement
    names: dict[str, str]
    """Our module name -> theirs, inside a layer."""


FAMILIES = (
    Family("llama", PreNorm(), {"ffn_layernorm": "post_attention_layernorm"}),
    Family(
        "olmo2",
        SandwichQK(),
        {"post_attention_norm": "post_attention_layernorm", "post_ffn_norm": "post_feedforward_layernorm"},
    ),
    Family("qwen3", PreNormQK(), {"ffn_layernorm": "post_attention_layernorm"}),
)


def from_hf(model: PreTrainedModel) -> SpikesinkDecoderForCausalLM:
    """A Llama, OLMo 2 or Qwen 3 as a zoo decoder with the same weights. Raises UnsupportedModelError."""
    family = next((family for family in FAMILIES if family.model_type == model.config.model_type), None)
    if family is None:
        known = ", ".join(family.model_type for family in FAMILIES)
        raise UnsupportedModelError(
            f"Model type '{model.config.model_type}' is no point of the zoo; expected one of {known}."
        )
    config = model.config
    spec = _spec_of(config, family)
    decoder = build(
        spec, bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    theirs = {theirs: ours for ours, theirs in family.names.items()}
    decoder.load_state_dict(_renamed(model.state_dict(), theirs), strict=True)
    return decoder.to(dtype=model.dtype, device=model.device).eval()  # type: ignore[arg-type]


def to_hf(decoder: SpikesinkDecoderForCausalLM) -> PreTrainedModel:
    """The decoder as a plain Llama, OLMo 2 or Qwen 3. Raises UnsupportedModelError naming what none can express."""
    spec = decoder.config.decoder_spec
    family = expressible(spec)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.ffn.width(spec.d_model),
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.d_head,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.position.theta},
        tie_word_embeddings=spec.tied_embeddings,
        bos_token_id=decoder.config.bos_token_id,
        eos_token_id=decoder.config.eos_token_id,
        pad_token_id=decoder.config.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=decoder.dtype)
    model.load_state_dict(_renamed(decoder.state_dict(), family.names), strict=True)
    return model.to(decoder.device).eval()


def expressible(spec: DecoderSpec) -> Family:
    """The plain family of this spec. Raises UnsupportedModelError naming the choices that have none."""
    needed: dict[str, Callable[[Any], bool]] = {
        "norm": lambda choice: isinstance(choice, RMSNorm),
        "ffn": lambda choice: isinstance(choice, SwiGLU),
        "gate": lambda choice: isinstance(choice, NoGate),
        "normaliser": lambda choice: isinstance(choice, Softmax),
        "virtual_keys": lambda choice: isinstance(choice, NoVirtualKeys),
        "position": lambda choice: isinstance(choice, RoPE),
        "arrangement": lambda choice: any(choice == family.arrangement for family in FAMILIES),
    }
    beyond = [
        f"{name} ({getattr(spec, name).kind})" for name, holds in needed.items() if not holds(getattr(spec, name))
    ]
    family = next((family for family in FAMILIES if family.arrangement == spec.arrangement), None)
    if family is not None and family.model_type != "qwen3" and spec.d_head * spec.n_heads != spec.d_model:
        beyond.append(f"d_head ({spec.d_head}, where {family.model_type} has d_model / n_heads)")
    if beyond or family is None:
        raise UnsupportedModelError(
            f"No plain Hugging Face family has this decoder's {', '.join(beyond)}; save it as it is, or with "
            "export(..., code=True)."
        )
    return family


def _spec_of(config: Any, family: Family) -> DecoderSpec:
    rope = config.rope_parameters
    unusual = {
        "hidden_act": config.hidden_act != "silu",
        "attention_bias": bool(config.attention_bias),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "rope_type": rope.get("rope_type", "default") != "default",
        "sliding_window": bool(getattr(config, "use_sliding_window", False)),
    }
    found = [name for name, is_unusual in unusual.items() if is_unusual]
    if found:
        raise UnsupportedModelError(f"This {family.model_type} uses {', '.join(found)}, which the zoo does not have.")
    return DecoderSpec(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_positions=config.max_position_embeddings,
        norm=RMSNorm(eps=config.rms_norm_eps),
        arrangement=family.arrangement,
        ffn=SwiGLU(d_ffn=config.intermediate_size),
        position=RoPE(theta=rope["rope_theta"]),
        tied_embeddings=config.tie_word_embeddings,
    )


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {".".join(names.get(part, part) for part in key.split(".")): tensor for key, tensor in state.items()}
