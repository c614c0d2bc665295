"""The decoder zoo: one decoder whose parts are swappable.

Its names are imported when first used; importing `spikesink.zoo.decoder` registers the model with transformers.
"""

from typing import TYPE_CHECKING

from spikesink.lazy import lazy
from spikesink.requirement import TRANSFORMERS_ZOO, require_transformers

if TYPE_CHECKING:
    from spikesink.zoo.arrangements import NoInputNorm, PostNorm, PreNorm, PreNormQK, Sandwich, SandwichQK
    from spikesink.zoo.convert import export, from_hf, to_hf
    from spikesink.zoo.decoder import SpikesinkDecoderConfig, SpikesinkDecoderForCausalLM, build
    from spikesink.zoo.ffn import AttentionFFN, GeGLU, GeLU, Linear, ReLU2, SwiGLU
    from spikesink.zoo.gates import ConditionalGate, NoGate, PositionalGate, TokenEmbeddingGate, UnconditionalGate
    from spikesink.zoo.initialisers import FanIn, Normal, Scaled
    from spikesink.zoo.normalisers import (
        KeyValueBias,
        LearnedSink,
        NoVirtualKeys,
        OffByOne,
        Registers,
        Sigmoid,
        Softmax,
    )
    from spikesink.zoo.norms import DyT, LayerNorm, NoNorm, RMSNorm
    from spikesink.zoo.positions import LearnedPosition, NoPosition, RoPE
    from spikesink.zoo.spec import DecoderSpec, diff

# Before the imports that another version would fail.
require_transformers(TRANSFORMERS_ZOO, "spikesink's own decoder (zoo, train, study and what they made)")

_MODULES = {
    "arrangements": ("NoInputNorm", "PostNorm", "PreNorm", "PreNormQK", "Sandwich", "SandwichQK"),
    "convert": ("export", "from_hf", "to_hf"),
    "decoder": ("SpikesinkDecoderConfig", "SpikesinkDecoderForCausalLM", "build"),
    "ffn": ("AttentionFFN", "GeGLU", "GeLU", "Linear", "ReLU2", "SwiGLU"),
    "gates": ("ConditionalGate", "NoGate", "PositionalGate", "TokenEmbeddingGate", "UnconditionalGate"),
    "initialisers": ("FanIn", "Normal", "Scaled"),
    "normalisers": ("KeyValueBias", "LearnedSink", "NoVirtualKeys", "OffByOne", "Registers", "Sigmoid", "Softmax"),
    "norms": ("DyT", "LayerNorm", "NoNorm", "RMSNorm"),
    "positions": ("LearnedPosition", "NoPosition", "RoPE"),
    "spec": ("DecoderSpec", "diff"),
}

__all__ = [
    "AttentionFFN",
    "ConditionalGate",
    "DecoderSpec",
    "DyT",
    "FanIn",
    "GeGLU",
    "GeLU",
    "KeyValueBias",
    "LayerNorm",
    "LearnedPosition",
    "LearnedSink",
    "Linear",
    "NoGate",
    "NoInputNorm",
    "NoNorm",
    "NoPosition",
    "NoVirtualKeys",
    "Normal",
    "OffByOne",
    "PositionalGate",
    "PostNorm",
    "PreNorm",
    "PreNormQK",
    "RMSNorm",
    "ReLU2",
    "Registers",
    "RoPE",
    "Sandwich",
    "SandwichQK",
    "Scaled",
    "Sigmoid",
    "Softmax",
    "SpikesinkDecoderConfig",
    "SpikesinkDecoderForCausalLM",
    "SwiGLU",
    "TokenEmbeddingGate",
    "UnconditionalGate",
    "build",
    "diff",
    "export",
    "from_hf",
    "to_hf",
]

__getattr__ = lazy(__name__, {name: f"spikesink.zoo.{module}" for module, names in _MODULES.items() for name in names})
