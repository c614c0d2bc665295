"""Forward passes that are watched or edited: context-managed hooks, gone after the `with`, also after an exception.

Observers and editors of one model share one set of hooks and one attention backend, so contexts nest: an intervention
may be open while a scan measures. The residual stream is read at norm inputs and layer outputs, never from
`hidden_states`, whose last entry is already normed.
"""

import ctypes
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from spikesink.access import attention
from spikesink.access.blocks import BlockSites, LayerSites
from spikesink.access.logits import show, show_in_pieces
from spikesink.access.model import AccessedModel
from spikesink.access.protocol import check_finite, listeners
from spikesink.observer import Batch
from spikesink.positions import layer_of, ranks


@dataclass
class Tap:
    """The observers and editors attached to one model."""

    observers: list[object] = field(default_factory=list)
    editors: list[object] = field(default_factory=list)
    batch: Batch | None = None


LAYERS_PER_RELEASE = 10
"""Freed memory goes back that often. Without it up to 690 MB were held at 2,048 tokens of SmolLM2; 1 % of the time."""

_taps: "weakref.WeakKeyDictionary[nn.Module, Tap]" = weakref.WeakKeyDictionary()


def tap_of(accessed: AccessedModel) -> Tap:
    """The observers and editors attached to the model now; empty where there are none."""
    return _taps.get(accessed.model) or Tap()


@contextmanager
def observing(accessed: AccessedModel, observers: Sequence[object]) -> Iterator[None]:
    """Show every forward of the model to these observers while the context is open."""
    with _attached(accessed, list(observers), "observers"):
        yield


@contextmanager
def editing(accessed: AccessedModel, editor: object) -> Iterator[None]:
    """Let this editor change the model's residual stream, writes or attention while the context is open."""
    with _attached(accessed, [editor], "editors"):
        yield


def run(accessed: AccessedModel, batch: Batch) -> Tensor:
    """One forward pass without gradient; returns the logits (batch, token, vocabulary)."""
    with _passing(accessed, batch) as (tap, inputs):
        logits = accessed.model(**inputs, use_cache=False).logits
        show(tap.observers, logits, 0)
    return logits


def watch(accessed: AccessedModel, batch: Batch) -> None:
    """As `run`, for the open observers alone: they see the logits in pieces, so that all of them never exist at once;
    if none listens, they are not made."""
    with _passing(accessed, batch) as (tap, inputs):
        show_in_pieces(accessed, inputs, tap.observers)


@contextmanager
def _passing(accessed: AccessedModel, batch: Batch) -> Iterator[tuple[Tap, dict[str, Tensor]]]:
    """The batch as edited, announced and, at the end, over."""
    tap = tap_of(accessed)
    device = accessed.device
    batch = Batch(batch.ids.to(device), batch.valid.to(device), batch.first_sequence, batch.scored)
    for edit in listeners(tap.editors, "edit_batch"):
        batch = edit(batch)
    tap.batch = batch
    for listen in listeners(tap.observers, "on_batch"):
        listen(batch)
    with without_gradient(accessed.model):
        yield tap, inputs_of(batch, device)
    for listen in listeners(tap.observers, "on_batch_end"):
        listen()
    tap.batch = None


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
    layer = accessed.layers[layer_of(block)]

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


def without_gradient(model: nn.Module) -> AbstractContextManager[None]:
    """No gradients; for a sharded model without inference mode, whose buffers a later training step could not use."""
    return torch.no_grad() if isinstance(model, FSDPModule) else torch.inference_mode()


