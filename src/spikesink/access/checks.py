"""What must hold in every layer before a model is measured, and how far it is from holding."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spikesink.access.comparison import PROBE_TOKENS, difference, probe_ids, tolerances
from spikesink.access.model import AccessedModel
from spikesink.access.watching import (
    Additivity,
    Against,
    Calls,
    Maps,
    Residuals,
    Writes,
    check_calls,
    watched,
    watched_eager,
)
from spikesink.errors import InputError, SpikesinkError, VerificationError
from spikesink.observer import Batch, full_batch
from spikesink.positions import placed

PADDING = 5


@dataclass(frozen=True)
class Differences:
    """The largest relative difference by block (0: of the model as a whole), or the reason why there is none."""

    by_block: dict[int, float]
    reason: str | None = None


@dataclass(frozen=True)
class LayerCheck:
    """One thing that must hold in every layer."""

    name: str
    what: str
    find: Callable[["Passes"], Differences]
    tolerance: str
    """Which of `Tolerances` the differences must stay within."""
    refusal: str = ""
    """Of a check that loading raises at: what is wrong, with {layer_index}, {block}, {wrong} and {limit} to fill in."""
    long: bool = False
    """Whether it looks at the longest pass."""

    def limit(self, dtype: torch.dtype) -> float:
        """The largest difference that holds."""
        return getattr(tolerances(dtype), self.tolerance)


class Passes:
    """The forward passes that checks look at, each run when first asked for: a short one, and a long one."""

    def __init__(self, accessed: AccessedModel, length: int = PROBE_TOKENS) -> None:
        self.accessed, self.length = accessed, length

    @cached_property
    def short(self) -> "Pass":
        seen = Pass(self.accessed, PROBE_TOKENS)
        check_calls(self.accessed, seen.calls)
        return seen

    @cached_property
    def long(self) -> "Pass":
        return Pass(self.accessed, self.length)


class Pass:
    """One forward pass on the probe ids: what adds up, what attention wrote, what ran, what each query saw."""

    def __init__(self, accessed: AccessedModel, tokens: int) -> None:
        self.accessed = accessed
        self.batch = full_batch(probe_ids(accessed.vocab_size, tokens))
        self.sums, self.writes, self.calls = Additivity(accessed), Writes(), Calls()
        self.logits = watched(accessed, self.batch, self.sums, self.writes, self.calls)

    @cached_property
    def attention(self) -> dict[int, float]:
        return attention_differences(self.accessed, self.batch, self.writes.writes)


def causality(passes: Passes) -> Differences:
    """How much changing the last token changes earlier predictions."""
    accessed, before = passes.accessed, passes.short
    changed = before.batch.ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % accessed.vocab_size
    return Differences({0: difference(before.logits[:, :-1], watched(accessed, full_batch(changed))[:, :-1])})


def maps(passes: Passes) -> Differences:
    """Our attention weights against the maps that the family's eager attention returns."""
    accessed = passes.accessed
    batch = full_batch(probe_ids(accessed.vocab_size))
    ours = Maps()
    watched(accessed, batch, ours)
    output = watched_eager(accessed, batch, output_attentions=True)
    theirs = [each for each in getattr(output, "attentions", None) or () if isinstance(each, Tensor)]
    blocks = [sites.block for sites in accessed.attending]
    pairs = list(zip(blocks, theirs, strict=False))
    if len(theirs) == len(blocks) and all(each.shape == ours.maps[block].shape for block, each in pairs):
        return Differences(
            {block: difference(ours.maps[block], _with_sinks(each, ours, block)) for block, each in pairs}
        )
    return Differences({}, "the model's eager attention returns no maps")


def _with_sinks(theirs: Tensor, ours: Maps, block: int) -> Tensor:
    """Eager's map, where it was taken before a learned sink got its share (granite), with that share taken off."""
    before = ours.has_virtual_keys and bool(((theirs.float().sum(-1) - 1).abs() < 1e-3).all())
    return theirs * ours.maps[block].sum(-1, keepdim=True) if before else theirs


def padding(side: str) -> Callable[[Passes], Differences]:
    """A short and a long sequence padded together: as eager attention has them, and as each is alone."""

    def find(passes: Passes) -> Differences:
        try:
            together, alone = padded_differences(passes.accessed, side)
        except SpikesinkError as error:
            return Differences({}, f"padded batches cannot be run: {error}")
        apart = max(alone.values())
        if side == "left" and not apart <= tolerances(passes.accessed.dtype).attention:
            reason = f"positions do not follow it ({apart:.2g} off what each sequence is alone); refused when scanned"
            return Differences(together, reason)
        return Differences({block: larger(together.get(block), wrong) for block, wrong in alone.items()})

    return find


