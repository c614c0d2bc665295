"""Edits of attention: on sinks, in the softmax, and on what one token may see."""

import math
from typing import Unpack

import torch
from torch import Tensor

from spikesink.access import AccessedModel, AttentionRows, Batch, editing
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene.base import SHARE, Context, Options, Targets, intervention, random_tokens, seeded
from spikesink.positions import half_of, placed


class SinkOptions(Options, total=False):
    """What an edit of sinks takes besides: `strength`, the share of their weight that is taken away."""

    strength: float


KEY_CONTROL = "random_keys"
HEAD_CONTROL = "random_heads"


class SinkEditor:
    """Base of edits on sinks. Sink keys are `targets.sink_positions` and, after the step-up block, the spike tokens.

    It acts after `edit_block` where the model has spikes, unless from_start, else in every block. Before `edit_block`
    there are no spike tokens yet, and an edit can make the next token attend to itself, spike and become the sink. A
    sink keeps attending to itself, so that its own state stays. strength: share of the sink weight taken away,
    before what is left is dealt with. heads: `all`, or `sinks` for sink heads only. Controls: as many random other keys
    of the first half of each sequence; or, with `heads="sinks"`, as many random other heads of each block, and a block
    that has fewer raises DoesNotApplyError when it is run.
    """

    def __init__(
        self,
        targets: Targets,
        heads: str = "all",
        control: str | None = None,
        seed: int = 0,
        *,
        strength: float = 1.0,
        from_start: bool = False,
    ) -> None:
        if heads not in ("all", "sinks"):
            raise InputError(f"Unknown heads '{heads}'; expected all or sinks.")
        self.targets, self.heads, self.control, self.strength = targets, heads, control, strength
        self.start = targets.edit_block if targets.has_spikes and not from_start else 0
        self._generator = seeded(seed)
        self._tokens: Tensor | None = None
        self._by_block: dict[int, set[int]] = {}
        for block, head in targets.sink_heads:
            self._by_block.setdefault(block, set()).add(head)
        self._drawn: dict[int, set[int]] = {}

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        if block == self.start:
            self._tokens = self._sink_tokens(hidden)
        return hidden

    def _sink_tokens(self, hidden: Tensor) -> Tensor:
        """Sink keys of every row, (batch, token) bool."""
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        tokens[:, [position for position in self.targets.sink_positions if position < hidden.shape[1]]] = True
        if self.start:
            tokens |= self.targets.is_spike(hidden)
        if self.control == KEY_CONTROL:
            first_half = torch.arange(hidden.shape[1])[None] < max(2, half_of(hidden.shape[1]))
            return random_tokens(tokens, self._generator, among=first_half)
        return tokens

    def sink_weights(self, block: int, query_start: int, key_start: int, like: Tensor) -> Tensor | None:
        """Which entries of `like` (batch, head, row, key) are another token's weight on a sink: 1 there, else 0.

        Of its type, (batch, head or 1, row, key): bools spread over heads take torch far longer. None where none is.
        """
        if block <= self.start or self._tokens is None:
            return None
        rows, keys = like.shape[-2:]
        sinks = self._tokens[:, key_start : key_start + keys].to(like.device)[:, None, None, :]
        queries = torch.arange(query_start, query_start + rows, device=like.device)[:, None]
        others = queries != torch.arange(key_start, key_start + keys, device=like.device)[None]
        chosen = sinks & others
        if self.heads == "all":
            return chosen.to(like.dtype)
        heads = self._chosen_heads(block, like.shape[1])
        if not heads:
            return None
        acts = torch.zeros(like.shape[1], dtype=torch.bool, device=like.device)
        acts[sorted(heads)] = True
        return (chosen & acts[None, :, None, None]).to(like.dtype)

    def _chosen_heads(self, block: int, n_heads: int) -> set[int]:
        sinks = self._by_block.get(block, set())
        if self.control != HEAD_CONTROL:
            return sinks
        if block not in self._drawn:
            others = [head for head in range(n_heads) if head not in sinks]
            if len(others) < len(sinks):
                raise DoesNotApplyError(
                    f"block {placed(block)} has {len(sinks)} sink heads and only {len(others)} others to take instead"
                )
            order = torch.randperm(len(others), generator=self._generator).tolist()
            self._drawn[block] = {others[index] for index in order[: len(sinks)]}
        return self._drawn[block]


