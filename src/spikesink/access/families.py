"""Where each Hugging Face architecture keeps its residual blocks: the only file that knows their module names.

A layout names the modules of one layer; a family points at a layout. A model type that is not listed is tried with
every layout whose modules it has: `verify` decides numerically whether one of them holds, so a wrong guess is
refused and never measured. `blocks` looks them up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class BlockNames:
    """Modules of one residual block inside a layer, by (dotted) name; what goes into the residual is the output of the
    output norm, else of `write`, else of `inner`."""

    inner: str
    input_norm: str | None = None
    output_norm: str | None = None
    first: str | None = None
    """First module that reads the residual, where neither `input_norm` nor `inner` does."""
    write: str | None = None
    """What writes to the residual, where `inner` does not."""
    multiplier: str = "residual_multiplier"
    """Attribute of the layer that the write is multiplied with, where it has one."""
    also: tuple[tuple[str, str], ...] = ()
    """Further modules whose outputs, each times an attribute of the layer, are part of the same write, where a layer
    has them: a shared FFN beside experts, a recurrence beside attention."""
    mixers: tuple[str, ...] = ()
    """What stands in the place of `inner` in the layers of a hybrid model that do not attend."""

    def names(self) -> list[str]:
        """Everything that a layer must have, but for `inner` or its substitutes."""
        return [name for name in (self.input_norm, self.output_norm, self.first, self.write) if name is not None]


@dataclass(frozen=True)
class Layout:
    """How one layer reads from and writes to the residual stream."""

    attention: BlockNames
    ffn: BlockNames
    two_norms_parallel: Callable[[Any], bool] = lambda config: False
    """True where attention and FFN of a layer, each through a norm of its own, read the same residual."""
    post_norm: Callable[[Any], bool] = lambda config: False
    """True where the residual itself is normed after each block: H' = Norm(H + F)."""

    def parallel(self, config: Any) -> bool:
        """Whether attention and FFN of a layer read the same residual; through one norm they always do."""
        norm = self.ffn.input_norm
        return (norm is not None and norm == self.attention.input_norm) or self.two_norms_parallel(config)


MIXERS = ("linear_attn", "mamba", "conv")
RECURRENT_TYPES = frozenset({"linear_attention", "conv", "recurrent"})
"""Layer types of a config whose layers mix tokens without attending."""

