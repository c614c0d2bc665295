"""Weights as plain tensors: how `access` hands parameters to `measure`, which never sees a model."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputNorm:
    """The norm at a block's input without its learned scale: h~ = sqrt(d) h / ||h||, of h - mean(h) where `centred`.

    Sun et al. 2026, eq. 5; `centred` is LayerNorm.
    """

    eps: float
    centred: bool = False

    def __call__(self, hidden: Tensor) -> Tensor:
        """h~ of hidden (..., d), in at least float32."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.centred:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.eps)


@dataclass(frozen=True)
class GatedFFN:
    """One gated feed-forward network `W_down (act(W_gate h~) * (W_up h~))` with the norm scale folded in.

    `h~` is the norm's output *without* its scale gamma; gamma is already multiplied into the columns of
    `gate` and `up` (Gemma's 1 + gamma as well). Sun et al. 2026, eq. 12 and spec section 2.2.

    Shapes: gate, up (d_ffn, d); down (d, d_ffn).
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    activation: str
    """Name of the gate's activation as in the model's config, e.g. `silu`, `gelu_pytorch_tanh`."""
    input_normed: bool = True
    """False where the block has no input norm (OLMo 2): then ||h~|| is not sqrt(d)."""
    output_normed: bool = False
    """True where an output norm follows: predictions are of what stands before that norm."""
    expert: int | None = None
    """Index of the expert in a mixture-of-experts FFN, None for a dense one."""

    @property
    def d_model(self) -> int:
        return self.gate.shape[1]

    @property
    def d_ffn(self) -> int:
        return self.gate.shape[0]

    def to(self, dtype: torch.dtype) -> "GatedFFN":
        return replace(self, gate=self.gate.to(dtype), up=self.up.to(dtype), down=self.down.to(dtype))


@dataclass(frozen=True)
class AttentionWeights:
    """Value and output projections of one attention block, the norm scale folded into `value`.

    Shapes: value (n_kv_heads * d_head, d); output (d, n_heads * d_head). The first token attends only to
    itself, so its attention is the fixed map `output @ repeat(value)`. Sun et al. 2026, eq. 22.
    """

    value: Tensor
    output: Tensor
    n_heads: int
    n_kv_heads: int
    offset: Tensor | None = None
    """What biases add to every output, (d,); None where there are none."""

    @property
    def d_head(self) -> int:
        return self.value.shape[0] // self.n_kv_heads

    def first_token_map(self) -> Tensor:
        """W_VO of shape (d, d): what attention does to a token that attends only to itself. Eq. 22."""
        group = self.n_heads // self.n_kv_heads
        value = self.value.view(self.n_kv_heads, self.d_head, -1).repeat_interleave(group, dim=0)
        return self.output @ value.reshape(self.n_heads * self.d_head, -1)
