"""The gain of a block's input norm, read off what the norm does."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikesink.access.blocks import BlockSites
from spikesink.access.comparison import difference, probe_rows, tolerances
from spikesink.access.model import AccessedModel
from spikesink.errors import DoesNotApplyError
from spikesink.weights import InputNorm


@dataclass(frozen=True)
class NormScale:
    """A block's input norm taken apart: norm(h) = norm(h without scale) * gain + bias. Shapes (d,)."""

    norm: InputNorm
    gain: Tensor
    bias: Tensor | None


def input_norm(accessed: AccessedModel, block: int) -> InputNorm | None:
    """The norm at the input of a block without its scale; None where the block reads the residual itself.

    Raises DoesNotApplyError for a norm that is neither an RMSNorm nor a LayerNorm.
    """
    scale = norm_scale(accessed.blocks()[block - 1], accessed.d_model)
    return scale.norm if scale else None


def bias_of(module: Any) -> Tensor | None:
    """Its bias in float32; None where it has none, or only zeros."""
    bias: Tensor | None = getattr(module, "bias", None)
    return None if bias is None or not bool(bias.any()) else bias.detach().float()


def norm_scale(sites: BlockSites, d_model: int) -> NormScale | None:
    """Scale and kind of a block's input norm, found by what the module does to random input."""
    module = sites.input_norm
    if module is None:
        return None
    weight: Tensor | None = getattr(module, "weight", None)
    shift = bias_of(module)
    like = weight if weight is not None else next(sites.inner.parameters())
    hidden = probe_rows(d_model, like)
    with torch.inference_mode():
        shown = module(hidden).float()
    # Llama's norms and others compute in float32, whatever they are given.
    tolerance = tolerances(torch.float32 if like.dtype == torch.float64 else like.dtype).product
    ones = torch.ones(d_model, device=shown.device)
    gains = [ones] if weight is None else [weight.detach().float(), 1.0 + weight.detach().float()]
    for centred in (False, True):
        norm = InputNorm(_epsilon(module), centred)
        for gain in gains:
            expected = norm(hidden) * gain + (0.0 if shift is None else shift)
            if difference(expected, shown) < tolerance:
                return NormScale(norm, gain, shift)
    raise DoesNotApplyError(
        f"The input norm of block {sites.place} ({type(module).__name__}) is neither an RMSNorm nor a LayerNorm, so "
        "h~ has no fixed length"
    )


def _epsilon(module: Any) -> float:
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return float(torch.finfo(torch.float32).eps)