@intervention(edits="sinks", controls=(KEY_CONTROL,), reach="residual", strength=SHARE)
def mask_sinks(
    accessed: AccessedModel, targets: Targets, *, heads: str = "all", **options: Unpack[SinkOptions]
) -> Context:
    """Mask the sink keys for every other token, so that the remaining weights are renormalised.

    heads: `all`, or `sinks` for sink heads only.
    """
    return editing(accessed, MaskEditor(targets, heads, **options))


@intervention(edits="sinks", controls=(KEY_CONTROL,), strength=SHARE)
def mask_sinks_everywhere(accessed: AccessedModel, targets: Targets, **options: Unpack[SinkOptions]) -> Context:
    """Mask the sink keys for every other token from the first block on: do the spikes go, stay or move?"""
    return editing(accessed, MaskEditor(targets, from_start=True, **options))


@intervention(edits="sinks", controls=(HEAD_CONTROL, KEY_CONTROL), reach="residual", strength=SHARE)
def mask_sinks_in_sink_heads(accessed: AccessedModel, targets: Targets, **options: Unpack[SinkOptions]) -> Context:
    """Mask the sink keys in sink heads only; the remaining weights are renormalised."""
    return editing(accessed, MaskEditor(targets, "sinks", **options))


class MaskEditor(SinkEditor):
    """Lowers the masked logits of sink keys so that exp of them keeps 1 - strength: to -inf where all is taken."""

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        sinks = self.sink_weights(block, query_start, key_start, scores)
        if sinks is None:
            return scores
        lowered = math.log1p(-self.strength) if self.strength < 1 else -math.inf
        return scores + torch.where(sinks > 0, lowered, 0.0)


@intervention(edits="sinks", controls=(KEY_CONTROL,), reach="residual", strength=SHARE)
def zero_sink_values(
    accessed: AccessedModel, targets: Targets, *, heads: str = "all", **options: Unpack[SinkOptions]
) -> Context:
    """Keep the weight on sink keys and zero their value for every other token.

    heads: `all`, or `sinks` for sink heads only.
    """
    return editing(accessed, ZeroValueEditor(targets, heads, **options))


@intervention(edits="sinks", controls=(HEAD_CONTROL, KEY_CONTROL), reach="residual", strength=SHARE)
def zero_sink_values_in_sink_heads(
    accessed: AccessedModel, targets: Targets, **options: Unpack[SinkOptions]
) -> Context:
    """Keep the weight on sink keys and zero their value, in sink heads only."""
    return editing(accessed, ZeroValueEditor(targets, "sinks", **options))


