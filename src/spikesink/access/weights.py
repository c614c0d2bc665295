"""Weights as plain tensors, the norm scale folded in: value and output projections, key projections, the unembedding.

What is extracted must reproduce the module's own output on random input, or one forward pass of the model; whatever
does not is refused with the reason. FFNs are in `gated_ffn`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access.blocks import BlockSites
from spikesink.access.capture import observing, run
from spikesink.access.comparison import difference, probe_ids, tolerances
from spikesink.access.gated_ffn import projection
from spikesink.access.model import AccessedModel
from spikesink.access.norm_weights import bias_of, norm_scale
from spikesink.errors import DoesNotApplyError
from spikesink.observer import AttentionRows, Observer, full_batch
from spikesink.weights import AttentionWeights


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
    module = projection(sites.inner, "output")
    if module is None:
        raise _unknown(sites, "output projection")
    weight, bias = _matrix(module)
    heads = seen.outputs[block].transpose(1, 2).flatten(2).float()
    if weight.shape[1] != heads.shape[-1]:
        raise _unknown(sites, "output projection")
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
    return (weight.T if type(module).__name__ == "Conv1D" else weight), bias_of(module)


def _key_or_value(sites: BlockSites, role: str, rows: int) -> tuple[Tensor, Tensor | None]:
    plain, fused = (projection(sites.inner, name) for name in (role, "query, key over value"))
    if plain is None and fused is None:
        raise _unknown(sites, f"{role} projection")
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


def _unknown(sites: BlockSites, what: str) -> DoesNotApplyError:
    return DoesNotApplyError(f"The {what} of block {sites.place} ({type(sites.inner).__name__}) is not known")
