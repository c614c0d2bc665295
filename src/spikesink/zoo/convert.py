"""Between the zoo and plain Hugging Face families, whose plain members are points of the zoo.

Only tensor names, the config and Gemma's conventions differ; the weights are the same.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spikesink.errors import UnsupportedModelError
from spikesink.zoo.arrangements import Arrangement, PreNorm, PreNormQK, Sandwich, SandwichQK
from spikesink.zoo.decoder import SpikesinkDecoderForCausalLM, build
from spikesink.zoo.ffn import GeGLU, SwiGLU
from spikesink.zoo.gates import NoGate
from spikesink.zoo.normalisers import NoVirtualKeys, Softmax
from spikesink.zoo.norms import RMSNorm
from spikesink.zoo.positions import RoPE
from spikesink.zoo.spec import DecoderSpec

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Family:
    """A Hugging Face model type whose plain members are points of the zoo."""

    model_type: str
    arrangement: Arrangement
    names: dict[str, str]
    """Our module name -> theirs, inside a layer."""
    ffn: type[SwiGLU] | type[GeGLU] = SwiGLU
    qkv_bias: bool = False
    gemma: bool = False
    """Embeddings times sqrt(d_model), norms with weight 1 + w, queries scaled by a number of their own."""
    export: bool = False
    """Whether `to_hf` writes it: the others say nothing that one of these does not."""


PRE = {"ffn_layernorm": "post_attention_layernorm"}
SANDWICH = {
    "ffn_layernorm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}
CONVERTIBLE = (
    Family("llama", PreNorm(), PRE, export=True),
    Family(
        "olmo2",
        SandwichQK(),
        {"post_attention_norm": "post_attention_layernorm", "post_ffn_norm": "post_feedforward_layernorm"},
        export=True,
    ),
    Family("qwen3", PreNormQK(), PRE, export=True),
    Family("gemma2", Sandwich(), SANDWICH, ffn=GeGLU, gemma=True, export=True),
    Family("gemma3_text", Sandwich(qk_norm_over="head"), SANDWICH, ffn=GeGLU, gemma=True),
    Family("mistral", PreNorm(), PRE),
    Family("qwen2", PreNorm(), PRE, qkv_bias=True),
    Family("smollm3", PreNorm(), PRE),
)


def from_hf(model: PreTrainedModel) -> SpikesinkDecoderForCausalLM:
    """A model of one of CONVERTIBLE as a zoo decoder that computes the same. Raises UnsupportedModelError.

    Where layers slide a window over the keys, `max_positions` is the window: so far both see all of them.
    """
    config = model.config
    spec = spec_of(config)
    family = _family(config)
    decoder = build(
        spec, bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    theirs = {theirs: ours for ours, theirs in family.names.items()}
    state = _renamed(model.state_dict(), theirs)
    if family.gemma:
        _from_gemma(state, config)
    decoder.load_state_dict(state, strict=True)
    return decoder.to(dtype=model.dtype, device=model.device).eval()  # type: ignore[arg-type]


def to_hf(decoder: SpikesinkDecoderForCausalLM) -> PreTrainedModel:
    """The decoder as a plain Llama, OLMo 2, Qwen 3 or Gemma 2. Raises UnsupportedModelError naming what has none."""
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
        **(_gemma_options(spec) if family.gemma else {}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=decoder.dtype)
    state = _renamed(decoder.state_dict(), family.names)
    if family.gemma:
        _to_gemma(state, spec.d_model)
    model.load_state_dict(state, strict=True)
    return model.to(decoder.device).eval()


def expressible(spec: DecoderSpec) -> Family:
    """The plain family of this spec. Raises UnsupportedModelError naming the choices that have none."""
    needed: dict[str, Callable[[Any], bool]] = {
        "norm": lambda choice: isinstance(choice, RMSNorm),
        "ffn": lambda choice: isinstance(choice, SwiGLU) or (isinstance(choice, GeGLU) and _is_sandwich(spec)),
        "gate": lambda choice: isinstance(choice, NoGate),
        "normaliser": lambda choice: isinstance(choice, Softmax),
        "virtual_keys": lambda choice: isinstance(choice, NoVirtualKeys),
        "position": lambda choice: isinstance(choice, RoPE) and not choice.theta_by_layer,
        "arrangement": lambda choice: any(choice == family.arrangement for family in CONVERTIBLE if family.export),
    }
    beyond = [
        f"{name} ({getattr(spec, name).kind})" for name, holds in needed.items() if not holds(getattr(spec, name))
    ]
    if spec.qkv_bias:
        beyond.append("qkv_bias")
    if (spec.attention_softcap or spec.logit_softcap) and not _is_sandwich(spec):
        beyond.append("softcap")
    family = next((family for family in CONVERTIBLE if family.export and family.arrangement == spec.arrangement), None)
    if family is not None and family.model_type in ("llama", "olmo2") and spec.d_head * spec.n_heads != spec.d_model:
        beyond.append(f"d_head ({spec.d_head}, where {family.model_type} has d_model / n_heads)")
    if beyond or family is None:
        raise UnsupportedModelError(
            f"No plain Hugging Face family has this decoder's {', '.join(beyond)}; save it as it is, or with "
            "export(..., code=True)."
        )
    return family


def _is_sandwich(spec: DecoderSpec) -> bool:
    return spec.arrangement == Sandwich()


def _family(config: Any) -> Family:
    family = next((family for family in CONVERTIBLE if family.model_type == config.model_type), None)
    if family is None:
        known = ", ".join(family.model_type for family in CONVERTIBLE)
        raise UnsupportedModelError(
            f"Model type '{config.model_type}' is no point of the zoo; expected one of {known}."
        )
    return family


def spec_of(config: Any) -> DecoderSpec:
    """The spec of a Hugging Face config. Raises UnsupportedModelError naming the first thing that the zoo lacks."""
    family = _family(config)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    expected = {SwiGLU: "silu", GeGLU: "gelu_pytorch_tanh"}
    ffn = next((kind for kind, name in expected.items() if name == activation), None)
    unusual = {
        f"activation {activation}": ffn is None,
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "use_bidirectional_attention": bool(getattr(config, "use_bidirectional_attention", False)),
        **{f"rope_type {kind}": kind != "default" for kind in _rope_types(config)},
    }
    beyond = [name for name, is_unusual in unusual.items() if is_unusual]
    if beyond or ffn is None:
        raise UnsupportedModelError(f"This {family.model_type} uses {beyond[0]}, which the zoo does not have.")
    return DecoderSpec(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_positions=_max_positions(config),
        norm=RMSNorm(eps=config.rms_norm_eps),
        arrangement=family.arrangement,
        ffn=ffn(d_ffn=config.intermediate_size),
        position=_position(config),
        qkv_bias=family.qkv_bias,
        attention_softcap=getattr(config, "attn_logit_softcapping", None),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        tied_embeddings=config.tie_word_embeddings,
    )


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary parameters by layer type, "" where all layers share them."""
    rope = config.rope_parameters
    return {"": rope} if "rope_theta" in rope else {kind: rope[kind] for kind in dict.fromkeys(config.layer_types)}


