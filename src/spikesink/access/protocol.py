"""What an editor may change, and who is told what.

Observers and editors are structural: a class satisfies them by having the methods it needs, and capture calls only
those. Blocks are numbered from 1 as in the paper: odd = attention, even = FFN.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from spikesink.errors import NumericError
from spikesink.observer import AttentionInputs, AttentionRows, Batch, Observer


class Editor(Protocol):
    """Everything an intervention may change; each method is optional and returns the new tensor."""

    def edit_batch(self, batch: Batch) -> Batch:
        """The token ids that go in; ones that are not to be predicted are left out of `scored`."""
        ...

    def on_attention(self, inputs: AttentionInputs) -> None:
        """Told, before it edits scores, the block's queries and keys, as observers are."""
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


_EMPTY = {method for name, method in vars(Observer).items() if name.startswith("on_") and name != "on_batch"}


def listeners(observers: Sequence[object], method: str) -> list:
    """The bound `method` of every observer (or editor) that has it; what `Observer` leaves empty does not count."""
    methods = [getattr(observer, method, None) for observer in observers]
    return [bound for bound in methods if bound is not None and getattr(bound, "__func__", None) not in _EMPTY]


def check_finite(what: str, tensor: Tensor) -> None:
    """Raise NumericError unless every value is a finite number: none is counted as zero or as the largest there is."""
    # A sum is finite unless an element is not (or the sum itself overflows, then the elements decide).
    if not bool(torch.isfinite(tensor.float().sum())) and not bool(torch.isfinite(tensor).all()):
        raise not_finite(what, tensor)


def not_finite(what: str, tensor: Tensor) -> NumericError:
    """The error that says whether values are beyond the range of the dtype, or not numbers."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if bool(torch.isnan(tensor).any()):
        wrong = f"values that are not numbers, computed in {dtype}"
    else:
        count = int(torch.isinf(tensor).sum())
        most = torch.finfo(tensor.dtype).max
        wrong = f"beyond the range of {dtype}: {count} of {tensor.numel():,} values exceed {most:,.6g}"
    wider = "float32" if tensor.dtype in (torch.float16, torch.bfloat16) else "float64"
    return NumericError(
        f"{what}: {wrong}. Load the model with --dtype {wider}; if that does not help, check the checkpoint."
    )
