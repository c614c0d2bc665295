"""Sink tokens, and how far they are the spike tokens: precision, recall and Jaccard against chance. Spec claim 1."""

import numpy as np
import torch
from torch import Tensor

from spikesink.observer import AttentionInputs, AttentionSums, Observer
from spikesink.positions import first_half
from spikesink.records.anatomy import TokenOverlap

DRAWS = 1000


class SinkTokenMeasure(Observer):
    """For every token, in how many heads its importance alpha_k exceeds a threshold. Eq. 27.

    As for a sink head, only keys of the first half of a sequence count. Memory O(sequences x tokens).
    """

    def __init__(self, shape: tuple[int, int], importance_min: float) -> None:
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
            above = self._mass / valid.sum(1)[:, None, None] > self.importance_min
            self.heads[self.batch.rows] += (above & first_half(valid)[:, None]).sum(1).int().cpu()


def overlap(spike: Tensor, sink: Tensor, eligible: Tensor, seed: int = 0) -> TokenOverlap:
    """Overlap of two masks of one shape within the eligible tokens, against random sets of the same sizes.

    The number of common tokens of a random set is hypergeometric.
    """
    spike, sink = spike & eligible, sink & eligible
    n, spikes, sinks, both = (int(mask.sum()) for mask in (eligible, spike, sink, spike & sink))
    if spikes == 0 or sinks == 0:
        unknown = dict.fromkeys(("precision", "recall", "jaccard", "chance_jaccard", "chance_high", "p_value"))
        return TokenOverlap(n=n, spikes=spikes, sinks=sinks, both=both, **unknown)
    drawn = np.random.default_rng(seed).hypergeometric(spikes, n - spikes, sinks, DRAWS)
    chance = drawn / (spikes + sinks - drawn)
    return TokenOverlap(
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
