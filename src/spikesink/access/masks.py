"""Attention masks as compact descriptions, rebuilt for a few query rows at a time.

transformers asks the registered mask function for a mask once per forward and mask kind; a ready-made mask is
batch x T x T (1 GB at 32k). We keep the question instead and answer it per row block with transformers' own
`sdpa_mask`, so padding, windows, chunks and packed sequences mean exactly what they mean to the model.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

ROW_STEP = 256


@dataclass
class MaskPlan:
    """One forward's mask of one kind (full, sliding, chunked): who may see whom, answered per row block."""

    batch_size: int
    q_length: int
    kv_length: int
    arguments: dict[str, Any]
    plain_causal: bool
    device: torch.device
    _counts: Tensor | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What was made of this plan under a name before, made now if it was not."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def key_range(self, start: int, stop: int) -> tuple[int, int]:
        """First and one-past-last key that any query in [start, stop) may see."""
        if self.plain_causal:
            return 0, stop
        return self.kept(("keys", start, stop), lambda: self._keys(start, stop))

    def _keys(self, start: int, stop: int) -> tuple[int, int]:
        columns = self._build(start, stop, 0, self.kv_length).flatten(0, 2).any(0).nonzero()
        return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)

    def rows(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """Visibility (batch or 1, 1, stop - start, high - low) of keys [low, high) to queries [start, stop)."""
        if self.plain_causal:
            queries = torch.arange(start, stop, device=self.device)
            keys = torch.arange(low, high, device=self.device)
            return (keys[None, :] <= queries[:, None])[None, None]
        return self._build(start, stop, low, high)

    def limits(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """The most that a score may be: infinity where a query in [start, stop) sees the key, else minus infinity.

        float32 (batch or 1, 1, stop - start, key), of keys [low, high); in the plain causal case only of [start, stop),
        since every key before is seen.
        """
        if self.plain_causal:
            size = stop - start
            return self.kept(("limits", size), lambda: limits_of(self.rows(0, size, 0, size)))
        return limits_of(self.rows(start, stop, low, high))

    def queries_per_key(self, valid: Tensor) -> Tensor:
        """Number of valid queries that can see each key, (batch or 1, key)."""
        if self._counts is None:
            if self.plain_causal and bool(valid.all()):
                self._counts = torch.arange(self.q_length, 0, -1, device=self.device)[None]
            else:
                counts = torch.zeros(self.batch_size, self.kv_length, dtype=torch.long, device=self.device)
                for start in range(0, self.q_length, ROW_STEP):
                    stop = min(start + ROW_STEP, self.q_length)
                    low, high = self.key_range(start, stop)
                    seen = self.rows(start, stop, low, high) & valid[:, None, start:stop, None]
                    counts[:, low:high] += seen.sum((1, 2))
                self._counts = counts
        return self._counts

    def _build(self, start: int, stop: int, low: int, high: int) -> Tensor:
        options = dict(self.arguments)
        visible = sdpa_mask(
            batch_size=self.batch_size,
            q_length=stop - start,
            kv_length=high - low,
            q_offset=options.pop("q_offset") + start,
            kv_offset=options.pop("kv_offset") + low,
            allow_is_causal_skip=False,
            **options,
        )
        assert visible is not None, "sdpa_mask skipped although told not to"
        return visible


def limits_of(visible: Tensor) -> Tensor:
    """Infinity where a key is visible, minus infinity elsewhere."""
    return torch.where(visible, torch.inf, -torch.inf)


def hide(scores: Tensor, limits: Tensor) -> None:
    """Set the scores (batch, ..., row, key) of invisible keys to minus infinity in place; see `MaskPlan.limits`.

    The limits are of the last keys. A mask of bools that is spread over heads takes torch 6 to 25 times as long.
    """
    limits = limits.reshape(len(limits), *[1] * (scores.dim() - 3), *limits.shape[-2:])
    scores[..., -limits.shape[-1] :].clamp_(max=limits.to(scores.dtype))


def plan_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> MaskPlan:
    """The mask function registered with transformers' AttentionMaskInterface: returns a plan, not a mask."""
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    plain = (
        mask_function is causal_mask_function
        and attention_mask is None
        and q_length == kv_length
        and (q_offset, kv_offset) == (0, 0)
    )
    return MaskPlan(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        plain_causal=plain,
        device=torch.device(device),
        arguments={
            "q_offset": q_offset,
            "kv_offset": kv_offset,
            "mask_function": mask_function,
            "attention_mask": attention_mask,
            "use_vmap": options.get("use_vmap", False),
            "device": device,
        },
    )


def plain_plan(query: Tensor) -> MaskPlan:
    """The plan of a model that passes no mask at all: plain causal attention."""
    length = query.shape[2]
    return plan_mask(query.shape[0], length, length, device=query.device)