def _rope_types(config: Any) -> set[str]:
    ropes = _ropes(config).values()
    partial = {"partial" for rope in ropes if rope.get("partial_rotary_factor", 1.0) != 1.0}
    return {rope.get("rope_type", "default") for rope in ropes} | partial


def _position(config: Any) -> RoPE:
    ropes = _ropes(config)
    rotated = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    if "" in ropes:
        theta = ropes[""]["rope_theta"]
        by_layer = tuple(theta if here else 0.0 for here in rotated)
    else:
        by_layer = tuple(ropes[kind]["rope_theta"] for kind in config.layer_types)
        theta = by_layer[-1]
    return RoPE(theta=theta, theta_by_layer=() if set(by_layer) == {theta} else by_layer)


def _max_positions(config: Any) -> int:
    """As far as no layer's window has left a key behind."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return min(config.max_position_embeddings, window) if window and slides else config.max_position_embeddings


def _from_gemma(state: dict[str, Tensor], config: Any) -> None:
    """Gemma's conventions as plain weights, in place: norms of 1 + w, scaled embeddings, its own scale of queries.

    The scale of the embeddings is taken back by the final norm, so that a tied head stays what it was.
    """
    for key in state:
        if "norm" in key:
            state[key] = state[key] + 1
    queries = config.query_pre_attn_scalar**-0.5 * config.head_dim**0.5
    names = "q_norm.weight" if any("q_norm" in key for key in state) else "q_proj.weight"
    for key in state:
        if key.endswith(names):
            state[key] = state[key] * queries
    _scale_embeddings(state, config.hidden_size**0.5, tied=config.tie_word_embeddings)


def _to_gemma(state: dict[str, Tensor], d_model: int) -> None:
    tied = "lm_head.weight" in state and state["lm_head.weight"].data_ptr() == state[EMBEDDING].data_ptr()
    _scale_embeddings(state, d_model**-0.5, tied=tied)
    for key in state:
        if "norm" in key:
            state[key] = state[key] - 1


def _scale_embeddings(state: dict[str, Tensor], factor: float, *, tied: bool) -> None:
    state[EMBEDDING] = state[EMBEDDING] * factor
    if tied:
        state["lm_head.weight"] = state[EMBEDDING]
        state["model.norm.weight"] = state["model.norm.weight"] / factor


def _gemma_options(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "hidden_activation": "gelu_pytorch_tanh" if isinstance(spec.ffn, GeGLU) else "silu",
        "query_pre_attn_scalar": spec.d_head,
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "sliding_window": spec.max_positions,
        "layer_types": ["full_attention"] * spec.n_layers,
    }


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {".".join(names.get(part, part) for part in key.split(".")): tensor for key, tensor in state.items()}


AUTO_MAP = {
    "AutoConfig": "decoder.SpikesinkDecoderConfig",
    "AutoModelForCausalLM": "decoder.SpikesinkDecoderForCausalLM",
}
LEFT_OUT = {"__init__.py", "convert.py", "export.py", "graft.py"}


def export(
    decoder: SpikesinkDecoderForCausalLM, folder: Path | str, *, code: bool = False, tokenizer: Any | None = None
) -> Path:
    """Write a checkpoint that other programs read; returns the folder.

    Plain (Llama, OLMo 2, Qwen 3, Gemma 2) where the spec allows; raises UnsupportedModelError where it does not. With
    `code`, any spec: the zoo's source goes beside the weights and `auto_map` names it, to be run by
    `from_pretrained(..., trust_remote_code=True)`.
    """
    folder = Path(folder)
    if code:
        decoder.save_pretrained(folder)
        _add_code(folder)
    else:
        to_hf(decoder).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _add_code(folder: Path) -> None:
    """Copy the zoo as one flat folder: what transformers' loader of such code can follow is relative imports."""
    here = Path(__file__).parent
    sources = [path for path in sorted(here.glob("*.py")) if path.name not in LEFT_OUT]
    for path in [*sources, here.parent / "errors.py"]:
        text = path.read_text(encoding="utf-8")
        text = text.replace("from spikesink.zoo.", "from .").replace("from spikesink.errors", "from .errors")
        (folder / path.name).write_text(text, encoding="utf-8")
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "auto_map": AUTO_MAP}, indent=2) + "\n", encoding="utf-8")
