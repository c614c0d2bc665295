"""Norm operators: what acts on a block's input or output, on queries and keys, and before the head. Table 5."""

from typing import Annotated, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from spikesink.zoo.choice import BY_NAME, KIND, Choice


class RMSNorm(Choice):
    """sqrt(d) h / ||h||, times a learned scale. Eq. 5 of Sun et al. 2026."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: PositiveFloat = 1e-5

    def build(self, width: int) -> nn.Module:
        return MixedRMSNorm(width, eps=self.eps)


class LayerNorm(Choice):
    """Mean removed, then divided by the standard deviation; learned scale and, unless told otherwise, shift."""

    kind: Literal["layernorm"] = "layernorm"
    eps: PositiveFloat = 1e-5
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=self.eps, bias=self.bias)


class DyT(Choice):
    """DynamicTanh: gamma * tanh(alpha h) + beta, element by element, so no token's scale reaches another channel.

    Zhu et al. 2025 (arXiv 2503.10622), section 4; alpha is one learned number.
    """

    kind: Literal["dyt"] = "dyt"
    alpha_init: PositiveFloat = 0.5

    def build(self, width: int) -> nn.Module:
        return DynamicTanh(width, self.alpha_init)


class NoNorm(Choice):
    """No norm operator anywhere."""

    kind: Literal["none"] = "none"

    def build(self, width: int) -> nn.Module:
        return nn.Identity()


Norm = Annotated[RMSNorm | LayerNorm | DyT | NoNorm, KIND, BY_NAME]


class MixedRMSNorm(nn.RMSNorm):
    """An RMSNorm in its weight's dtype, whatever enters it: under autocast, what a block writes is bf16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class DynamicTanh(nn.Module):
    """gamma * tanh(alpha h) + beta; weight (gamma) and bias (beta) of shape (width,), alpha of shape (1,)."""

    def __init__(self, width: int, alpha_init: float) -> None:
        super().__init__()
        self.alpha_init = alpha_init
        self.alpha = nn.Parameter(torch.full((1,), alpha_init))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.weight, functional.tanh(self.alpha * hidden))
