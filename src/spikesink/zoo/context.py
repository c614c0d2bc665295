"""What the layers of one forward pass share."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class RegisterCache(dict[int, tuple[Tensor, Tensor]]):
    """Keys and values of the registers by layer index, written like a cache."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self[layer_idx] = key, value
        return key, value


@dataclass(frozen=True)
class Context:
    """Positions (batch or 1, token), the embedding H[1] (batch, token, d_model), mask, cache and rotary angles."""

    positions: Tensor
    embedding: Tensor
    mask: Any
    cache: Any = None
    rotary: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """cos and sin by theta, each (batch or 1, token, d_head); empty without RoPE."""
    prefix: RegisterCache | None = None
    """What the registers, which stand in front of every token, offer to this layer's queries."""
    registers: "Context | None" = None
    """The registers' own context, where there are registers."""
    attention: str = "eager"
    """Name of the attention implementation."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that transformers passes through to the attention function."""
