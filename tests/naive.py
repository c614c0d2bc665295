"""The naive reference: eager attention with `output_attentions=True`, every activation held, explicit sums.

It shares no code with the package: residuals come from Hugging Face's own hidden states and from the input of the
final norm, writes from plain hooks on modules named here, attention maps from the model's outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# family -> (layers, attention write, FFN write, residual between the two is the input of)
MODULES = {
    "default": ("model.layers", "self_attn", "mlp", "post_attention_layernorm"),
    "gemma2": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"),
    "gemma3_text": (
        "model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
    ),
    "olmo2": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "mlp"),
    "gpt2": ("transformer.h", "attn", "mlp", "ln_2"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", None),
    "gpt_neox-sequential": ("gpt_neox.layers", "attention", "mlp", "post_attention_layernorm"),
    "gptj": ("transformer.h", "attn", "mlp", None),
    "cohere": ("model.layers", "self_attn", "mlp", None),
    "phi": ("model.layers", "self_attn", "mlp", None),
    "stablelm-parallel": ("model.layers", "self_attn", "mlp", None),
    "vaultgemma": ("model.layers", "self_attn", "mlp", "pre_feedforward_layernorm"),
    "opt": ("model.decoder.layers", "self_attn", "fc2", "final_layer_norm"),
    "opt-post-norm": ("model.decoder.layers", "self_attn", "fc2", "fc1"),
}


@dataclass
class Naive:
    """residuals, writes: block -> (sequence, token, channel); attention: layer list of (sequence, head, query, key)."""

    residuals: dict[int, Tensor]
    writes: dict[int, Tensor]
    attention: list[Tensor]
    logits: Tensor


def naive(model: PreTrainedModel, family: str, ids: Tensor) -> Naive:
    path, attention_write, ffn_write, between = MODULES.get(family, MODULES["default"])
    layers: nn.ModuleList = model.get_submodule(path)  # type: ignore[assignment]
    multiplier = getattr(model.config, "residual_multiplier", 1.0)
    residuals: dict[int, Tensor] = {}
    writes: dict[int, Tensor] = {}
    handles = []

    def keep(store: dict[int, Tensor], block: int, scale: float = 1.0):
        def hook(_module, _args, output):
            tensor = output[0] if isinstance(output, tuple) else output
            store[block] = (tensor * scale).reshape(*ids.shape, -1).clone()

        return hook

    def keep_input(block: int):
        def hook(_module, args, kwargs):
            tensor = args[0] if args else kwargs["hidden_states"]
            residuals[block] = tensor.reshape(*ids.shape, -1).clone()

        return hook

    for index, layer in enumerate(layers):
        odd, even = 2 * index + 1, 2 * index + 2
        handles.append(layer.get_submodule(attention_write).register_forward_hook(keep(writes, odd, multiplier)))
        handles.append(layer.get_submodule(ffn_write).register_forward_hook(keep(writes, even, multiplier)))
        handles.append(layer.register_forward_hook(keep(residuals, even)))
        if between:
            handles.append(layer.get_submodule(between).register_forward_pre_hook(keep_input(odd), with_kwargs=True))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=ids, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return Naive(residuals, writes, list(output.attentions), output.logits)


def importance(attention: Tensor) -> Tensor:
    """alpha_k = (1/T) sum over queries of A[t, k], by explicit loops; (sequence, head, key)."""
    sequences, heads, queries, keys = attention.shape
    alpha = torch.zeros(sequences, heads, keys, dtype=torch.float64)
    for key in range(keys):
        for query in range(queries):
            alpha[:, :, key] += attention[:, :, query, key].double() / queries
    return alpha


def sink_numbers(attention: list[Tensor], epsilon: float) -> dict[str, float]:
    """The three sink ratios by their definitions; visibility as in plain causal attention or a window."""
    counts = {"sun2026": 0, "gu2025": 0, "sink1_gu2025": 0}
    total = 0
    for layer in attention:
        alpha = importance(layer)
        sequences, heads, keys = alpha.shape
        seen = [int((layer[..., key].amax((0, 1)) > 0).sum()) for key in range(keys)]
        for s in range(sequences):
            for h in range(heads):
                total += 1
                half = keys // 2
                counts["sun2026"] += max(float(alpha[s, h, k]) for k in range(half)) > epsilon
                gu = [float(alpha[s, h, k]) * keys / seen[k] for k in range(keys)]
                counts["gu2025"] += max(gu[:half]) > epsilon
                counts["sink1_gu2025"] += gu[0] > epsilon
    return {name: count / total for name, count in counts.items()}


def perplexity(logits: Tensor, ids: Tensor) -> float:
    losses = []
    for s in range(ids.shape[0]):
        for t in range(ids.shape[1] - 1):
            losses.append(-float(logits[s, t].double().log_softmax(-1)[ids[s, t + 1]]))
    return float(torch.tensor(losses, dtype=torch.float64).mean().exp())
