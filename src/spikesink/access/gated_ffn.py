"""The weights of gated FFNs, one or an expert each, with the input norm's gain folded in.

What is extracted must reproduce the module's own output on random input; whatever does not is refused with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access.blocks import BlockSites
from spikesink.access.comparison import difference, probe_rows, tolerances
from spikesink.access.model import AccessedModel
from spikesink.access.norm_weights import NormScale, bias_of, norm_scale
from spikesink.errors import DoesNotApplyError
from spikesink.positions import placed
from spikesink.weights import GatedFFN

PROJECTIONS = {
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3"),
    "down": ("down_proj", "w2"),
    "gate over up": ("gate_up_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "query, key over value": ("qkv_proj", "c_attn"),
    "output": ("o_proj", "out_proj", "c_proj", "dense"),
}
"""What families call their linear maps, by role. Where all are wanted whatever they are called, see `linears`."""


def gated_ffns(accessed: AccessedModel, block: int) -> list[GatedFFN]:
    """The gated FFNs of an FFN block: one, or one per expert (a shared expert has index -1). float32, gamma folded.

    Raises DoesNotApplyError where the FFN is not gated, has biases, or does not compute what its weights say.
    """
    sites = accessed.blocks()[block - 1]
    if sites.kind != "ffn":
        raise DoesNotApplyError(f"Block {sites.place} is no FFN block")
    parts = _parts(sites)
    scale = norm_scale(sites, accessed.d_model)
    if scale is not None and scale.bias is not None:
        raise DoesNotApplyError(
            f"The input norm of block {sites.place} has a bias, which adds linear terms to the quadratic form"
        )
    gain = None if scale is None else scale.gain
    ffns = []
    for part in parts:
        if part.gate.shape[1] != accessed.d_model or part.down.shape[0] != accessed.d_model:
            raise DoesNotApplyError(
                f"The FFN of block {sites.place} ({type(sites.inner).__name__}) keeps its weights in a way "
                "that is not known"
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
        ffns.append(ffn)
    return ffns


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
            f"The gate of block {sites.place} ({type(experts).__name__}) clamps and multiplies by (up + 1), which adds "
            "a linear term to the quadratic form"
        )
    parts = _experts(experts, sites.block)
    for name in ("shared_expert", "shared_experts"):
        if hasattr(inner, name):
            parts.append(_dense(getattr(inner, name), sites.block, -1))
    return parts


def _dense(module: Any, block: int, expert: int | None) -> _Part:
    linears = [projection(module, role) for role in ("gate", "up", "down", "gate over up")]
    gate, up, down, fused = linears
    if down is not None and fused is not None:
        halves = fused.weight.chunk(2, dim=0)
    elif down is not None and gate is not None and up is not None:
        halves = (gate.weight, up.weight)
    else:
        raise DoesNotApplyError(
            f"The FFN of block {placed(block)} ({type(module).__name__}) is not gated, so its output is no quadratic "
            "form, or has its weights under names that are not known"
        )
    if any(bias_of(linear) is not None for linear in linears):
        raise DoesNotApplyError(
            f"The FFN of block {placed(block)} has biases, which add linear terms to the quadratic form"
        )
    return _Part(halves[0], halves[1], down.weight, expert, module)


def projection(module: Any, role: str) -> Any | None:
    """The linear map of this role inside a module, by its names; None where it has none."""
    candidates = (getattr(module, name, None) for name in PROJECTIONS[role])
    return next((linear for linear in candidates if isinstance(linear, nn.Module)), None)


def _experts(experts: Any, block: int) -> list[_Part]:
    if isinstance(experts, nn.ModuleList):
        return [_dense(expert, block, index) for index, expert in enumerate(experts)]
    fused, down = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if not (isinstance(fused, Tensor) and isinstance(down, Tensor) and fused.ndim == down.ndim == 3):
        raise DoesNotApplyError(
            f"The experts of block {placed(block)} ({type(experts).__name__}) keep their weights in a way that is "
            "not known"
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


def _check(part: _Part, sites: BlockSites, ffn: GatedFFN, scale: NormScale | None) -> None:
    """Refuse weights that do not reproduce the module: a multiplier, a clamp, another order of the fused halves."""
    from transformers.activations import ACT2FN

    hidden = probe_rows(ffn.d_model, part.gate)
    with torch.inference_mode():
        shown = _run(part, sites, sites.input_norm(hidden) if sites.input_norm is not None else hidden)
        entering = scale.norm(hidden) if scale is not None else hidden.float()
        gate, up = entering @ ffn.gate.T, entering @ ffn.up.T
        wrong = difference((ACT2FN[ffn.activation](gate) * up) @ ffn.down.T, shown.reshape(len(hidden), -1))
    if not wrong < tolerances(part.gate.dtype).product:
        raise DoesNotApplyError(
            f"The FFN of block {sites.place} ({type(sites.inner).__name__}) differs from "
            f"W_down(act(W_gate h) * W_up h) by {wrong:.2g} (relative), so its amplifier is not known"
        )


def _run(part: _Part, sites: BlockSites, hidden: Tensor) -> Tensor:
    try:
        return part.run(hidden)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DoesNotApplyError(
            f"The FFN of block {sites.place} ({type(sites.inner).__name__}) cannot be run by itself ({error})"
        ) from error


def _activation_name(config: Any) -> str:
    for name in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            return value
    return "silu"
