"""The keys and tensors of a GGUF file, compared with what transformers builds of it: applied, irrelevant, or refused.

transformers reads some of the keys and tensors of some architectures and drops the rest without a word. Every key and
every tensor is accounted for here, so that what changes the model either reaches it or is refused by name.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from gguf.constants import MODEL_ARCH_NAMES

from spikesink.access.gguf_header import GgufHeader, Value
from spikesink.errors import ModelError

EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.layer_norm_epsilon": EPSILONS,
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual",),
    "logit_scale": ("logit_scale",),
}
"""The attribute of a config that a key sets: the first that the model's config has."""
REQUIRED = (
    ("embedding_length",),
    ("block_count",),
    ("attention.head_count",),
    ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
)
"""What every file says, one of each group; a config's own default is that of another model."""
DEFAULT_ROPE_BASE = 10_000.0
"""What a file means that names none."""
ROPE_SCALING = ("linear", "yarn")
ROPE_KEYS = frozenset(
    {"rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"}
    | {"rope.scaling.finetuned", "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"}
    | {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
)
IRRELEVANT = frozenset({"tensor_data_layout", "nextn_predict_layers"})
"""Keys of an architecture that change nothing: how the weights lay before, and layers that predict further tokens."""
IRRELEVANT_TENSORS = re.compile(r"attn_rot_embd|rotary_emb\.inv_freq|attn\.masked_bias|\.nextn\.")
MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
"""Where transformers' name of an architecture is not GGUF's."""
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the one size whose query scale is by d_model / heads instead of d_head; the file does not say it."""
SPLIT_LIKE_GPT2 = (
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "a.x-4.0", "mellum", "modern-bert", "smollm"),
    *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
)
"""Values of `tokenizer.ggml.pre` that llama.cpp splits by GPT-2's expression, as transformers does with those it does
not know. `smollm` cuts every digit off before that: its vocabulary has no token of two digits, so that numbers come
out the same either way; spaces before one may not, where there are several."""


def unknown_split(header: GgufHeader) -> str | None:
    """Why transformers would cut text into other words than the file's vocabulary was made for; None where it knows."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        # Older versions split by the architecture.
        return None
    pre = header.keys.get("tokenizer.ggml.pre")
    if header.keys.get("tokenizer.ggml.model") != "gpt2" or pre in (None, *SPLIT_LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        return None
    return (
        f"the GGUF file says tokenizer.ggml.pre = {str(pre)[:100]}, a way to split text that transformers does not "
        "know; tokens would be others than the model was trained on"
    )


class GgufFacts:
    """The keys and tensors of one file; `changes` is what its config needs beyond what transformers read."""

    def __init__(self, name: str, header: GgufHeader) -> None:
        self.name = name
        self.tensors = [tensor.name for tensor in header.tensors]
        self.architecture = str(header.keys.get("general.architecture") or "")
        if not self.architecture:
            raise ModelError(f"The GGUF file '{name}' does not say its architecture (general.architecture).")
        other = sorted(set(MODEL_ARCH_NAMES.values()) - {self.architecture})
        odd = next((key for key in header.keys if key.split(".")[0] in other), None)
        if odd is not None:
            raise self._refused(odd, header.keys[odd], f"is about another architecture than '{self.architecture}'")
        prefix = self.architecture + "."
        self.keys = {key.removeprefix(prefix): value for key, value in header.keys.items() if key.startswith(prefix)}
        self._all_keys = header.keys
        for names in REQUIRED:
            if not any(each in self.keys for each in names):
                raise ModelError(
                    f"The GGUF file '{name}' does not say {self.architecture}.{names[0]}, which its model cannot do "
                    "without; truncated, or made by something else. Use the original checkpoint."
                )

    def changes(self, config: Any) -> dict[str, Any]:
        """What to set in this config, which transformers made of the file. Raises ModelError, naming the key."""
        read, own = self._read_by_transformers(), self._has_own_mapping()
        changed: dict[str, Any] = {}
        for key, value in self.keys.items():
            if key in read and (own or isinstance(value, list) or key not in (*ATTRIBUTES, *_SPECIAL)):
                continue
            if key in ATTRIBUTES:
                self._attribute(key, value, config, changed)
            elif key in _SPECIAL:
                _SPECIAL[key](self, key, value, config, changed)
            elif key not in ROPE_KEYS | IRRELEVANT:
                raise self._refused(key, value, "is not known, and might change what the model computes")
        if "rope.freq_base" not in self.keys and "rope_theta" in (getattr(config, "rope_parameters", None) or {}):
            self._rope_base("rope.freq_base", DEFAULT_ROPE_BASE, config, changed)
        self._gemma_query_scale(config, changed)
        self._biases(config, changed)
        self._rope_scaling(config, changed)
        return {name: value for name, value in changed.items() if getattr(config, name, None) != value}

    def check_tensors(self, model: Any, config: dict[str, Any]) -> None:
        """Refuse a file with tensors that the loader of `model` would leave out, or that lacks some of an expert's."""
        if self._has_own_mapping():
            # There the loader itself says what it did not use.
            return
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        processor = TENSOR_PROCESSORS.get(self.architecture, TensorProcessor)(config=config)
        used = set(get_gguf_hf_weights_map(model, processor))
        for tensor in self.tensors:
            # The tensors of all experts go by the name without its suffix.
            if tensor in used or tensor.rsplit(".", 1)[0] in used or IRRELEVANT_TENSORS.search(tensor):
                continue
            if tensor == "rope_freqs.weight" or (tensor, self.architecture) == ("output.weight", "gpt2"):
                continue
            raise self._refused_tensor(tensor)
        self._check_experts()

    def rope_factors(self, values: Callable[[str], list[float]], config: Any) -> dict[str, Any]:
        """Changes for `rope_freqs.weight`: what each frequency is divided by, as Llama 3 has it. `values` reads it."""
        if "rope_freqs.weight" not in self.tensors:
            return {}
        rope = getattr(config, "rope_parameters", None)
        if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
            raise self._refused_tensor("rope_freqs.weight")
        factors = values("rope_freqs.weight")
        rope = {**rope, "rope_type": "longrope", "long_factor": factors, "short_factor": factors}
        rope |= {"factor": 1.0, "attention_factor": 1.0}
        return {"rope_parameters": {**rope, "original_max_position_embeddings": config.max_position_embeddings}}

    def _read_by_transformers(self) -> set[str]:
        """Keys that transformers itself gives to the config, without the architecture's name."""
        if self._has_own_mapping():
            from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

            asked = _Asked(self._all_keys)
            try:
                GGUF_CONFIG_ARCHS[self.architecture](asked, tuple(self.tensors))
            except Exception as error:
                raise ModelError(
                    f"The GGUF file '{self.name}' does not say all that its architecture needs ({error})."
                ) from error
            return {key.removeprefix(self.architecture + ".") for key in asked.keys_asked}
        from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

        mapping = GGUF_CONFIG_MAPPING.get(MODEL_TYPES.get(self.architecture, self.architecture), {})
        return {key for key, attribute in mapping.items() if attribute not in (None, -1)}

    def _has_own_mapping(self) -> bool:
        """Whether transformers loads this architecture by its newer way, which accounts for tensors itself."""
        try:
            from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
        except ImportError:
            return False
        return self.architecture in GGUF_ARCHS

    def _attribute(self, key: str, value: Value, config: Any, changed: dict[str, Any]) -> None:
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self._refused(key, value, "is not the same for all layers")
            value = value[0]
        attribute = next((name for name in ATTRIBUTES[key] if hasattr(config, name)), None)
        if attribute is None and key in ("attention.key_length", "attention.value_length"):
            if value != config.hidden_size // config.num_attention_heads:
                raise self._refused(key, value, f"is no width of heads that '{config.model_type}' can have")
            return
        if attribute is None:
            raise self._refused(key, value, f"is nothing that '{config.model_type}' has in transformers")
        earlier = changed.get(attribute)
        if earlier is not None and earlier != value:
            raise self._refused(key, value, f"contradicts {earlier}")
        if not _same(getattr(config, attribute), value):
            changed[attribute] = value

    def _rope_base(self, key: str, value: Value, config: Any, _changed: dict[str, Any]) -> None:
        """Held against what the config got; in a model with two rotations, against that of its windows."""
        rope = getattr(config, "rope_parameters", None) or {}
        thetas = [part.get("rope_theta") for part in (rope, *rope.values()) if isinstance(part, dict)]
        if not any(theta is not None and _same(theta, value) for theta in thetas):
            raise self._refused(key, value, f"does not reach the model, which has {thetas}")

    def _rope_dimensions(self, key: str, value: Value, config: Any, changed: dict[str, Any]) -> None:
        head_dim = changed.get("head_dim") or getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        if value in (int(head_dim * share), getattr(config, "rotary_dim", None)):
            return
        if "partial_rotary_factor" not in rope or not isinstance(value, int):
            raise self._refused(key, value, f"is not the {int(head_dim * share)} that the model rotates")
        changed["rope_parameters"] = {**rope, "partial_rotary_factor": value / head_dim}

    def _attention_scale(self, key: str, value: Value, config: Any, changed: dict[str, Any]) -> None:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if hasattr(config, "query_pre_attn_scalar") and isinstance(value, float) and value > 0:
            changed["query_pre_attn_scalar"] = _whole(value**-2)
        elif not _same(head_dim**-0.5, value):
            raise self._refused(key, value, f"is not the 1 / sqrt({head_dim}) that the model uses")

    def _gemma_query_scale(self, config: Any, changed: dict[str, Any]) -> None:
        if self.architecture not in LARGEST_GEMMA or "query_pre_attn_scalar" in changed:
            return
        layers, d_model = self.keys.get("block_count"), config.hidden_size
        largest = layers == LARGEST_GEMMA[self.architecture]
        scalar = d_model // config.num_attention_heads if largest else changed.get("head_dim", config.head_dim)
        if config.query_pre_attn_scalar != scalar:
            changed["query_pre_attn_scalar"] = scalar

    def _biases(self, config: Any, changed: dict[str, Any]) -> None:
        """Biases of the file's, where a family has them only if told."""
        for attribute, pattern in (
            ("attention_bias", r"\.attn_(q|k|v|output)\.bias$"),
            ("mlp_bias", r"\.ffn_.*\.bias$"),
        ):
            if hasattr(config, attribute) and any(re.search(pattern, tensor) for tensor in self.tensors):
                changed[attribute] = True

    def _rope_scaling(self, config: Any, changed: dict[str, Any]) -> None:
        """Linear and YaRN, as the family's config has them."""
        factor = self.keys.get("rope.scaling.factor", self.keys.get("rope.scale_linear"))
        # Without a type, a factor is linear; without a factor there is nothing to scale.
        kind = self.keys.get("rope.scaling.type", "linear" if factor else "none")
        if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
            return
        rope = changed.get("rope_parameters") or getattr(config, "rope_parameters", None)
        if kind not in ROPE_SCALING or not isinstance(rope, dict) or not isinstance(factor, int | float):
            raise self._refused("rope.scaling.type", kind, f"with factor {factor} is no scaling that is applied here")
        scaled: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
        if kind == "yarn":
            scaled |= self._yarn(factor, config)
        elif extra := next((key for key in self.keys if "yarn" in key or key.endswith("attn_factor")), None):
            raise self._refused(extra, self.keys[extra], "stands beside a linear scaling")
        if "full_attention" in rope:
            # Layers with windows keep their own rotation (Gemma 3).
            changed["rope_parameters"] = {**rope, "full_attention": {**rope["full_attention"], **scaled}}
        else:
            changed["rope_parameters"] = {**rope, **scaled}

    def _yarn(self, factor: float, config: Any) -> dict[str, Any]:
        original = self.keys.get("rope.scaling.original_context_length", config.max_position_embeddings)
        scaled: dict[str, Any] = {"original_max_position_embeddings": original}
        for key in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{key}" in self.keys:
                scaled[key] = self.keys[f"rope.scaling.yarn_{key}"]
        attention = self.keys.get("rope.scaling.attn_factor", self.keys.get("rope.scaling.yarn_attn_factor"))
        if isinstance(attention, float) and attention not in (0.0, 1.0):
            # GGUF's multiplies what the scaling itself says, transformers' stands in its place.
            scaled["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
        return scaled

    def _check_experts(self) -> None:
        for tensor in self.tensors:
            matched = re.fullmatch(r"(blk\.\d+\.ffn_)(?:gate|up|down)(_exps\.\w+)", tensor)
            if matched is None:
                continue
            needed = [matched[1] + part + matched[2] for part in ("gate", "up", "down")]
            missing = [name for name in needed if name not in self.tensors]
            fused = matched[1] + "gate_up" + matched[2] in self.tensors
            if missing and not (fused and "down" not in missing[-1]):
                raise ModelError(
                    f"The GGUF file '{self.name}' lacks the tensor '{missing[0]}'; its weights would be random or "
                    "zero. Download it again."
                )

    def _refused(self, key: str, value: Value, why: str) -> ModelError:
        named = key if "." in key and key.split(".")[0] in MODEL_ARCH_NAMES.values() else f"{self.architecture}.{key}"
        return ModelError(
            f"The GGUF file '{self.name}' says {named} = {str(value)[:100]}, which {why}; measuring would be wrong. "
            "Use the original checkpoint."
        )

    def _refused_tensor(self, tensor: str) -> ModelError:
        return ModelError(
            f"The GGUF file '{self.name}' holds the tensor '{tensor}', which the model that transformers builds of it "
            "does not use; measuring would be wrong. Use the original checkpoint."
        )


class _Asked(dict):
    """A dictionary that keeps which keys it was asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.keys_asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)


def _same(one: Any, other: Any) -> bool:
    """Equal, numbers but for the rounding of float32."""
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) == bool(other)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _whole(number: float) -> float | int:
    return round(number) if math.isclose(number, round(number), rel_tol=1e-5) else number


def _must_be(*allowed: Value) -> Callable[..., None]:
    def check(facts: GgufFacts, key: str, value: Value, _config: Any, _changed: dict[str, Any]) -> None:
        if value not in allowed:
            raise facts._refused(key, value, f"is not {' or '.join(map(str, allowed))}")

    return check


_SPECIAL: dict[str, Callable[..., None]] = {
    "rope.freq_base": GgufFacts._rope_base,
    "rope.freq_base_swa": GgufFacts._rope_base,
    "rope.dimension_count": GgufFacts._rope_dimensions,
    "attention.scale": GgufFacts._attention_scale,
    "attention.causal": _must_be(True),
    "attention.max_alibi_bias": _must_be(0.0),
    "attention.clamp_kqv": _must_be(0.0),
    "rope.scaling.yarn_ext_factor": _must_be(1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": _must_be(0.0),
}
"""Keys that are checked in a way of their own."""