class ZeroValueEditor(SinkEditor):
    """Takes the sinks' share out of the attention output."""

    def edit_output(self, block: int, rows: AttentionRows) -> Tensor:
        sinks = self.sink_weights(block, rows.query_start, rows.key_start, rows.weights)
        if sinks is None:
            return rows.output
        heads = rows.weights.shape[1]
        value = rows.value.repeat_interleave(heads // rows.value.shape[1], dim=1)
        return rows.output - self.strength * (rows.weights * sinks).to(value.dtype) @ value


@intervention(edits="sinks", controls=(KEY_CONTROL,), reach="residual", strength=SHARE)
def spread_sink_weight(
    accessed: AccessedModel, targets: Targets, *, heads: str = "all", **options: Unpack[SinkOptions]
) -> Context:
    """Spread the weight on sink keys evenly over the other keys that a query sees; no value is touched.

    Unlike masking, this does not sharpen what is left. heads: `all`, or `sinks` for sink heads only.
    """
    return editing(accessed, SpreadEditor(targets, heads, **options))


@intervention(edits="sinks", controls=(HEAD_CONTROL, KEY_CONTROL), reach="residual", strength=SHARE)
def spread_sink_weight_in_sink_heads(
    accessed: AccessedModel, targets: Targets, **options: Unpack[SinkOptions]
) -> Context:
    """Spread the weight on sink keys evenly over the other visible keys, in sink heads only."""
    return editing(accessed, SpreadEditor(targets, "sinks", **options))


class SpreadEditor(SinkEditor):
    """Notes which keys a query sees before the softmax, and deals the sinks' weight out after it."""

    _visible: Tensor | None = None

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        self._visible = torch.isfinite(scores)
        return scores

    def edit_weights(self, block: int, query_start: int, key_start: int, weights: Tensor) -> Tensor:
        sinks = self.sink_weights(block, query_start, key_start, weights)
        if sinks is None or self._visible is None:
            return weights
        others = self._visible * (1 - sinks)
        taken = self.strength * weights * sinks
        share = taken.sum(-1, keepdim=True) / others.sum(-1, keepdim=True).clamp(min=1)
        return weights - taken + share * others


@intervention(edits="sinks", controls=(KEY_CONTROL,))
def move_sinks(
    accessed: AccessedModel, targets: Targets, *, position: int | None = None, **options: Unpack[Options]
) -> Context:
    """Give the weight on sink keys to another token's key from the first block on: does that token spike?

    position: of that token; default a quarter of the sequence. Only queries that see it give their weight. Control:
    the weight on a random other key is given to it.
    """
    if position is not None and position < 1:
        raise InputError(f"position is {position}; expected 1 or more.")
    return editing(accessed, MoveEditor(targets, position, **options))


class MoveEditor(SinkEditor):
    """Moves the sinks' weight to one key."""

    def __init__(self, targets: Targets, position: int | None, **options: Unpack[Options]) -> None:
        super().__init__(targets, from_start=True, **options)
        self.position = position

    def edit_weights(self, block: int, query_start: int, key_start: int, weights: Tensor) -> Tensor:
        sinks = self.sink_weights(block, query_start, key_start, weights)
        assert self._tokens is not None
        place = max(1, self._tokens.shape[1] // 4) if self.position is None else self.position
        rows, keys = weights.shape[-2:]
        if sinks is None or not key_start <= place < key_start + keys:
            return weights
        seeing = torch.arange(query_start, query_start + rows, device=weights.device)[:, None] >= place
        taken = weights * (sinks * seeing)
        moved = weights - taken
        moved[..., place - key_start] += taken.sum(-1)
        return moved


@intervention(edits="sinks", controls=("random_shrinkage",))
def softmax_off_by_one(
    accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0
) -> Context:
    """Add 1 to every softmax's denominator: exp(s) / (1 + sum exp(s)); nothing is learned for it.

    The mass that goes nowhere is missing from the weights. Control: the same factors, dealt to random queries and
    heads of the block. Miller 2023; Gu et al. 2025 train with it.
    """
    return editing(accessed, OffByOneEditor(control, seed))


class OffByOneEditor:
    """Shrinks each query's weights by Z / (1 + Z), Z the sum of its exponentials."""

    def __init__(self, control: str | None, seed: int) -> None:
        self.control = control
        self._generator = seeded(seed)
        self._factor: Tensor | None = None

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        self._factor = torch.sigmoid(scores.float().logsumexp(-1, keepdim=True))
        return scores

    def edit_weights(self, block: int, query_start: int, key_start: int, weights: Tensor) -> Tensor:
        assert self._factor is not None
        factor = self._factor
        if self.control == "random_shrinkage":
            order = torch.randperm(factor.numel(), generator=self._generator).to(factor.device)
            factor = factor.flatten()[order].view_as(factor)
        return weights * factor


@intervention(edits="tokens", controls=("random_key",))
def isolate_token(
    accessed: AccessedModel, targets: Targets, *, position: int | None = None, **options: Unpack[Options]
) -> Context:
    """Force one token to attend to itself only, up to the step-up block: does it spike and become a sink?

    position: which one; default the middle of the sequence. Control: it attends to one random earlier token only.
    Sun et al. 2026, table 2: the first token spikes because it attends only to itself.
    """
    if position is not None and position < 1:
        raise InputError(f"position is {position}; expected 1 or more: the first token sees only itself already.")
    return editing(accessed, IsolatingEditor(targets, position, **options))


class IsolatingEditor:
    """Masks every key but one for one query, in the blocks up to `edit_block` (all of them without spikes)."""

    def __init__(self, targets: Targets, position: int | None, control: str | None = None, seed: int = 0) -> None:
        self.targets, self.position, self.control = targets, position, control
        self._generator = seeded(seed)
        self.token = 0
        self._keys = torch.zeros(0, dtype=torch.long)

    def edit_batch(self, batch: Batch) -> Batch:
        rows, tokens = batch.ids.shape
        self.token = tokens // 2 if self.position is None else self.position
        if self.token >= tokens:
            raise InputError(f"position is {self.token}, but the sequences have {tokens} tokens.")
        self._keys = torch.full((rows,), self.token)
        if self.control == "random_key":
            self._keys = torch.randint(1, max(2, self.token), (rows,), generator=self._generator)
        return batch

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        rows, keys = scores.shape[-2:]
        late = self.targets.has_spikes and block > self.targets.edit_block
        if late or not query_start <= self.token < query_start + rows:
            return scores
        allowed = torch.arange(key_start, key_start + keys)[None] == self._keys[:, None]
        row = scores[:, :, self.token - query_start]
        scores[:, :, self.token - query_start] = row.masked_fill(~allowed[:, None].to(row.device), float("-inf"))
        return scores
