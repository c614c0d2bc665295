"""The numeric self-check of every layer, run when a model is loaded: refuse what does not hold, never warn.

On about 16 tokens: the writes must add up to the next residual (in a post-norm layer, H' = Norm(H + F)); attention
rebuilt by our backend must give what the family's own eager attention gives; every layer must run once, its attention
through the backend; and no token may influence an earlier one. `verify_deep` asks for more.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access.capture import Tap, hooked, inputs_of, observing, run, without_gradient
from spikesink.access.model import AccessedModel
from spikesink.access.protocol import AttentionInputs, Batch, full_batch
from spikesink.errors import SpikesinkError, VerificationError

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


class Sums:
    """Observer: how far each block's write is from adding up to the next residual; holds one residual at a time."""

    def __init__(self, accessed: AccessedModel) -> None:
        self.differences: dict[int, float] = {}
        self._norms = {sites.block: sites.residual_norm for sites in accessed.blocks()}
        self._before: Tensor | None = None
        self._writes: list[Tensor] = []

    def on_write(self, _block: int, write: Tensor) -> None:
        # Copies, since a layer may go on to change its tensors in place.
        self._writes.append(write.clone())

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block > 0 and self._before is not None:
            rebuilt = self._before
            for write in self._writes:
                rebuilt = rebuilt + write
            norm = self._norms[block]
            found = difference(rebuilt if norm is None else norm(rebuilt), hidden)
            self.differences[block] = max(found, self.differences.get(block, 0.0))
        self._before, self._writes = hidden.clone(), []


class Writes:
    """Observer: what every attention block writes."""

    def __init__(self) -> None:
        self.writes: dict[int, Tensor] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        if block % 2:
            self.writes[block] = write.clone()


class Calls:
    """Observer: how often every layer and every attention ran."""

    def __init__(self) -> None:
        self.layers: Counter[int] = Counter()
        self.attentions: Counter[int] = Counter()

    def on_residual(self, block: int, _hidden: Tensor) -> None:
        self.layers[block] += 1

    def on_attention(self, inputs: AttentionInputs) -> None:
        self.attentions[inputs.block] += 1


def verify(accessed: AccessedModel) -> Verification:
    """Check every layer; raises VerificationError with the layer, the difference and the limit."""
    batch = full_batch(probe_ids(accessed.vocab_size))
    sums, ours, calls = Sums(accessed), Writes(), Calls()
    logits = watched(accessed, batch, sums, ours, calls)
    limit_sum, limit_attention = limits(accessed)
    check_calls(accessed, calls)
    _check_sums(sums.differences, limit_sum)
    found = Verification(sums=sums.differences, attention=attention_differences(accessed, batch, ours.writes))
    _check_attention(found.attention, limit_attention)
    found.causality = causality(accessed, batch, logits)
    if not found.causality <= limit_sum:
        raise VerificationError(
            f"Changing the last token changed earlier predictions by {found.causality:.2g} (relative; limit "
            f"{limit_sum:.0e}): the model is not causal, so it is no decoder-only language model."
        )
    return found


def limits(accessed: AccessedModel) -> tuple[float, float]:
    """Largest relative difference allowed of sums, and of attention against eager."""
    return LIMITS.get(accessed.dtype, LIMITS[torch.bfloat16])


