"""Sink tokens, and how far they are the spike tokens: precision, recall and Jaccard against chance. Spec claim 1."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DRAWS = 1000


class SinkTokenMeasure:
    """Observer: for every token, in how many heads its importance alpha_k exceeds a threshold. Eq. 27.

    As for a sink head, only keys of the first half of a sequence count. Memory O(sequences x tokens).
    """

    def __init__(self, shape: tuple[int, int], importance_min: float) -> None:
        self.heads = torch.zeros(shape, dtype=torch.int32)
        """Number of heads, (sequence, token)."""
        self.head_count = 0
        self.importance_min = importance_min
        self._counted: set[int] = set()

    def on_batch(self, batch) -> None:
        self._valid = batch.valid
        self._rows = slice(batch.first_sequence, batch.first_sequence + len(batch.ids))

    def on_attention(self, inputs) -> None:
        batch, heads = inputs.query.shape[:2]
        self._mass = torch.zeros(batch, heads, inputs.key.shape[2], device=inputs.query.device)
        if inputs.block not in self._counted:
            self._counted.add(inputs.block)
            self.head_count += heads

    def on_attention_rows(self, rows) -> None:
        counted = self._valid[:, None, rows.query_start : rows.query_stop, None].to(rows.weights)
        self._mass[..., rows.key_start : rows.key_start + rows.weights.shape[-1]] += (rows.weights * counted).sum(2)
        if rows.query_stop == rows.total_queries:
            valid = self._valid.to(self._mass.device)
            queries = valid.sum(1)
            rank = valid.long().cumsum(1) - 1
            first_half = valid & (rank < (queries // 2).clamp(min=1)[:, None])
            above = self._mass / queries[:, None, None] > self.importance_min
            self.heads[self._rows] += (above & first_half[:, None]).sum(1).int().cpu()


@dataclass(frozen=True)
class Overlap:
    """Two sets of tokens among n: spike tokens and sink tokens. None where a set is empty."""

    n: int
    spikes: int
    sinks: int
    both: int
    precision: float | None
    """Share of spike tokens that are sink tokens."""
    recall: float | None
    """Share of sink tokens that are spike tokens."""
    jaccard: float | None
    chance_jaccard: float | None
    """Mean over random sets of as many sink tokens."""
    chance_high: float | None
    """97.5 % quantile of the same."""
    p_value: float | None
    """Share of random sets that overlap at least as much (plus one), so never below 1 / (DRAWS + 1)."""


def overlap(spike: Tensor, sink: Tensor, eligible: Tensor, seed: int = 0) -> Overlap:
    """Overlap of two masks of one shape within the eligible tokens, against random sets of the same sizes.

    The number of common tokens of a random set is hypergeometric.
    """
    spike, sink = spike & eligible, sink & eligible
    n, spikes, sinks, both = (int(mask.sum()) for mask in (eligible, spike, sink, spike & sink))
    if spikes == 0 or sinks == 0:
        return Overlap(n, spikes, sinks, both, None, None, None, None, None, None)
    drawn = np.random.default_rng(seed).hypergeometric(spikes, n - spikes, sinks, DRAWS)
    chance = drawn / (spikes + sinks - drawn)
    return Overlap(
        n=n,
        spikes=spikes,
        sinks=sinks,
        both=both,
        precision=both / spikes,
        recall=both / sinks,
        jaccard=both / (spikes + sinks - both),
        chance_jaccard=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.975)),
        p_value=float((1 + (drawn >= both).sum()) / (DRAWS + 1)),
    )
