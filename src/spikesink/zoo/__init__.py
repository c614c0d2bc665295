"""The decoder zoo: one decoder whose parts are swappable. Importing it registers the model with transformers."""

from spikesink.requirement import TRANSFORMERS_ZOO, require_transformers

# Before the imports that another version would fail.
require_transformers(TRANSFORMERS_ZOO, "spikesink's own decoder (zoo, train, study and what they made)")

from transformers import AutoConfig, AutoModelForCausalLM

from spikesink.zoo.arrangements import NoInputNorm, PostNorm, PreNorm, PreNormQK, Sandwich, SandwichQK
from spikesink.zoo.convert import export, from_hf, to_hf
from spikesink.zoo.decoder import SpikesinkDecoderConfig, SpikesinkDecoderForCausalLM, build
from spikesink.zoo.ffn import AttentionFFN, GeGLU, GeLU, Linear, ReLU2, SwiGLU
from spikesink.zoo.gates import ConditionalGate, NoGate, PositionalGate, TokenEmbeddingGate, UnconditionalGate
from spikesink.zoo.initialisers import FanIn, Normal, Scaled
from spikesink.zoo.normalisers import KeyValueBias, LearnedSink, NoVirtualKeys, OffByOne, Registers, Sigmoid, Softmax
from spikesink.zoo.norms import DyT, LayerNorm, NoNorm, RMSNorm
from spikesink.zoo.positions import LearnedPosition, NoPosition, RoPE
from spikesink.zoo.spec import DecoderSpec, diff

AutoConfig.register("spikesink_decoder", SpikesinkDecoderConfig, exist_ok=True)
AutoModelForCausalLM.register(SpikesinkDecoderConfig, SpikesinkDecoderForCausalLM, exist_ok=True)

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
