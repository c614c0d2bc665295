"""The spec of a decoder: a tree of choices, each of which owns only its options. Tables 3 to 9 of Sun et al. 2026.

A variant is one replacement, `spec.model_copy(update={"norm": DyT()})`, and `diff` names exactly what was replaced.
"""

from typing import Any

from pydantic import PositiveFloat, model_validator

from spikesink.zoo.arrangements import Arrangement, PreNorm
from spikesink.zoo.choice import Choice, Size
from spikesink.zoo.ffn import FFN, SwiGLU
from spikesink.zoo.gates import Gate, NoGate
from spikesink.zoo.initialisers import Initialisation, Normal
from spikesink.zoo.normalisers import Normaliser, NoVirtualKeys, Softmax, VirtualKeys
from spikesink.zoo.norms import Norm, RMSNorm
from spikesink.zoo.positions import Position, RoPE


class DecoderSpec(Choice):
    """A decoder-only language model; the defaults are the baseline of table 9 (6.74 B parameters)."""

    vocab_size: Size = 32_000
    d_model: Size = 4096
    n_layers: Size = 32
    n_heads: Size = 32
    n_kv_heads: Size = 32
    d_head: Size = 128
    max_positions: Size = 4096
    norm: Norm = RMSNorm()
    arrangement: Arrangement = PreNorm()
    ffn: FFN = SwiGLU()
    gate: Gate = NoGate()
    normaliser: Normaliser = Softmax()
    virtual_keys: VirtualKeys = NoVirtualKeys()
    position: Position = RoPE()
    qkv_bias: bool = False
    """Queries, keys and values have a bias, as in Qwen 2."""
    attention_softcap: PositiveFloat | None = None
    """c tanh(score / c) instead of the score, as in Gemma 2."""
    logit_softcap: PositiveFloat | None = None
    """The same of the logits."""
    tied_embeddings: bool = False
    initialisation: Initialisation = Normal()

    @model_validator(mode="after")
    def _check_heads(self) -> "DecoderSpec":
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is {self.n_heads}, n_kv_heads {self.n_kv_heads}; expected n_kv_heads to divide n_heads"
            )
        if isinstance(self.position, RoPE) and self.d_head % 2:
            raise ValueError(f"d_head is {self.d_head}; RoPE pairs channels, so expected an even number")
        thetas = len(self.position.theta_by_layer) if isinstance(self.position, RoPE) else 0
        if thetas not in (0, self.n_layers):
            raise ValueError(f"position.theta_by_layer has {thetas} numbers; expected one a layer, {self.n_layers}")
        return self


def diff(base: DecoderSpec, variant: DecoderSpec) -> dict[str, tuple[Any, Any]]:
    """What differs, by dotted path: a replaced choice by its field, a changed option of the same kind by its own."""
    differing: dict[str, tuple[Any, Any]] = {}
    for name in DecoderSpec.model_fields:
        one, other = getattr(base, name), getattr(variant, name)
        if one == other:
            continue
        if isinstance(one, Choice) and type(one) is type(other):
            for option in type(one).model_fields:
                pair = (getattr(one, option), getattr(other, option))
                if pair[0] != pair[1]:
                    differing[f"{name}.{option}"] = pair
        else:
            differing[name] = (one, other)
    return differing
