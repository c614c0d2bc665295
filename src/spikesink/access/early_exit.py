"""A forward pass that ends after a block: what early blocks do costs no more than the early blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from spikesink.access.capture import run
from spikesink.access.model import AccessedModel
from spikesink.access.protocol import Batch


class _ReachedError(Exception):
    """The block has been computed and shown; nothing after it is wanted."""


def run_until(accessed: AccessedModel, batch: Batch, block: int) -> None:
    """A forward pass under the open observers that ends once the residual after `block` (1-based) was shown.

    There are no logits and no end of the batch to observe. In a parallel layer the whole layer is computed.
    """
    if not 1 <= block <= accessed.n_blocks:
        raise ValueError(f"block is {block}; expected 1 to {accessed.n_blocks}")
    with _stopping(accessed, block):
        try:
            run(accessed, batch)
        except _ReachedError:
            return
    raise AssertionError(f"the forward pass went past block {block}")


@contextmanager
def _stopping(accessed: AccessedModel, block: int) -> Iterator[None]:
    layer = accessed.layers[(block - 1) // 2]

    def stop(_module: nn.Module, *_shown: Any) -> None:
        raise _ReachedError

    # Hooks run in the order of their registration: the observers' come first.
    if block % 2 and not layer.parallel:
        handle = layer.ffn.reader.register_forward_pre_hook(stop)
    else:
        handle = layer.layer.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()