SEQUENTIAL = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", mixers=MIXERS),
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
    two_norms_parallel=lambda config: bool(getattr(config, "use_parallel_residual", False)),
)
OPT = Layout(
    attention=BlockNames("self_attn", input_norm="self_attn_layer_norm"),
    ffn=BlockNames("fc2", input_norm="final_layer_norm", first="fc1"),
    post_norm=lambda config: not config.do_layer_norm_before,
)
BART = replace(OPT, post_norm=lambda config: True)
MBART = replace(OPT, post_norm=lambda config: False)
ONE_NORM = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm"),
    ffn=BlockNames("mlp", input_norm="input_layernorm"),
)
GPTJ = Layout(
    attention=BlockNames("attn", input_norm="ln_1"),
    ffn=BlockNames("mlp", input_norm="ln_1"),
)
ZOO = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", output_norm="post_attention_norm"),
    ffn=BlockNames("mlp", input_norm="ffn_layernorm", output_norm="post_ffn_norm"),
    post_norm=lambda config: bool(getattr(config, "is_post_norm", False)),
)
BERT = Layout(
    attention=BlockNames("attention", write="attention.output.dense", output_norm="attention.output.LayerNorm"),
    ffn=BlockNames("output.dense", first="intermediate.dense", output_norm="output.LayerNorm"),
    post_norm=lambda config: True,
)
PRE_NORM_ROBERTA = Layout(
    attention=BlockNames("attention", write="attention.output.dense", input_norm="attention.LayerNorm"),
    ffn=BlockNames("output.dense", input_norm="intermediate.LayerNorm"),
)
XLM_ROBERTA_XL = Layout(
    attention=BlockNames("attention", write="attention.output.dense", input_norm="attention.self_attn_layer_norm"),
    ffn=BlockNames("output.dense", input_norm="LayerNorm"),
)
GLM4 = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", output_norm="post_self_attn_layernorm"),
    ffn=BlockNames("mlp", input_norm="post_attention_layernorm", output_norm="post_mlp_layernorm"),
)
AFMOE = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", output_norm="post_attention_layernorm"),
    ffn=BlockNames("mlp", input_norm="pre_mlp_layernorm", output_norm="post_mlp_layernorm"),
)
HYPERCLOVA = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", output_norm="post_norm1"),
    ffn=BlockNames("mlp", input_norm="post_attention_layernorm", output_norm="post_norm2"),
)
LFM3 = Layout(
    attention=BlockNames("self_attn", input_norm="operator_norm", output_norm="post_operator_norm", mixers=MIXERS),
    ffn=BlockNames("feed_forward", input_norm="ffn_norm", output_norm="post_ffn_norm"),
)
INKLING = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", write="attn_sconv"),
    ffn=BlockNames("mlp", input_norm="post_attention_layernorm", write="mlp_sconv"),
)
GRANITE_MOE = Layout(
    attention=BlockNames("self_attn", input_norm="input_layernorm", mixers=MIXERS),
    ffn=BlockNames(
        "block_sparse_moe", input_norm="post_attention_layernorm", also=(("shared_mlp", "residual_multiplier"),)
    ),
)
FALCON_H1 = Layout(
    attention=BlockNames(
        "self_attn",
        input_norm="input_layernorm",
        multiplier="attn_out_multiplier",
        also=(("mamba", "ssm_out_multiplier"),),
    ),
    ffn=BlockNames("feed_forward", input_norm="pre_ff_layernorm"),
)
DBRX = Layout(
    attention=BlockNames("norm_attn_norm.attn", input_norm="norm_attn_norm.norm_1"),
    ffn=BlockNames("ffn", input_norm="norm_attn_norm.norm_2"),
)


def _pre_norm(attention: str, attention_norm: str, ffn: str, ffn_norm: str) -> Layout:
    """A plain pre-norm layer whose modules have other names."""
    return Layout(
        attention=BlockNames(attention, input_norm=attention_norm, mixers=MIXERS),
        ffn=BlockNames(ffn, input_norm=ffn_norm),
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
GUESSES = (
    *(ZOO, SANDWICH, AFMOE, GLM4, HYPERCLOVA, INKLING, SEQUENTIAL, OUTPUT_NORM, GPT2, GPT_NEOX),
    *(BART, MBART, BERT, PRE_NORM_ROBERTA, XLM_ROBERTA_XL, LFM3, DBRX),
    _pre_norm("self_attn", "operator_norm", "feed_forward", "ffn_norm"),
    _pre_norm("self_attn", "input_layernorm", "feed_forward", "pre_ff_layernorm"),
    _pre_norm("self_attn", "input_layernorm", "feed_forward", "post_attention_layernorm"),
    _pre_norm("self_attn", "input_layernorm", "mlp", "pre_feedforward_layernorm"),
    GRANITE_MOE,
    FALCON_H1,
    _pre_norm("self_attn", "input_layernorm", "shared_mlp", "post_attention_layernorm"),
    _pre_norm("self_attention", "input_layernorm", "mlp", "post_attention_layernorm"),
    _pre_norm("self_attn", "attention_layernorm", "mlp", "feedforward_layernorm"),
    _pre_norm("attn", "attn_norm", "mlp", "mlp_norm"),
    _pre_norm("multi_head_attention", "layernorm1", "ffn", "layernorm2"),
    *(ONE_NORM, GPTJ),
)
"""Tried, in this order, on a model type that is not listed: a layout with more modules before one with some of them."""
