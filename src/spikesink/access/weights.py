"""Feed-forward weights as plain tensors, the norm scale folded in: the one place that knows their parameter names.

A family is recognised by the parameters a module has, and what is extracted must reproduce the module's own output on
random input; whatever does not is refused with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access.model import AccessedModel, BlockSites
from spikesink.errors import DoesNotApplyError
from spikesink.weights import GatedFFN, InputNorm

PROBE_ROWS = 8
NAMES = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"), ("gate_up_proj",))
"""What families call W_gate, W_up, W_down, and W_gate over W_up."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""By dtype: largest relative difference between what was extracted and the module itself."""


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


def norm_scale(sites: BlockSites, d_model: int) -> NormScale | None:
    """Scale and kind of a block's input norm, found by what the module does to random input."""
    module = sites.input_norm
    if module is None:
        return None
    weight: Tensor | None = getattr(module, "weight", None)
    bias: Tensor | None = getattr(module, "bias", None)
    like = weight if weight is not None else next(sites.inner.parameters())
    hidden = probe_rows(d_model, like)
    with torch.inference_mode():
        shown = module(hidden).float()
    ones = torch.ones(d_model, device=shown.device)
    gains = [ones] if weight is None else [weight.detach().float(), 1.0 + weight.detach().float()]
    shift = None if bias is None or not bool(bias.any()) else bias.detach().float()
    for centred in (False, True):
        norm = InputNorm(_epsilon(module), centred)
        for gain in gains:
            expected = norm(hidden) * gain + (0.0 if shift is None else shift)
            if difference(expected, shown) < tolerance(like.dtype):
                return NormScale(norm, gain, shift)
    raise DoesNotApplyError(
        f"The input norm of block {sites.block} ({type(module).__name__}) is neither an RMSNorm nor a LayerNorm, so "
        "h~ has no fixed length"
    )


def gated_ffns(accessed: AccessedModel, block: int) -> list[GatedFFN]:
    """The gated FFNs of an FFN block: one, or one per expert (a shared expert has index -1). float32, gamma folded.

    Raises DoesNotApplyError where the FFN is not gated, has biases, or does not compute what its weights say.
    """
    sites = accessed.blocks()[block - 1]
    if sites.kind != "ffn":
        raise DoesNotApplyError(f"Block {block} is an attention block")
    parts = _parts(sites)
    scale = norm_scale(sites, accessed.d_model)
    if scale is not None and scale.bias is not None:
        raise DoesNotApplyError(
            f"The input norm of block {block} has a bias, which adds linear terms to the quadratic form"
        )
    gain = None if scale is None else scale.gain
    found = []
    for part in parts:
        if part.gate.shape[1] != accessed.d_model or part.down.shape[0] != accessed.d_model:
            raise DoesNotApplyError(
                f"The FFN of block {block} ({type(sites.inner).__name__}) keeps its weights in a way that is not known"
            )
        gate, up = (matrix.detach().float() for matrix in (part.gate, part.up))
        ffn = GatedFFN(
            gate=gate if gain is None else gate * gain,
            up=up if gain is None else up * gain,
            down=part.down.detach().float(),
            activation=_activation_name(accessed.config),
            input_normed=scale is not None,
            output_normed=sites.output_norm is not None,
            expert=part.expert,
        )
        _check(part, sites, ffn, scale)
        found.append(ffn)
    return found


def tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])


def difference(one: Tensor, other: Tensor) -> float:
    """Largest over rows of ||one - other|| / ||other||."""
    one, other = one.double(), other.double()
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-12)).max())


