"""The grid of variants that every zoo test runs on: one change of a tiny baseline each, and some of several."""

import torch

from spikesink.zoo import (
    AttentionFFN,
    ConditionalGate,
    DecoderSpec,
    DyT,
    FanIn,
    GeGLU,
    GeLU,
    KeyValueBias,
    LayerNorm,
    LearnedPosition,
    LearnedSink,
    Linear,
    NoInputNorm,
    NoNorm,
    NoPosition,
    OffByOne,
    PositionalGate,
    PostNorm,
    PreNormQK,
    Registers,
    ReLU2,
    RoPE,
    Sandwich,
    SandwichQK,
    Scaled,
    Sigmoid,
    SpikesinkDecoderForCausalLM,
    SwiGLU,
    TokenEmbeddingGate,
    UnconditionalGate,
    build,
)

VOCAB = 53
BASE = DecoderSpec(
    vocab_size=VOCAB,
    d_model=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_head=10,
    max_positions=64,
    ffn=SwiGLU(d_ffn=40),
)
CHANGES: dict[str, dict] = {
    "baseline": {},
    "layernorm": {"norm": LayerNorm()},
    "layernorm-no-bias": {"norm": LayerNorm(bias=False)},
    "dyt": {"norm": DyT()},
    "no-norm": {"norm": NoNorm()},
    "no-input-norm": {"arrangement": NoInputNorm()},
    "post": {"arrangement": PostNorm()},
    "sandwich": {"arrangement": Sandwich()},
    "sandwich-qk": {"arrangement": SandwichQK()},
    "sandwich-qk-head": {"arrangement": SandwichQK(qk_norm_over="head")},
    "pre-qk": {"arrangement": PreNormQK()},
    "gemma": {"arrangement": Sandwich(qk_norm_over="head"), "attention_softcap": 0.8, "logit_softcap": 0.6},
    "softcap-learned-sink": {"normaliser": LearnedSink(), "attention_softcap": 0.8},
    "qkv-bias": {"qkv_bias": True, "position": RoPE(theta_by_layer=(10_000.0, 0.0, 100.0))},
    "gelu": {"ffn": GeLU(d_ffn=40)},
    "geglu": {"ffn": GeGLU(d_ffn=40)},
    "relu2": {"ffn": ReLU2()},
    "linear": {"ffn": Linear()},
    "attention-ffn": {"ffn": AttentionFFN()},
    "heads": {"n_heads": 3, "n_kv_heads": 1, "d_head": 14},
    "no-gqa": {"n_kv_heads": 4},
    "gate-conditional-channel": {"gate": ConditionalGate(per="channel")},
    "gate-conditional-head": {"gate": ConditionalGate(per="head", bias=True)},
    "gate-conditional-single": {"gate": ConditionalGate(per="single")},
    "gate-unconditional-channel": {"gate": UnconditionalGate(per="channel")},
    "gate-unconditional-head": {"gate": UnconditionalGate(per="head")},
    "gate-unconditional-single": {"gate": UnconditionalGate(per="single")},
    "gate-positional": {"gate": PositionalGate()},
    "gate-token-embedding": {"gate": TokenEmbeddingGate()},
    "off-by-one": {"normaliser": OffByOne()},
    "learned-sink": {"normaliser": LearnedSink()},
    "sigmoid": {"normaliser": Sigmoid()},
    "key-value-bias": {"virtual_keys": KeyValueBias()},
    "prefix": {"virtual_keys": KeyValueBias(n=5)},
    "registers": {"virtual_keys": Registers(n=2)},
    "learned-position": {"position": LearnedPosition()},
    "no-position": {"position": NoPosition()},
    "tied": {"tied_embeddings": True},
    "scaled-init": {"initialisation": Scaled()},
    "fan-in-init": {"initialisation": FanIn()},
    "gated-sandwich-sink": {
        "gate": ConditionalGate(per="channel"),
        "arrangement": SandwichQK(),
        "normaliser": LearnedSink(),
        "virtual_keys": KeyValueBias(n=2),
    },
    "attention-ffn-gated-registers": {
        "ffn": AttentionFFN(),
        "gate": TokenEmbeddingGate(per="head"),
        "virtual_keys": Registers(n=3),
        "position": LearnedPosition(),
        "norm": DyT(),
    },
}


def spec_of(name: str) -> DecoderSpec:
    return BASE.model_copy(update=CHANGES[name])


def decoder(spec: DecoderSpec, seed: int = 0) -> SpikesinkDecoderForCausalLM:
    """Random weights large enough that attention is far from uniform and every constant matters."""
    torch.manual_seed(seed)
    model = build(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and float(parameter.abs().max()) > 0:
                parameter.mul_(0.16 / parameter.std())
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def token_ids(sequences: int = 2, tokens: int = 13, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(seed))
