"""The first layers of a text, computed once: a later pass that changes nothing before some block takes them over."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access.capture import hidden_of, observing, tap_of, with_hidden
from spikesink.access.logits import replaced_forward
from spikesink.access.model import AccessedModel
from spikesink.access.protocol import listeners
from spikesink.observer import AttentionInputs, AttentionSums, Observer

MAX_BYTES = 512 * 2**20
"""Kept at most; layers that no longer fit are computed in every pass."""


@dataclass
class _Layer:
    """What one layer made of one batch, and what observers were shown inside it: (method, arguments)."""

    output: Any
    shown: list[tuple[str, tuple]] = field(default_factory=list)


class _Recorder(Observer):
    """Keeps what is shown inside a layer; the residual after it is its output."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, tuple]] = []

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block % 2:
            self.shown.append(("on_residual", (block, hidden)))

    def on_attention(self, inputs: AttentionInputs) -> None:
        self.shown.append(("on_attention", (inputs,)))

    def on_attention_sums(self, sums: AttentionSums) -> None:
        self.shown.append(("on_attention_sums", (sums,)))


class Prefix:
    """The first layers' states of some batches, and what observers saw there, so that they need not be computed again.

    A batch with other ids, or observers that want what was not kept (writes, rows of attention), are computed as
    without it.
    """

    def __init__(self, accessed: AccessedModel, watched: int, max_bytes: int | None = None) -> None:
        """watched: layers inside which observers' calls are kept as well; behind them only states are."""
        self.accessed, self.watched = accessed, watched
        self.max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        self.bytes = 0
        self._ids: dict[int, Tensor] = {}
        self._kept: dict[tuple[int, int], _Layer] = {}
        """By layer and first sequence of the batch."""

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the passes of this context; nothing may edit the model in it."""
        recorder = _Recorder()
        with observing(self.accessed, [recorder]), ExitStack() as stack:
            for index, layer in enumerate(self.accessed.layers):
                stack.enter_context(replaced_forward(layer.layer, self._recording(index, layer.layer, recorder)))
            yield

    @contextmanager
    def replaying(self, layers: int) -> Iterator[None]:
        """Take the first `layers` layers from what was kept; nothing may edit the model in them."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.accessed.layers[:layers]):
                stack.enter_context(replaced_forward(layer.layer, self._replayed(index, layer.layer)))
            yield

    def _recording(self, index: int, layer: nn.Module, recorder: _Recorder) -> Callable[..., Any]:
        original = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            recorder.shown = []
            output = original(*args, **kwargs)
            batch = tap_of(self.accessed).batch
            assert batch is not None, "a layer outside a pass"
            kept = _Layer(output, recorder.shown if index < self.watched else [])
            size = _bytes(kept)
            before = (index - 1, batch.first_sequence) in self._kept or index == 0
            if before and self.bytes + size <= self.max_bytes:
                self.bytes += size
                self._kept[index, batch.first_sequence] = kept
                self._ids[batch.first_sequence] = batch.ids
            return output

        return forward

    def _replayed(self, index: int, layer: nn.Module) -> Callable[..., Any]:
        original = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            kept = self._of_batch(index)
            if kept is None:
                return original(*args, **kwargs)
            observers = tap_of(self.accessed).observers
            for method, arguments in kept.shown:
                for listen in listeners(observers, method):
                    listen(*arguments)
            # What follows may write into it.
            return with_hidden(kept.output, hidden_of(kept.output).clone())

        return forward

    def _of_batch(self, index: int) -> _Layer | None:
        tap = tap_of(self.accessed)
        if tap.batch is None or (index, tap.batch.first_sequence) not in self._kept:
            return None
        ids = self._ids[tap.batch.first_sequence]
        if tap.batch.padded or ids.shape != tap.batch.ids.shape or not torch.equal(ids, tap.batch.ids):
            return None
        wanted = [*_NOT_KEPT, *(() if index < self.watched else _KEPT)]
        if any(listeners(tap.observers, method) for method in wanted):
            return None
        return self._kept[index, tap.batch.first_sequence]


_KEPT = ("on_residual", "on_attention", "on_attention_sums")
_NOT_KEPT = ("on_write", "on_attention_rows")


def _bytes(layer: _Layer) -> int:
    shown = [part for _, arguments in layer.shown for part in arguments]
    held = [part for whole in shown for part in (vars(whole).values() if hasattr(whole, "block") else [whole])]
    return sum(part.nbytes for part in (hidden_of(layer.output), *held) if isinstance(part, Tensor))
