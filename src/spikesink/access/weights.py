"""Weights as plain tensors, the norm scale folded in: FFNs, value and output projections, the unembedding.

The one place that knows the names of parameters. What is extracted must reproduce the module's own output on random
input, or one forward pass of the model; whatever does not is refused with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access.blocks import BlockSites
from spikesink.access.capture import observing, run
from spikesink.access.comparison import difference, probe_ids, probe_rows, tolerances
from spikesink.access.model import AccessedModel
from spikesink.errors import DoesNotApplyError
from spikesink.observer import AttentionRows, Observer, full_batch
from spikesink.positions import placed
from spikesink.weights import AttentionWeights, GatedFFN, InputNorm

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
            if difference(expected, shown) < tolerances(like.dtype).product:
                return NormScale(norm, gain, shift)
    raise DoesNotApplyError(
        f"The input norm of block {sites.place} ({type(module).__name__}) is neither an RMSNorm nor a LayerNorm, so "
        "h~ has no fixed length"
    )


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
    linears = [_projection(module, role) for role in ("gate", "up", "down", "gate over up")]
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
    if any(linear is not None and _has_bias(linear) for linear in linears):
        raise DoesNotApplyError(
            f"The FFN of block {placed(block)} has biases, which add linear terms to the quadratic form"
        )
    return _Part(halves[0], halves[1], down.weight, expert, module)


def _projection(module: Any, role: str) -> Any | None:
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


def _epsilon(module: Any) -> float:
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return float(torch.finfo(torch.float32).eps)


@dataclass
class Probe(Observer):
    """One small forward pass: residuals and writes (1, token, d) and attention outputs (1, head, token, d_head)."""

    residuals: dict[int, Tensor] = field(default_factory=dict)
    writes: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    kv_heads: dict[int, int] = field(default_factory=dict)
    logits: Tensor | None = None

    def on_residual(self, block: int, hidden: Tensor) -> None:
        self.residuals[block] = hidden.clone()

    def on_write(self, block: int, write: Tensor) -> None:
        self.writes[block] = write.clone()

    def on_attention_rows(self, rows: AttentionRows) -> None:
        # The probe is shorter than a row block, so these are all rows.
        self.outputs[rows.block] = rows.output.clone()
        self.kv_heads[rows.block] = rows.value.shape[1]

    def on_logits(self, logits: Tensor, start: int) -> None:
        self.logits = logits.clone()


def probe(accessed: AccessedModel) -> Probe:
    """The forward pass that weights are checked against."""
    seen = Probe()
    with observing(accessed, [seen]):
        run(accessed, full_batch(probe_ids(accessed.vocab_size)))
    return seen


def output_projection(accessed: AccessedModel, block: int, seen: Probe) -> tuple[Tensor, Tensor | None]:
    """W_O (d, n_heads * d_head) in float32 and its bias (d,), of an attention block.

    Raises DoesNotApplyError where `W_O output` is not what the block writes (a gate, an unknown module).
    """
    sites = accessed.blocks()[block - 1]
    if block not in seen.outputs:
        raise DoesNotApplyError(f"Block {sites.place} ({type(sites.inner).__name__}) mixes tokens without attending")
    module = _projection(sites.inner, "output")
    if module is None:
        raise _unknown(block, sites, "output projection")
    weight, bias = _matrix(module)
    heads = seen.outputs[block].transpose(1, 2).flatten(2).float()
    if weight.shape[1] != heads.shape[-1]:
        raise _unknown(block, sites, "output projection")
    expected = heads @ weight.T + (0.0 if bias is None else bias)
    _check_write(accessed, sites, expected, seen.writes[block], "W_O times the heads' outputs")
    return weight, bias


def attention_weights(accessed: AccessedModel, block: int, seen: Probe) -> AttentionWeights:
    """Value and output projections of an attention block, gamma folded, float32.

    Raises DoesNotApplyError where the map of a token that sees only itself is not `W_O W_V h~` plus a constant.
    """
    sites = accessed.blocks()[block - 1]
    output, output_bias = output_projection(accessed, block, seen)
    n_heads, n_kv_heads = seen.outputs[block].shape[1], seen.kv_heads[block]
    value, value_bias = _key_or_value(sites, "value", output.shape[1] // n_heads * n_kv_heads)
    scale = norm_scale(sites, accessed.d_model)
    offset = value_bias
    if scale is not None and scale.bias is not None:
        offset = value @ scale.bias + (0.0 if offset is None else offset)
    folded = value if scale is None else value * scale.gain
    if offset is not None:
        repeated = offset.view(n_kv_heads, -1).repeat_interleave(n_heads // n_kv_heads, dim=0).flatten()
        offset = output @ repeated
    if output_bias is not None:
        offset = output_bias if offset is None else offset + output_bias
    weights = AttentionWeights(folded, output, n_heads, n_kv_heads, offset)
    entering = seen.residuals[block - 1][:, :1].float()
    entering = entering if scale is None else scale.norm(entering)
    expected = entering @ weights.first_token_map().T + (0.0 if offset is None else offset)
    _check_write(accessed, sites, expected, seen.writes[block][:, :1], "W_VO of the first token")
    return weights


def key_projection(accessed: AccessedModel, block: int, rows: int) -> tuple[Tensor, Tensor]:
    """W_K (rows, d) of an attention block, gamma folded, and what biases add (rows,), in float32; rows = KV heads *
    d_head.

    A norm of the keys (QK-norm) is not in it: compare with the model's own keys. Raises DoesNotApplyError.
    """
    sites = accessed.blocks()[block - 1]
    weight, bias = _key_or_value(sites, "key", rows)
    scale = norm_scale(sites, accessed.d_model)
    offset = torch.zeros(len(weight), device=weight.device) if bias is None else bias
    if scale is not None and scale.bias is not None:
        offset = offset + weight @ scale.bias
    return weight if scale is None else weight * scale.gain, offset


def unembedding(accessed: AccessedModel, seen: Probe) -> Callable[[Tensor], Tensor]:
    """The map from the last residual (..., d) to logits (..., vocabulary), final norm and scaling included.

    Raises DoesNotApplyError where it does not reproduce the model's logits.
    """
    model: Any = accessed.model
    decoder = model.get_decoder()
    candidates = [getattr(decoder, name, None) for name in ("norm", "ln_f", "final_layer_norm")]
    norm = next((module for module in candidates if module is not None), nn.Identity())
    config, head = accessed.config, model.get_output_embeddings()
    scaling = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def unembed(hidden: Tensor) -> Tensor:
        logits = head(norm(hidden.to(accessed.dtype))) * scaling
        return logits if cap is None else cap * torch.tanh(logits / cap)

    assert seen.logits is not None, "a probe ends with its logits"
    with torch.inference_mode():
        wrong = difference(unembed(seen.residuals[accessed.n_blocks]), seen.logits)
    if not wrong < tolerances(accessed.dtype).forward:
        raise DoesNotApplyError(
            f"The logits of {type(model).__name__} are not norm and head of the last residual (they differ by "
            f"{wrong:.2g})"
        )
    return unembed


def _matrix(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of an nn.Linear, or of GPT-2's Conv1D, which keeps (in, out)."""
    weight = module.weight.detach().float()
    bias = getattr(module, "bias", None)
    bias = None if bias is None or not bool(bias.any()) else bias.detach().float()
    return (weight.T if type(module).__name__ == "Conv1D" else weight), bias


