"""Sigmoid gates on the attention output, before the output projection. Table 7; Qiu et al. 2025 (arXiv 2505.06708).

A gate differs in the signal it sees (hidden state, nothing, position, token embedding) and in how many numbers it
gives a token: one a channel, one a head, or a single one. Sinks are measured before it.
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from spikesink.zoo.choice import BY_NAME, KIND, Choice
from spikesink.zoo.context import Context

Per = Literal["channel", "head", "single"]


class NoGate(Choice):
    """The attention output goes to W_O as it is."""

    kind: Literal["none"] = "none"


class ConditionalGate(Choice):
    """sigmoid(W x) with x the input of the attention block (normed where the block has an input norm)."""

    kind: Literal["conditional"] = "conditional"
    per: Per = "head"
    bias: bool = False


class UnconditionalGate(Choice):
    """sigmoid of learned constants: a gate that no token can move. Open half way at first."""

    kind: Literal["unconditional"] = "unconditional"
    per: Per = "head"


class PositionalGate(Choice):
    """sigmoid(W p) with p the sinusoidal encoding of the position (Vaswani et al. 2017, section 3.5), d_model wide."""

    kind: Literal["positional"] = "positional"
    per: Per = "channel"
    bias: bool = False


class TokenEmbeddingGate(Choice):
    """sigmoid(W e) with e the embedding of the token itself, the same in every layer."""

    kind: Literal["token_embedding"] = "token_embedding"
    per: Per = "channel"
    bias: bool = False


Gate = Annotated[NoGate | ConditionalGate | UnconditionalGate | PositionalGate | TokenEmbeddingGate, KIND, BY_NAME]


def build_gate(spec: Choice, d_model: int, n_heads: int, d_head: int) -> nn.Module | None:
    """The module of a gate, None for no gate."""
    if isinstance(spec, NoGate):
        return None
    shape = {"channel": (n_heads, d_head), "head": (n_heads, 1), "single": (1, 1)}[spec.per]  # type: ignore[attr-defined]
    if isinstance(spec, UnconditionalGate):
        return ConstantGate(shape)
    return SignalGate(spec.kind, shape, d_model, bias=spec.bias)  # type: ignore[attr-defined]


class ConstantGate(nn.Module):
    """attended (batch, token, head, d_head) -> the same, times sigmoid(logits)."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(shape))

    def forward(self, attended: Tensor, _hidden: Tensor, _context: Context) -> Tensor:
        return attended * torch.sigmoid(self.logits)


class SignalGate(nn.Module):
    """attended (batch, token, head, d_head) -> the same, times sigmoid(W signal)."""

    def __init__(self, signal: str, shape: tuple[int, int], d_model: int, *, bias: bool) -> None:
        super().__init__()
        self.signal, self.shape = signal, shape
        self.proj = nn.Linear(d_model, math.prod(shape), bias=bias)

    def forward(self, attended: Tensor, hidden: Tensor, context: Context) -> Tensor:
        if self.signal == "positional":
            signal = sinusoid(context.positions, self.proj.in_features).to(hidden.dtype)
        else:
            signal = context.embedding if self.signal == "token_embedding" else hidden
        return attended * torch.sigmoid(self.proj(signal).unflatten(-1, self.shape))


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """sin and cos of the position at geometrically spaced wavelengths: (batch, token) -> (batch, token, width)."""
    half = (width + 1) // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None].float() * torch.pow(10_000.0, -exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