CHECKS = (
    LayerCheck(
        "sums",
        "writes add up to the next residual",
        lambda passes: Differences(passes.short.sums.differences),
        "sums",
        "Block {placed}: the write does not add up to the next residual; relative difference "
        "{wrong:.2g}, limit {limit:.0e}. The model has an arrangement that spikesink does not know; measuring it would "
        "be wrong.",
    ),
    LayerCheck(
        "attention",
        "attention writes what eager attention writes",
        lambda passes: Differences(passes.short.attention),
        "attention",
        "Block {placed}: attention rebuilt from query, key and value differs from the "
        "model's own eager attention by {wrong:.2g} (relative), limit {limit:.0e}; refused.",
    ),
    LayerCheck(
        "causality",
        "the last token changes no earlier prediction",
        causality,
        "sums",
        "Changing the last token changed earlier predictions by {wrong:.2g} (relative; limit {limit:.0e}): the model "
        "is not causal, so it is no decoder-only language model.",
    ),
    LayerCheck("maps", "attention weights are eager attention's", maps, "attention"),
    *(
        LayerCheck(
            f"padding {side}",
            f"padded on the {side}: as eager attention has it, and as each sequence is alone",
            padding(side),
            "attention",
        )
        for side in ("right", "left")
    ),
    LayerCheck(
        "long sums",
        "writes add up to the next residual",
        lambda passes: Differences(passes.long.sums.differences),
        "sums",
        long=True,
    ),
    LayerCheck(
        "long attention",
        "attention writes what eager attention writes",
        lambda passes: Differences(passes.long.attention),
        "attention",
        long=True,
    ),
)
"""In the order they are made. Those with a refusal are made on loading, too; the long ones look past windows."""


def check_left_padding(accessed: AccessedModel, valid: Tensor) -> None:
    """Refuse a batch with padding on the left, valid (sequence, token), where the model's positions do not follow it.

    Some families count positions from the first column whatever the mask says (BART, RoBERTa): a sequence that is
    padded on the left is another one to them. Raises InputError.
    """
    if bool(valid[:, 0].all()):
        return
    limit = tolerances(accessed.dtype).attention
    worst = max(padded_differences(accessed, "left")[1].values())
    if not worst <= limit:
        raise InputError(
            f"Padding on the left, but the positions of '{accessed.name}' do not follow it: its residuals then differ "
            f"from each sequence's alone by {worst:.2g} (relative; limit {limit:.0e}). Pad on the right."
        )


def attention_differences(accessed: AccessedModel, batch: Batch, ours: dict[int, Tensor]) -> dict[int, float]:
    """Our attention writes (which are let go) against the family's own eager ones, by block; padding left out."""
    against = Against(ours, batch.valid.to(accessed.device) if batch.padded else None)
    watched_eager(accessed, batch, against)
    if against.kept:
        raise VerificationError(
            f"Block {placed(min(against.kept))} writes under spikesink's attention but not under the model's own; "
            "refused."
        )
    return against.differences


def padded_differences(accessed: AccessedModel, side: str) -> tuple[dict[int, float], dict[int, float]]:
    """By block, of a short and a long sequence together: attention against eager's, residuals against each alone."""
    ids = probe_ids(accessed.vocab_size, 2 * PROBE_TOKENS).view(2, PROBE_TOKENS)
    valid = torch.ones_like(ids, dtype=torch.bool)
    real = slice(PROBE_TOKENS - PADDING) if side == "right" else slice(PADDING, None)
    valid[1] = False
    valid[1, real] = True
    batch = Batch(ids=ids, valid=valid)
    together, ours = Residuals(), Writes()
    watched(accessed, batch, together, ours)
    alone: dict[int, float] = {}
    for row, tokens in enumerate((slice(None), real)):
        single = full_batch(ids[row : row + 1, tokens])
        apart = Residuals()
        watched(accessed, single, apart)
        for block, (hidden,) in apart.after.items():
            alone[block] = max(difference(together.after[block][row], hidden), alone.get(block, 0.0))
    return attention_differences(accessed, batch, ours.writes), alone


def larger(one: float | None, other: float) -> float:
    """The larger; what JSON cannot say (not a number, infinite) counts as the largest float."""
    other = other if math.isfinite(other) else sys.float_info.max
    return other if one is None else max(one, other)
