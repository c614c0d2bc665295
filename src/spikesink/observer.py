"""The base of observers of a forward pass, and what they are given. Blocks count from 1: odd attention, even FFN."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Say nothing."""


def notebook_progress(stage: str, done: int, total: int) -> None:
    """What the calls of a user do by default: a bar for each stage in a notebook, nothing elsewhere."""
    if "ipykernel" not in sys.modules:
        return
    with warnings.catch_warnings():
        # A notebook without widgets gets bars of characters, which needs no word.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    bar = _BARS.pop(stage, None) or tqdm(desc=stage, leave=False)
    bar.total, bar.n = total, done
    bar.refresh()
    if done < total:
        _BARS[stage] = bar
    else:
        bar.close()


_BARS: dict[str, Any] = {}
"""Bars that are not full, by stage."""


@dataclass(frozen=True)
class Batch:
    """Token ids that go through the model together. Shapes: ids, valid (batch, token); valid False = padding."""

    ids: Tensor
    valid: Tensor
    first_sequence: int = 0
    """Index of row 0 among all sequences of the run."""
    scored: Tensor | None = None
    """Which tokens count as targets of the loss, (batch, token) bool; None = all. Set by an edit of the input."""

    @property
    def padded(self) -> bool:
        return not bool(self.valid.all())

    @property
    def rows(self) -> slice:
        """Where these sequences stand among all of the run."""
        return slice(self.first_sequence, self.first_sequence + len(self.ids))


def full_batch(ids: Tensor, first_sequence: int = 0) -> Batch:
    """A batch without padding."""
    return Batch(ids=ids, valid=torch.ones_like(ids, dtype=torch.bool), first_sequence=first_sequence)


@dataclass(frozen=True)
class AttentionRows:
    """Attention weights of some consecutive queries, never of all: memory O(rows x keys).

    `weights[..., i, j]` belongs to query `query_start + i` and key `key_start + j`; keys outside the range are
    invisible to every query here. Virtual keys (learned sinks, key-value bias) are not among the keys.

    Shapes: weights (batch, head, row, key) float32; a row sums to 1 together with `virtual_mass`
    (batch, head, row), which is None where there are no virtual keys; value (batch, kv_head, key, d_head);
    output (batch, head, row, d_head), before the output projection and any gate.
    """

    block: int
    query_start: int
    key_start: int
    query_stop: int
    total_queries: int
    weights: Tensor
    virtual_mass: Tensor | None
    value: Tensor
    output: Tensor
    visible_rows: Callable[[], Tensor]

    @property
    def queries(self) -> slice:
        """Positions of the queries."""
        return slice(self.query_start, self.query_stop)

    @property
    def keys(self) -> slice:
        """Positions of the keys."""
        return slice(self.key_start, self.key_start + self.weights.shape[-1])

    @property
    def visible(self) -> Tensor:
        """Which keys each query may see, (batch or 1, 1, row, key) bool; built when asked for."""
        return self.visible_rows()

    @property
    def seen(self) -> Tensor:
        """The same for every sequence, (batch, row, key)."""
        return self.visible.expand(len(self.weights), 1, *self.weights.shape[2:])[:, 0]


@dataclass(frozen=True)
class AttentionSums:
    """Attention weights of consecutive queries, summed over them; padding queries are not counted.

    Shapes: mass (batch, head, key) of the keys from `key_start` on; `virtual_mass` (batch, head), None where there are
    no virtual keys. The queries of one call end at a power of two, or where a block of rows or the sequence ends.
    """

    block: int
    query_start: int
    query_stop: int
    key_start: int
    total_queries: int
    mass: Tensor
    virtual_mass: Tensor | None

    @property
    def keys(self) -> slice:
        """Positions of the keys."""
        return slice(self.key_start, self.key_start + self.mass.shape[-1])


@dataclass(frozen=True)
class AttentionInputs:
    """What enters one attention: post-RoPE query (batch, head, token, d_head), key and value per KV head.

    Virtual keys are not among the keys and values.
    """

    block: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    softcap: float | None
    visible_counts: Callable[[], Tensor]

    @property
    def queries_per_key(self) -> Tensor:
        """Number of valid queries that can see each key, (batch or 1, key)."""
        return self.visible_counts()


class Observer:
    """Base of everything that listens to a forward pass: override what it needs, the rest is not computed for it.

    Any object with some of these methods may listen; this base keeps the batch and types the arguments.
    """

    batch: Batch

    def on_batch(self, batch: Batch) -> None:
        """Before the forward pass. An override calls this one."""
        self.batch = batch

    def on_residual(self, block: int, hidden: Tensor) -> None:
        """Residual stream after `block`, (batch, token, channel); block 0 is the embedding H[1]."""

    def on_write(self, block: int, write: Tensor) -> None:
        """What `block` adds to the residual stream: after an output norm and any multiplier."""

    def on_attention(self, inputs: AttentionInputs) -> None:
        """Before the rows of one attention."""

    def on_attention_rows(self, rows: AttentionRows) -> None:
        """Row blocks of one attention, in order."""

    def on_attention_sums(self, sums: AttentionSums) -> None:
        """Sums over queries of one attention, in order; far cheaper than rows where nobody asks for those."""

    def on_logits(self, logits: Tensor, start: int) -> None:
        """Logits (batch, token, vocabulary) of consecutive positions from `start` on, in order."""

    def on_logit_columns(self, logits: Tensor, start: int) -> None:
        """Logits (batch, token, column) of all positions, for the tokens of the vocabulary from `start` on, in order.

        Shown instead of `on_logits` where every observer of that has this too and the model's code allows it: the
        faster product on a CPU. An observer that has this needs `on_logits` as well.
        """

    def on_batch_end(self) -> None:
        """After the forward pass."""