def probe_rows(d_model: int, like: Tensor) -> Tensor:
    """Fixed random rows (PROBE_ROWS, d) of unequal lengths, a mean that is not zero, on the device of `like`."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBE_ROWS, d_model, generator=generator) * torch.linspace(0.5, 4.0, PROBE_ROWS)[:, None] + 0.3
    return rows.to(device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class _Part:
    """One gated map inside an FFN module and how to run it: gate, up (d_ffn, d), down (d, d_ffn)."""

    gate: Tensor
    up: Tensor
    down: Tensor
    expert: int | None
    run: Callable[[Tensor], Tensor]


def _parts(sites: BlockSites) -> list[_Part]:
    inner = sites.inner
    experts = getattr(inner, "experts", None)
    if experts is None:
        return [_dense(inner, sites.block, None)]
    if hasattr(experts, "limit") or hasattr(experts, "gate_up_proj_bias"):
        raise DoesNotApplyError(
            f"The gate of block {sites.block} ({type(experts).__name__}) clamps and multiplies by (up + 1), which adds "
            "a linear term to the quadratic form"
        )
    found = _experts(experts, sites.block)
    for name in ("shared_expert", "shared_experts"):
        if hasattr(inner, name):
            found.append(_dense(getattr(inner, name), sites.block, -1))
    return found


def _dense(module: Any, block: int, expert: int | None) -> _Part:
    linears = [_linear(module, *names) for names in NAMES]
    gate, up, down, fused = linears
    if down is not None and fused is not None:
        halves = fused.weight.chunk(2, dim=0)
    elif down is not None and gate is not None and up is not None:
        halves = (gate.weight, up.weight)
    else:
        raise DoesNotApplyError(
            f"The FFN of block {block} ({type(module).__name__}) is not gated, so its output is no quadratic form, or "
            "has its weights under names that are not known"
        )
    if any(linear is not None and _has_bias(linear) for linear in linears):
        raise DoesNotApplyError(f"The FFN of block {block} has biases, which add linear terms to the quadratic form")
    return _Part(halves[0], halves[1], down.weight, expert, module)


def _linear(module: Any, *names: str) -> Any:
    """The first of these modules that is there."""
    found = (getattr(module, name, None) for name in names)
    return next((linear for linear in found if isinstance(linear, nn.Module)), None)


def _experts(experts: Any, block: int) -> list[_Part]:
    if isinstance(experts, nn.ModuleList):
        return [_dense(expert, block, index) for index, expert in enumerate(experts)]
    fused, down = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if not (isinstance(fused, Tensor) and isinstance(down, Tensor) and fused.ndim == down.ndim == 3):
        raise DoesNotApplyError(
            f"The experts of block {block} ({type(experts).__name__}) keep their weights in a way that is not known"
        )
    parts = []
    for index in range(fused.shape[0]):
        gate, up = fused[index].chunk(2, dim=0)
        parts.append(_Part(gate, up, down[index], index, _one_expert(experts, index)))
    return parts


def _one_expert(experts: Any, index: int) -> Callable[[Tensor], Tensor]:
    """Run an experts module with every token routed to one expert with weight 1."""

    def run(hidden: Tensor) -> Tensor:
        chosen = torch.full((len(hidden), 1), index, dtype=torch.long, device=hidden.device)
        return experts(hidden, chosen, torch.ones_like(chosen, dtype=hidden.dtype))

    return run


def _has_bias(linear: Any) -> bool:
    bias = getattr(linear, "bias", None)
    return bias is not None and bool(bias.any())


def _check(part: _Part, sites: BlockSites, ffn: GatedFFN, scale: NormScale | None) -> None:
    """Refuse weights that do not reproduce the module: a multiplier, a clamp, another order of the fused halves."""
    from transformers.activations import ACT2FN

    hidden = probe_rows(ffn.d_model, part.gate)
    with torch.inference_mode():
        shown = _run(part, sites, sites.input_norm(hidden) if sites.input_norm is not None else hidden)
        entering = scale.norm(hidden) if scale is not None else hidden.float()
        gate, up = entering @ ffn.gate.T, entering @ ffn.up.T
        found = difference((ACT2FN[ffn.activation](gate) * up) @ ffn.down.T, shown.reshape(len(hidden), -1))
    if not found < tolerance(part.gate.dtype):
        raise DoesNotApplyError(
            f"The FFN of block {sites.block} ({type(sites.inner).__name__}) differs from W_down(act(W_gate h) * W_up h)"
            f" by {found:.2g} (relative), so its amplifier is not known"
        )


def _run(part: _Part, sites: BlockSites, hidden: Tensor) -> Tensor:
    try:
        return part.run(hidden)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DoesNotApplyError(
            f"The FFN of block {sites.block} ({type(sites.inner).__name__}) cannot be run by itself ({error})"
        ) from error


def _activation_name(config: Any) -> str:
    for name in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            return value
    return "silu"


def _epsilon(module: Any) -> float:
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return float(torch.finfo(torch.float32).eps)
