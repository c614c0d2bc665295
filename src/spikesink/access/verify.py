"""The numeric self-check of every layer, run when a model is loaded: refuse what does not hold, never warn.

On about 16 tokens: the writes must add up to the next residual (in a post-norm layer, H' = Norm(H + F)); attention
rebuilt by our backend must give what the family's own eager attention gives; every layer's attention must have come
through the backend; and no token may influence an earlier one.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access.capture import Tap, hooked, observing, run, without_gradient
from spikesink.access.model import AccessedModel
from spikesink.access.protocol import AttentionInputs, full_batch
from spikesink.errors import VerificationError

PROBE_TOKENS = 16
LIMITS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-6),
    torch.float32: (1e-5, 1e-3),
    torch.bfloat16: (3e-2, 1.5e-1),
    torch.float16: (5e-3, 5e-2),
}
"""By dtype: largest relative difference of sums, and of attention against eager."""


@dataclass
class Verification:
    """Largest relative differences found, by block."""

    sums: dict[int, float] = field(default_factory=dict)
    attention: dict[int, float] = field(default_factory=dict)
    causality: float = 0.0

    def summary(self) -> dict[str, float]:
        return {
            "largest_sum_difference": max(self.sums.values(), default=0.0),
            "largest_attention_difference": max(self.attention.values(), default=0.0),
            "largest_causality_difference": self.causality,
        }


class _Recorder:
    """Keeps the residuals, writes and which blocks attended, of one small forward."""

    def __init__(self) -> None:
        self.residuals: dict[int, Tensor] = {}
        self.writes: dict[int, Tensor] = {}
        self.attended: set[int] = set()

    def on_residual(self, block: int, hidden: Tensor) -> None:
        self.residuals[block] = hidden.clone()

    def on_write(self, block: int, write: Tensor) -> None:
        self.writes[block] = write.clone()

    def on_attention(self, inputs: AttentionInputs) -> None:
        self.attended.add(inputs.block)


def verify(accessed: AccessedModel) -> Verification:
    """Check every layer; raises VerificationError with the layer, the difference and the limit."""
    ids = probe_ids(accessed.vocab_size)
    ours, eager = _Recorder(), _Recorder()
    with observing(accessed, [ours]):
        logits = run(accessed, full_batch(ids))
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % accessed.vocab_size
    with observing(accessed, []):
        other = run(accessed, full_batch(changed))
    _run_eager(accessed, eager, ids)
    limit_sum, limit_attention = LIMITS.get(accessed.dtype, LIMITS[torch.bfloat16])
    found = Verification()
    _check_attended(accessed, ours)
    _check_sums(accessed, ours, found, limit_sum)
    _check_attention(accessed, ours, eager, found, limit_attention)
    found.causality = _difference(logits[:, :-1], other[:, :-1])
    if found.causality > limit_sum:
        raise VerificationError(
            f"Changing the last token changed earlier predictions by {found.causality:.2g} (relative; limit "
            f"{limit_sum:.0e}): the model is not causal, so it is no decoder-only language model."
        )
    return found


def probe_ids(vocab_size: int, tokens: int = PROBE_TOKENS) -> Tensor:
    """The fixed pseudo-random ids (1, tokens) that models are verified on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (1, tokens), generator=generator)


def _run_eager(accessed: AccessedModel, recorder: _Recorder, ids: Tensor) -> None:
    model: PreTrainedModel = accessed.model
    before = model.config._attn_implementation or "eager"
    training = model.training
    model.eval()
    try:
        model.set_attn_implementation("eager")
        with hooked(accessed, Tap(observers=[recorder])), without_gradient(model):
            model(input_ids=ids.to(accessed.device), use_cache=False)
    finally:
        model.set_attn_implementation(before)
        model.train(training)


def _check_attended(accessed: AccessedModel, ours: _Recorder) -> None:
    missing = [layer.attention.block for layer in accessed.layers if layer.attention.block not in ours.attended]
    if missing:
        raise VerificationError(
            f"{len(missing)} of {accessed.n_layers} layers (first: layer_index {missing[0] // 2}) do not call "
            "attention through transformers' attention registry; their attention cannot be measured exactly."
        )


def _check_sums(accessed: AccessedModel, ours: _Recorder, found: Verification, limit: float) -> None:
    for index, layer in enumerate(accessed.layers):
        first, second = layer.attention.block, layer.ffn.block
        entering, leaving = ours.residuals[first - 1], ours.residuals[second]
        if layer.parallel:
            rebuilt = entering + ours.writes[first] + ours.writes[second]
            found.sums[second] = _difference(rebuilt, leaving)
        else:
            for sites, before in ((layer.attention, entering), (layer.ffn, ours.residuals[first])):
                rebuilt = before + ours.writes[sites.block]
                if sites.residual_norm is not None:
                    with torch.inference_mode():
                        rebuilt = sites.residual_norm(rebuilt)
                found.sums[sites.block] = _difference(rebuilt, ours.residuals[sites.block])
        for block in (first, second):
            if found.sums.get(block, 0.0) > limit:
                raise VerificationError(
                    f"Layer_index {index}, block {block}: the write does not add up to the next residual; relative "
                    f"difference {found.sums[block]:.2g}, limit {limit:.0e}. The model has an arrangement that "
                    "spikesink does not know; measuring it would be wrong."
                )


def _check_attention(
    accessed: AccessedModel, ours: _Recorder, eager: _Recorder, found: Verification, limit: float
) -> None:
    for index, layer in enumerate(accessed.layers):
        block = layer.attention.block
        difference = _difference(ours.writes[block], eager.writes[block])
        found.attention[block] = difference
        if difference > limit:
            raise VerificationError(
                f"Layer_index {index}, block {block}: attention rebuilt from query, key and value differs from the "
                f"model's own eager attention by {difference:.2g} (relative), limit {limit:.0e}; refused."
            )


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest over tokens of ||one - other|| / ||other||, in float64 so that a spike does not overflow."""
    one, other = one.double(), other.double()
    scale = other.norm(dim=-1).clamp_min(1e-12)
    return float(((one - other).norm(dim=-1) / scale).max())
