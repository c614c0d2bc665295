"""How the decoder knows positions."""

from typing import Annotated, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from spikesink.zoo.choice import BY_NAME, KIND, Choice


class RoPE(Choice):
    """Queries and keys rotated by their position (Su et al. 2021, arXiv 2104.09864), halves paired as in Llama."""

    kind: Literal["rope"] = "rope"
    theta: PositiveFloat = 10_000.0
    theta_by_layer: tuple[NonNegativeFloat, ...] = ()
    """Where layers differ, one a layer; 0 for a layer without rotation (SmolLM3, Gemma 3)."""

    def theta_of(self, layer_idx: int) -> float:
        return self.theta_by_layer[layer_idx] if self.theta_by_layer else self.theta


class LearnedPosition(Choice):
    """A learned vector per position, added to the token embedding."""

    kind: Literal["learned"] = "learned"


class NoPosition(Choice):
    """No position signal: only the causal mask tells tokens apart (Kazemnejad et al. 2023, arXiv 2305.19466)."""

    kind: Literal["none"] = "none"


Position = Annotated[RoPE | LearnedPosition | NoPosition, KIND, BY_NAME]


def rotary_angles(positions: Tensor, d_head: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of shape (batch or 1, token, d_head); computed in float32. No buffer, so nothing to lose on meta."""
    exponents = torch.arange(0, d_head, 2, device=positions.device, dtype=torch.float32) / d_head
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (batch, head, token, d_head) by angles of shape (batch or 1, token, d_head)."""
    first, second = hidden.chunk(2, dim=-1)
    return hidden * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
