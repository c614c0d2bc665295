"""What capture tells an observer, and what an editor may change.

Both are structural: a class satisfies them by having the methods it needs, without importing this module, and
capture calls only the methods that exist. Blocks are numbered from 1 as in the paper: odd = attention, even = FFN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """The default: say nothing."""


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
    def visible(self) -> Tensor:
        """Which keys each query may see, (batch or 1, 1, row, key) bool; built when asked for."""
        return self.visible_rows()


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


class Observer(Protocol):
    """Everything an observer may listen to; each method is optional."""

    def on_batch(self, batch: Batch) -> None: ...

    def on_residual(self, block: int, hidden: Tensor) -> None:
        """Residual stream after `block`, (batch, token, channel); block 0 is the embedding H[1]."""

    def on_write(self, block: int, write: Tensor) -> None:
        """What `block` adds to the residual stream: after an output norm and any multiplier."""

    def on_attention(self, inputs: AttentionInputs) -> None: ...

    def on_attention_rows(self, rows: AttentionRows) -> None: ...

    def on_logits(self, logits: Tensor) -> None: ...

    def on_batch_end(self) -> None: ...


class Editor(Protocol):
    """Everything an intervention may change; each method is optional and returns the new tensor."""

    def edit_batch(self, batch: Batch) -> Batch:
        """The token ids that go in; ones that are not to be predicted are left out of `scored`."""
        ...

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor: ...

    def edit_write(self, block: int, write: Tensor) -> Tensor: ...

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        """Masked logits (batch, head, row, key) before the softmax."""
        ...

    def edit_weights(self, block: int, query_start: int, key_start: int, weights: Tensor) -> Tensor: ...

    def edit_keys(self, block: int, key: Tensor) -> Tensor:
        """Post-RoPE keys (batch, kv_head, token, d_head)."""
        ...

    def edit_values(self, block: int, value: Tensor) -> Tensor:
        """Values (batch, kv_head, token, d_head)."""
        ...

    def edit_output(self, block: int, rows: "AttentionRows") -> Tensor:
        """Attention output of these rows (batch, head, row, d_head), before the output projection and any gate."""
        ...


def listeners(observers: Sequence[object], method: str) -> list:
    """The bound `method` of every observer (or editor) that has it."""
    return [getattr(observer, method) for observer in observers if hasattr(observer, method)]


def full_batch(ids: Tensor, first_sequence: int = 0) -> Batch:
    """A batch without padding."""
    return Batch(ids=ids, valid=torch.ones_like(ids, dtype=torch.bool), first_sequence=first_sequence)
