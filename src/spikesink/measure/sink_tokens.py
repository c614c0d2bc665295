"""Which tokens are attention sinks, and in how many heads. Spec section 3; eq. 27."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikesink.observer import AttentionInputs, AttentionSums, Observer
from spikesink.positions import first_half

HEADS_SHARE_MIN = 0.01
"""A sink token is one in at least this share of all heads, so that one odd head does not make one."""


@dataclass(frozen=True)
class SinkTokens:
    """mask and heads (sequence, token): sink tokens, and in how many heads each one's importance is that of a sink."""

    mask: Tensor
    heads: Tensor
    importance_min: float
    """The least of any sequence: a short one, whose first key uniform attention gives much, needs more."""
    heads_min: int


class SinkTokenMeasure(Observer):
    """For every token, in how many heads its importance alpha_k exceeds a threshold. Eq. 27.

    As for a sink head, only keys of the first half of a sequence count. Memory O(sequences x tokens).
    """

    def __init__(self, shape: tuple[int, int], importance_min: Tensor) -> None:
        """importance_min: the threshold of every sequence, (sequence,)."""
        self.heads = torch.zeros(shape, dtype=torch.int32)
        """Number of heads, (sequence, token)."""
        self.head_count = 0
        self.importance_min = importance_min
        self._counted: set[int] = set()

    def on_attention(self, inputs: AttentionInputs) -> None:
        batch, heads = inputs.query.shape[:2]
        self._mass = torch.zeros(batch, heads, inputs.key.shape[2], device=inputs.query.device)
        if inputs.block not in self._counted:
            self._counted.add(inputs.block)
            self.head_count += heads

    def on_attention_sums(self, sums: AttentionSums) -> None:
        self._mass[..., sums.keys] += sums.mass
        if sums.query_stop == sums.total_queries:
            valid = self.batch.valid.to(self._mass.device)
            least = self.importance_min[self.batch.rows].to(self._mass)
            above = self._mass / valid.sum(1)[:, None, None] > least[:, None, None]
            self.heads[self.batch.rows] += (above & first_half(valid)[:, None]).sum(1).int().cpu()

    def compute(self) -> SinkTokens:
        """The sink tokens by HEADS_SHARE_MIN."""
        heads_min = max(1, math.ceil(HEADS_SHARE_MIN * self.head_count))
        return SinkTokens(self.heads >= heads_min, self.heads, float(self.importance_min.min()), heads_min)