def _key_or_value(sites: BlockSites, role: str, rows: int) -> tuple[Tensor, Tensor | None]:
    plain, fused = (_projection(sites.inner, name) for name in (role, "query, key over value"))
    if plain is None and fused is None:
        raise _unknown(sites.block, sites, f"{role} projection")
    weight, bias = _matrix(plain if plain is not None else fused)
    # Fused projections end with keys and values (phi3, GPT-2); NeoX interleaves them and is caught by the check.
    last = len(weight) - (rows if plain is None and role == "key" else 0)
    return weight[last - rows : last], None if bias is None else bias[last - rows : last]


def _check_write(accessed: AccessedModel, sites: BlockSites, expected: Tensor, write: Tensor, what: str) -> None:
    with torch.inference_mode():
        if sites.output_norm is not None:
            expected = sites.output_norm(expected.to(accessed.dtype)).float()
        wrong = difference(expected * sites.multiplier, write)
    if not wrong < tolerances(accessed.dtype).forward:
        raise DoesNotApplyError(
            f"{what} differs from what block {sites.place} ({type(sites.inner).__name__}) writes by {wrong:.2g} "
            "(relative): a gate, a learned sink or an arrangement that is not known"
        )


def _unknown(block: int, sites: BlockSites, what: str) -> DoesNotApplyError:
    return DoesNotApplyError(f"The {what} of block {sites.place} ({type(sites.inner).__name__}) is not known")