def inputs_of(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What the model is given: the ids and, of a padded batch, the mask; where padding is on the left, also positions
    that start at the first real token."""
    inputs = {"input_ids": batch.ids.to(device)}
    if batch.padded:
        valid = batch.valid.to(device)
        inputs["attention_mask"] = valid.long()
        if not bool(valid[:, 0].all()):
            inputs["position_ids"] = ranks(valid).clamp(min=0)
    return inputs


@contextmanager
def _attached(accessed: AccessedModel, members: list[object], kind: str) -> Iterator[None]:
    model = accessed.model
    tap = _taps.get(model)
    if tap is not None:
        getattr(tap, kind).extend(members)
        try:
            yield
        finally:
            _remove(getattr(tap, kind), members)
        return
    tap = Tap()
    getattr(tap, kind).extend(members)
    _taps[model] = tap
    try:
        with hooked(accessed, tap), _backend(accessed, tap), _evaluating(model):
            yield
    finally:
        del _taps[model]


def _remove(attached: list[object], members: list[object]) -> None:
    for member in members:
        index = next(i for i, other in enumerate(attached) if other is member)
        del attached[index]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _backend(accessed: AccessedModel, tap: Tap) -> Iterator[None]:
    """Switch the model to the measuring attention and back."""
    model = accessed.model
    modules = {id(module): sites.block for sites in accessed.blocks() for module in sites.inner.modules()}

    def handle(module: nn.Module, call: attention.Call) -> Tensor:
        valid = tap.batch.valid if tap.batch is not None and tap.batch.padded else None
        return attention.attend(call, tap.observers, tap.editors, valid)

    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    attention.serve(modules, handle)
    try:
        model.set_attn_implementation(attention.BACKEND)
        yield
    finally:
        attention.stop_serving(modules)
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def hooked(accessed: AccessedModel, tap: Tap) -> Iterator[None]:
    """The hooks of every layer; layers that were compiled one by one run as they are written meanwhile."""
    compiled = any(module._compiled_call_impl is not None for module in accessed.model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield from _hooked(accessed, tap)


def _hooked(accessed: AccessedModel, tap: Tap) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for layer in accessed.layers:
            handles += _LayerHooks(layer, tap).register()
        if accessed.device.type == "cpu":
            # After the last layer, and after every LAYERS_PER_RELEASE before it.
            handles += [
                layer.layer.register_forward_hook(lambda *_: release_freed())
                for layer in accessed.layers[::-LAYERS_PER_RELEASE]
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


class _LayerHooks:
    """The hooks of one layer: its input, the residual between its blocks, both writes, its output."""

    def __init__(self, sites: LayerSites, tap: Tap) -> None:
        self.sites = sites
        self.tap = tap
        self.entering: Tensor | None = None
        self.parts: list[Tensor] = []
        """Of a write that several modules make: what the first ones made."""

    def register(self) -> list[Any]:
        sites = self.sites
        handles = [
            sites.layer.register_forward_pre_hook(self.enter, with_kwargs=True),
            *(
                writer.register_forward_hook(self.written(block, multiplier))
                for block in (sites.attention, sites.ffn)
                for writer, multiplier in block.writers
            ),
            sites.layer.register_forward_hook(self.leave),
        ]
        if sites.parallel:
            handles.append(sites.ffn.inner.register_forward_pre_hook(self.read, with_kwargs=True))
        else:
            handles.append(sites.ffn.reader.register_forward_pre_hook(self.between, with_kwargs=True))
        return handles

    def enter(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        hidden = _first_input(args, kwargs)
        self.parts = []
        if self.sites.attention.block == 1:
            hidden = self.edited(0, hidden)
            self.show("on_residual", 0, hidden)
        self.entering = hidden
        return _with_first_input(args, kwargs, hidden)

    def between(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = _first_input(args, kwargs)
        self.show("on_residual", self.sites.attention.block, self.shaped(hidden))

    def read(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        for listen in listeners(self.tap.observers, "on_read"):
            listen(self.sites.ffn.block, self.shaped(_first_input(args, kwargs)))

    def leave(self, _module: nn.Module, _args: tuple, output: Any) -> Any:
        block = self.sites.ffn.block
        hidden = self.edited(block, hidden_of(output))
        self.show("on_residual", block, hidden)
        self.entering = None
        return with_hidden(output, hidden)

    def written(self, sites: BlockSites, multiplier: float) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            part = self.shaped(hidden_of(output))
            self.parts.append(part * multiplier if multiplier != 1 else part)
            if len(self.parts) < len(sites.writers):
                return None
            (*earlier, write), self.parts = self.parts, []
            for other in earlier:
                write = write + other
            for edit in listeners(self.tap.editors, "edit_write"):
                write = edit(sites.block, write)
            if sites.kind != "ffn" and not (self.sites.parallel or self.sites.post_norm):
                write = self.edited_through_write(sites.block, write)
            self.show("on_write", sites.block, write)
            if not self.tap.editors:
                return None
            # The last of several writers answers for an edit of their sum.
            for other in earlier:
                write = write - other
            return with_hidden(output, (write / multiplier).reshape(hidden_of(output).shape))

        return hook

    def edited_through_write(self, block: int, write: Tensor) -> Tensor:
        """An edit of the residual after an attention block, expressed as the write that produces it."""
        assert self.entering is not None, "write hook outside its layer"
        for edit in listeners(self.tap.editors, "edit_residual"):
            before = self.entering + write
            after = edit(block, before)
            if after is not before:
                write = after - self.entering
        return write

    def edited(self, block: int, hidden: Tensor) -> Tensor:
        for edit in listeners(self.tap.editors, "edit_residual"):
            hidden = edit(block, hidden)
        return hidden

    def shaped(self, hidden: Tensor) -> Tensor:
        """(batch, token, channel), also where a family flattens tokens before its FFN (OPT)."""
        assert self.entering is not None, "hook outside its layer"
        return hidden.reshape(self.entering.shape)

    def show(self, method: str, block: int, tensor: Tensor) -> None:
        listening = listeners(self.tap.observers, method)
        if listening:
            sites = self.sites.attention if block % 2 else self.sites.ffn
            what = f"block {sites.place}" if block else "the embedding"
            check_finite(f"The residual after {what}" if method == "on_residual" else f"What {what} writes", tensor)
        for listen in listening:
            listen(block, tensor)


def hidden_of(output: Any) -> Tensor:
    """The hidden state that a layer, block or norm returns, alone or before others."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, tensor: Tensor) -> Any:
    """The output of a layer, block or norm with its hidden state replaced."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def _first_input(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _with_first_input(args: tuple, kwargs: dict[str, Any], hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def release_freed() -> None:
    """Return free pages of the C heap; does nothing where the C library has no such call (it is glibc's).

    Watching a forward pass keeps small numbers of every block, which split the places of freed tensors: by the last of
    30 layers the heap would hold several hundred MB that nothing uses.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim():
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
