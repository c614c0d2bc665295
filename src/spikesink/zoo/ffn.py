"""Feed-forward blocks. Table 4; attention in its place is built in `attention.py`."""

from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional

from spikesink.zoo.choice import BY_NAME, KIND, Choice, Size


class SwiGLU(Choice):
    """W_down (SiLU(W_gate h) * (W_up h)). Eq. 12. Width: 8/3 d_model, up to a multiple of 256, unless given."""

    kind: Literal["swiglu"] = "swiglu"
    d_ffn: Size | None = None

    def width(self, d_model: int) -> int:
        return self.d_ffn or -(-8 * d_model // (3 * 256)) * 256

    def build(self, d_model: int) -> nn.Module:
        return GatedFeedForward(d_model, self.width(d_model))


class GeGLU(Choice):
    """W_down (GeLU(W_gate h) * (W_up h)), GeLU by tanh, as in Gemma (Shazeer 2020, arXiv 2002.05202)."""

    kind: Literal["geglu"] = "geglu"
    d_ffn: Size | None = None

    def width(self, d_model: int) -> int:
        return SwiGLU(d_ffn=self.d_ffn).width(d_model)

    def build(self, d_model: int) -> nn.Module:
        return GatedFeedForward(d_model, self.width(d_model), gelu=True)


class GeLU(Choice):
    """W_down GeLU(W_up h), GeLU by the error function. Width: 4 d_model unless given."""

    kind: Literal["gelu"] = "gelu"
    d_ffn: Size | None = None

    def width(self, d_model: int) -> int:
        return self.d_ffn or 4 * d_model

    def build(self, d_model: int) -> nn.Module:
        return TwoLayerFFN(d_model, self.width(d_model), squared=False)


class ReLU2(Choice):
    """W_down max(W_up h, 0)^2 (So et al. 2021, arXiv 2109.08668). Width: 4 d_model unless given."""

    kind: Literal["relu2"] = "relu2"
    d_ffn: Size | None = None

    def width(self, d_model: int) -> int:
        return self.d_ffn or 4 * d_model

    def build(self, d_model: int) -> nn.Module:
        return TwoLayerFFN(d_model, self.width(d_model), squared=True)


class Linear(Choice):
    """One matrix: no directional quadratic amplifier can exist."""

    kind: Literal["linear"] = "linear"

    def build(self, d_model: int) -> nn.Module:
        return LinearFFN(d_model)


class AttentionFFN(Choice):
    """A second attention in place of every FFN, with the heads, gate and normaliser of the first."""

    kind: Literal["attention"] = "attention"


FFN = Annotated[SwiGLU | GeGLU | GeLU | ReLU2 | Linear | AttentionFFN, KIND, BY_NAME]


class GatedFeedForward(nn.Module):
    """(batch, token, d_model) -> same."""

    def __init__(self, d_model: int, d_ffn: int, *, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.gate_proj = nn.Linear(d_model, d_ffn, bias=False)
        self.up_proj = nn.Linear(d_model, d_ffn, bias=False)
        self.down_proj = nn.Linear(d_ffn, d_model, bias=False)

    def forward(self, hidden: Tensor, _context: object = None) -> Tensor:
        gate = self.gate_proj(hidden)
        gate = functional.gelu(gate, approximate="tanh") if self.gelu else functional.silu(gate)
        return self.down_proj(gate * self.up_proj(hidden))


class TwoLayerFFN(nn.Module):
    """(batch, token, d_model) -> same."""

    def __init__(self, d_model: int, d_ffn: int, *, squared: bool) -> None:
        super().__init__()
        self.squared = squared
        self.up_proj = nn.Linear(d_model, d_ffn, bias=False)
        self.down_proj = nn.Linear(d_ffn, d_model, bias=False)

    def forward(self, hidden: Tensor, _context: object = None) -> Tensor:
        inner = self.up_proj(hidden)
        return self.down_proj(functional.relu(inner).square() if self.squared else functional.gelu(inner))


class LinearFFN(nn.Module):
    """(batch, token, d_model) -> same."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, hidden: Tensor, _context: object = None) -> Tensor:
        return self.down_proj(hidden)
