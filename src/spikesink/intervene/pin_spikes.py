"""Spike tokens held at one constant per block, and optionally not computed at all meanwhile."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, AttentionInputs, Batch, Skipped, editing, full_batch, observing, run
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene.base import Context, Found, intervention, require_residual
from spikesink.intervene.states import CONTROLS, StateEditor


@intervention("spikes", controls=CONTROLS)
def pin_spikes(
    accessed: AccessedModel,
    found: Found,
    *,
    skip: bool = False,
    max_tokens: int = 1024,
    control: str | None = None,
    seed: int = 0,
) -> Context:
    """Hold spike tokens at per-block constants from the step-up block to the first step-down block.

    skip: do not compute the pinned tokens in the layers between; other tokens attend to their ready-made keys and
    values, made for `max_tokens` positions. The logits are the same. Where no block takes the spikes away, they are
    held to the end.
    """
    require_residual(accessed, found.edit_block)
    until = found.step_down_block or accessed.n_blocks + 1
    if skip and accessed.hybrid:
        raise DoesNotApplyError("what mixes tokens without attention (a recurrence, a convolution) needs every token")
    if not skip:
        return editing(accessed, PinEditor(accessed, found, until, control, seed))
    return editing(accessed, SkippingEditor(accessed, found, until, control, seed, max_tokens))


class PinEditor(StateEditor):
    """A state editor that holds its tokens wherever a residual can be set."""

    def __init__(self, accessed: AccessedModel, found: Found, until: int, control: str | None, seed: int) -> None:
        super().__init__(found, until, control, seed)
        if accessed.parallel or accessed.post_norm:
            self.constants = {block: state for block, state in self.constants.items() if block % 2 == 0}


class SkippingEditor(PinEditor):
    """Leaves pinned tokens out of the layers that lie wholly between the step blocks.

    Rows of a batch must keep equally many tokens, so each leaves out as many as the row with the fewest spike tokens
    has; the others are pinned but computed.
    """

    def __init__(
        self, accessed: AccessedModel, found: Found, until: int, control: str | None, seed: int, max_tokens: int
    ) -> None:
        super().__init__(accessed, found, until, control, seed)
        self.max_tokens = min(max_tokens, accessed.max_positions or max_tokens)
        self._keys = _constant_keys(accessed, self.constants, found.edit_block, self.max_tokens)
        self._kept: Tensor | None = None

    def edit_batch(self, batch: Batch) -> Batch:
        if batch.ids.shape[1] > self.max_tokens:
            raise InputError(
                f"Sequences of {batch.ids.shape[1]} tokens, but pinned keys were made for {self.max_tokens}; pass "
                "max_tokens."
            )
        if not bool(batch.valid[:, 0].all()):
            raise InputError("Pinned keys belong to positions from 0 on; pad on the right, or pin without skip.")
        return batch

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        hidden = super().edit_residual(block, hidden)
        if block == self.found.edit_block:
            assert self.tokens is not None
            fewest = int(self.tokens.sum(1).min())
            left_out = self.tokens & (self.tokens.cumsum(1) <= fewest)
            kept = (~left_out).nonzero()[:, 1].view(len(left_out), -1)
            self._kept = kept if 0 < kept.shape[1] < hidden.shape[1] else None
        return hidden

    def skipped(self, block: int) -> Skipped | None:
        inside = self.found.edit_block < block and block + 1 < self.until
        if not inside or self._kept is None:
            return None
        key, value = self._keys[block]
        length = self._kept.shape[1] + self.tokens_left_out
        return Skipped(kept=self._kept, key=key[:, :length], value=value[:, :length])

    @property
    def tokens_left_out(self) -> int:
        """Tokens per sequence that the last forward did not compute in the layers between."""
        return 0 if self._kept is None or self.tokens is None else self.tokens.shape[1] - self._kept.shape[1]

    def chosen(self, hidden: Tensor) -> Tensor:
        tokens = super().chosen(hidden)
        if self._kept is None or hidden.shape[1] == tokens.shape[1]:
            return tokens
        return tokens.gather(1, self._kept)


class _AllPinned:
    """Sets every token to the constants, and keeps the keys and values that come of them."""

    def __init__(self, constants: dict[int, Tensor]) -> None:
        self.constants = constants
        self.keys: dict[int, tuple[Tensor, Tensor]] = {}

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        return self.constants[block].to(hidden).expand_as(hidden) if block in self.constants else hidden

    def on_attention(self, inputs: AttentionInputs) -> None:
        if inputs.block - 1 in self.constants:
            self.keys[inputs.block] = (inputs.key[0].clone(), inputs.value[0].clone())


def _constant_keys(
    accessed: AccessedModel, constants: dict[int, Tensor], edit_block: int, tokens: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """By attention block: the constants' post-RoPE key and value at every position, each (kv_head, token, d_head).

    One forward pass of a sequence in which every token is pinned.
    """
    pinned = _AllPinned(constants)
    with editing(accessed, pinned), observing(accessed, [pinned]):
        run(accessed, full_batch(torch.zeros(1, tokens, dtype=torch.long)))
    return {block: keys for block, keys in pinned.keys.items() if block > edit_block}
