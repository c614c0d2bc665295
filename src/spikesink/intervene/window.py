"""A streaming window: every token sees the first few tokens and the latest ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.access.masks import hide, limits_of
from spikesink.access.rotary import Rotary, unrotating
from spikesink.access.sink_cache import check_window
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.base import Context
from spikesink.observer import AttentionInputs
from spikesink.positions import placed

GROWING = {"dynamic", "longrope"}
"""Kinds of RoPE whose frequencies depend on how many tokens there are."""


def streaming_window(accessed: AccessedModel, window: int, keep: int, first: int = 0) -> Context:
    """Let every token see what a KV cache of `window` tokens holds: `keep` early ones and the latest, itself included.

    first: position of the first kept token; 0 as in StreamingLLM (Xiao et al. 2023), another one as a control.
    Positions stay the true ones. The same logits as streaming token by token with `access.sink_cache`.
    """
    check_window(window, keep)
    return editing(accessed, WindowEditor(window, keep, first))


@contextmanager
def reassigned_window(accessed: AccessedModel, window: int, keep: int, first: int = 0) -> Iterator[None]:
    """The same with positions counted in the cache, as StreamingLLM deploys it: they never exceed the window's size.

    The latest tokens keep their distances from one another; kept ones stay at most `window` tokens away. Raises
    DoesNotApplyError where positions are not rotations, or the rotation depends on the length.
    """
    check_window(window, keep)
    rope = getattr(accessed.config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(own.get("rope_type") for own in rope.values() if isinstance(own, dict))}
    if growing := kinds & GROWING:
        raise DoesNotApplyError(f"the rotation ({growing.pop()}) changes with the number of tokens")
    with unrotating(accessed) as rotary:
        if not rotary.undo:
            raise DoesNotApplyError("positions are no rotation of queries and keys, so a cache cannot reassign them")
        with editing(accessed, ReassigningEditor(window, keep, first, rotary)):
            yield


class WindowEditor:
    """Masks keys that the cache no longer holds."""

    def __init__(self, window: int, keep: int, first: int) -> None:
        self.window, self.keep, self.first = window, keep, first

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        rows, keys = scores.shape[-2:]
        query = torch.arange(query_start, query_start + rows, device=scores.device)[:, None]
        key = torch.arange(key_start, key_start + keys, device=scores.device)[None]
        kept = (key >= self.first) & (key < self.first + self.keep)
        # Nothing is dropped before the cache is full.
        held = kept | (query - key < self.window - self.keep) | (query < self.window)
        hide(scores, limits_of(held[None, None]))
        return scores


class ReassigningEditor(WindowEditor):
    """Masks, and scores kept keys as at their places in the cache, seen from its last one."""

    def __init__(self, window: int, keep: int, first: int, rotary: Rotary) -> None:
        super().__init__(window, keep, first)
        self.rotary = rotary
        self._inputs: AttentionInputs | None = None

    def on_attention(self, inputs: AttentionInputs) -> None:
        self._inputs = inputs

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        scores = super().edit_scores(block, query_start, key_start, scores)
        stop = query_start + scores.shape[-2]
        start = max(query_start, self.window)
        if self.keep and start < stop and block in self.rotary.current:
            rows = scores[:, :, start - query_start :]
            kept = rows[..., max(0, self.first - key_start) : max(0, self.first - key_start + self.keep)]
            if kept.shape[-1] < self.keep or bool(kept.isinf().any()):
                raise DoesNotApplyError(f"block {placed(block)} has a window of its own, which hides kept tokens")
            kept.copy_(self._kept_scores(block, start, stop))
        return scores

    def _kept_scores(self, block: int, start: int, stop: int) -> Tensor:
        """Scores (batch, head, query, kept key) of the queries [start, stop)."""
        inputs = self._inputs
        assert inputs is not None
        rows = torch.arange(start, stop, device=inputs.query.device)
        columns = torch.arange(self.first, self.first + self.keep, device=inputs.key.device)
        last = torch.full_like(rows, self.window - 1)
        query = self.rotary.moved(block, inputs.query[:, :, rows], rows, last)
        key = self.rotary.moved(block, inputs.key[:, :, columns], columns, columns - self.first)
        scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT * inputs.scaling
        return scores if inputs.softcap is None else inputs.softcap * torch.tanh(scores / inputs.softcap)
