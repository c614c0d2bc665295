"""Where each Hugging Face architecture keeps its residual blocks: the only file that knows their module names.

A layout names the modules of one layer; a family points at a layout. A model type that is not listed is tried with
every layout whose modules it has: `verify` decides numerically whether one of them holds, so a wrong guess is
refused and never measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spikesink.errors import UnsupportedModelError


@dataclass(frozen=True)
class BlockNames:
    """Modules of one residual block inside a layer; what goes into the residual is the output norm's output, else
    `inner`'s."""

    inner: str
    input_norm: str | None = None
    output_norm: str | None = None
    first: str | None = None
    """First module that reads the residual, where neither `input_norm` nor `inner` does."""


@dataclass(frozen=True)
class Layout:
    """How one layer reads from and writes to the residual stream."""

    attention: BlockNames
    ffn: BlockNames
    parallel: Callable[[Any], bool] = lambda config: False
    """True where attention and FFN of a layer read the same residual."""
    post_norm: Callable[[Any], bool] = lambda config: False
    """True where the residual itself is normed after each block: H' = Norm(H + F)."""


SEQUENTIAL = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm"),
    ffn=BlockNames("mlp", input_norm="post_attention_layernorm"),
)
SANDWICH = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", output_norm="post_attention_layernorm"),
    ffn=BlockNames("mlp", input_norm="pre_feedforward_layernorm", output_norm="post_feedforward_layernorm"),
)
OUTPUT_NORM = Layout(
    attention=BlockNames("self_attn", output_norm="post_attention_layernorm"),
    ffn=BlockNames("mlp", output_norm="post_feedforward_layernorm"),
)
GPT2 = Layout(
    attention=BlockNames("attn", input_norm="ln_1"),
    ffn=BlockNames("mlp", input_norm="ln_2"),
)
GPT_NEOX = Layout(
    attention=BlockNames("attention", input_norm="input_layernorm"),
    ffn=BlockNames("mlp", input_norm="post_attention_layernorm"),
    parallel=lambda config: bool(config.use_parallel_residual),
)
OPT = Layout(
    attention=BlockNames("self_attn", input_norm="self_attn_layer_norm"),
    ffn=BlockNames("fc2", input_norm="final_layer_norm", first="fc1"),
    post_norm=lambda config: not config.do_layer_norm_before,
)
ONE_NORM_PARALLEL = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm"),
    ffn=BlockNames("mlp", input_norm="input_layernorm"),
    parallel=lambda config: True,
)
GPTJ = Layout(
    attention=BlockNames("attn", input_norm="ln_1"),
    ffn=BlockNames("mlp", input_norm="ln_1"),
    parallel=lambda config: True,
)
ZOO = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", output_norm="post_attention_norm"),
    ffn=BlockNames("mlp", input_norm="ffn_layernorm", output_norm="post_ffn_norm"),
    post_norm=lambda config: bool(getattr(config, "is_post_norm", False)),
)

FAMILIES: dict[str, Layout] = {
    "llama": SEQUENTIAL,
    "mistral": SEQUENTIAL,
    "qwen2": SEQUENTIAL,
    "qwen3": SEQUENTIAL,
    "phi3": SEQUENTIAL,
    "smollm3": SEQUENTIAL,
    "granite": SEQUENTIAL,
    "gpt_oss": SEQUENTIAL,
    "mixtral": SEQUENTIAL,
    "qwen2_moe": SEQUENTIAL,
    "gemma2": SANDWICH,
    "gemma3": SANDWICH,
    "gemma3_text": SANDWICH,
    "olmo2": OUTPUT_NORM,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "gptj": GPTJ,
    "opt": OPT,
    "spikesink_decoder": ZOO,
}
GUESSES = (ZOO, SANDWICH, SEQUENTIAL, OUTPUT_NORM, GPT2, ONE_NORM_PARALLEL, GPTJ)


def layouts_for(model_type: str, layer: nn.Module) -> list[Layout]:
    """Layouts to try for this model type: the listed one, or every guess whose modules the layer has."""
    if model_type in FAMILIES:
        return [FAMILIES[model_type]]
    guesses = [layout for layout in GUESSES if _has_modules(layer, layout)]
    if not guesses:
        children = ", ".join(name for name, _ in layer.named_children())
        raise UnsupportedModelError(
            f"The layers of model type '{model_type}' ({type(layer).__name__}: {children}) have none of the layouts "
            f"that spikesink can read. Supported: {', '.join(FAMILIES)}; to add one, see access/families.py."
        )
    return guesses


def _has_modules(layer: nn.Module, layout: Layout) -> bool:
    names = [
        name
        for block in (layout.attention, layout.ffn)
        for name in (block.inner, block.input_norm, block.output_norm, block.first)
        if name is not None
    ]
    return all(isinstance(getattr(layer, name, None), nn.Module) for name in names)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal LM, of its text decoder if it is multimodal."""
    decoder, base = model.get_decoder(), model.base_model
    inner = [getattr(root, name, None) for root in (decoder, base) for name in ("language_model", "decoder", "model")]
    for root in (decoder, base, *inner):
        for name in ("layers", "h", "blocks"):
            layers = getattr(root, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) > 0:
                return layers
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of decoder layers (looked for layers, h, blocks); "
        "only decoder-only Transformers can be measured."
    )


def residual_multiplier(layer: nn.Module) -> float:
    """What a block's output is multiplied with before it is added (granite's residual_multiplier)."""
    return float(getattr(layer, "residual_multiplier", 1.0))