def probe_ids(vocab_size: int, tokens: int = PROBE_TOKENS) -> Tensor:
    """The fixed pseudo-random ids (1, tokens) that models are verified on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (1, tokens), generator=generator)


def watched(accessed: AccessedModel, batch: Batch, *observers: object) -> Tensor:
    """One forward under the measuring attention; returns the logits.

    A model that fails under it is refused: VerificationError with the reason.
    """
    with observing(accessed, observers):
        try:
            return run(accessed, batch)
        except SpikesinkError:
            raise
        except Exception as error:
            raise _failed("with spikesink's attention and hooks", error) from error


def watched_eager(accessed: AccessedModel, batch: Batch, *observers: object, **options: Any) -> Any:
    """One forward under the family's own eager attention, with the same hooks; returns the model's output."""
    model: PreTrainedModel = accessed.model
    before = model.config._attn_implementation or "eager"
    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.callback(model.set_attn_implementation, before)
        model.set_attn_implementation("eager")
        stack.enter_context(hooked(accessed, Tap(observers=list(observers))))
        stack.enter_context(without_gradient(model))
        try:
            return model(**inputs_of(batch, accessed.device), use_cache=False, **options)
        except SpikesinkError:
            raise
        except Exception as error:
            raise _failed("with its own eager attention", error) from error


def _failed(how: str, error: Exception) -> VerificationError:
    text = " ".join(str(error).split())[:200]
    if "MaskPlan" in text:
        return VerificationError(
            "The model computes with the attention mask instead of handing it on (sparse, indexed or biased "
            "attention), so the mask registry does not tell which keys a query sees; refused."
        )
    return VerificationError(f"The model's forward pass fails {how} ({type(error).__name__}: {text}); refused.")


class _Against:
    """Observer: compares attention writes with ones that were kept, and lets those go."""

    def __init__(self, kept: dict[int, Tensor], valid: Tensor | None) -> None:
        self.kept = kept
        self.valid = valid
        self.differences: dict[int, float] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        if block in self.kept:
            self.differences[block] = difference(self.kept.pop(block), write, self.valid)


def attention_differences(accessed: AccessedModel, batch: Batch, ours: dict[int, Tensor]) -> dict[int, float]:
    """Our attention writes (which are let go) against the family's own eager ones, by block; padding left out."""
    against = _Against(ours, batch.valid.to(accessed.device) if batch.padded else None)
    watched_eager(accessed, batch, against)
    if against.kept:
        raise VerificationError(
            f"Block {min(against.kept)} writes under spikesink's attention but not under the model's own; refused."
        )
    return against.differences


def causality(accessed: AccessedModel, batch: Batch, logits: Tensor) -> float:
    """How much changing the last token changes earlier predictions; `logits` are those of the batch as it is."""
    changed = batch.ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % accessed.vocab_size
    return difference(logits[:, :-1], watched(accessed, full_batch(changed))[:, :-1])


def check_calls(accessed: AccessedModel, calls: Calls) -> None:
    """Every layer once, attention in exactly those that are declared to have it; raises VerificationError."""
    declared = {sites.block for sites in accessed.attending}
    missing = sorted(declared - set(calls.attentions))
    if missing:
        raise VerificationError(
            f"{len(missing)} of {accessed.n_layers} layers (first: layer_index {missing[0] // 2}) do not call "
            "attention through transformers' attention registry; their attention cannot be measured exactly."
        )
    if not declared:
        raise VerificationError("No layer of the model attends, so it has no attention sinks to measure; refused.")
    unexpected = [sites.block for sites in accessed.blocks() if sites.kind == "mixer" and calls.attentions[sites.block]]
    if unexpected:
        raise VerificationError(
            f"Layer_index {unexpected[0] // 2} attends although its config declares a layer without attention; refused."
        )
    for what, counts, blocks in (
        ("runs", calls.layers, [sites.ffn.block for sites in accessed.layers]),
        ("attends", calls.attentions, sorted(declared | set(calls.attentions))),
    ):
        odd = next((block for block in blocks if counts[block] != 1), None)
        if odd is not None:
            raise VerificationError(
                f"Layer_index {(odd - 1) // 2} {what} {counts[odd]} times in one forward pass; expected once. A layer "
                "with more than one pass (a loop, differential attention) has no single residual or attention map."
            )


def _check_sums(found: dict[int, float], limit: float) -> None:
    for block, wrong in sorted(found.items()):
        if not wrong <= limit:
            raise VerificationError(
                f"Layer_index {(block - 1) // 2}, block {block}: the write does not add up to the next residual; "
                f"relative difference {wrong:.2g}, limit {limit:.0e}. The model has an arrangement that spikesink does "
                "not know; measuring it would be wrong."
            )


def _check_attention(found: dict[int, float], limit: float) -> None:
    for block, wrong in sorted(found.items()):
        if not wrong <= limit:
            raise VerificationError(
                f"Layer_index {(block - 1) // 2}, block {block}: attention rebuilt from query, key and value differs "
                f"from the model's own eager attention by {wrong:.2g} (relative), limit {limit:.0e}; refused."
            )


def difference(one: Tensor, other: Tensor, valid: Tensor | None = None) -> float:
    """Largest over (valid) tokens of ||one - other|| / ||other||, in float64 so that a spike does not overflow."""
    one, other = one.double(), other.double()
    scale = other.norm(dim=-1).clamp_min(1e-12)
    by_token = (one - other).norm(dim=-1) / scale
    return float(by_token.max() if valid is None else by_token[valid].max())
