"""Logits in pieces, so that all of them never exist at once: the model's own code makes each of them, from what its
decoder returned once."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.utils import ModelOutput

from spikesink.access.comparison import difference, tolerances
from spikesink.access.model import AccessedModel
from spikesink.access.protocol import listeners, not_finite

PIECE_ELEMENTS = 8_000_000
"""Logits of some positions shown at once; 31 MB in float32. Larger tensors are given back, their pages made anew."""
COLUMN_ELEMENTS, MIN_COLUMNS = 4_000_000, 256
"""The same of all positions and some tokens of the vocabulary, and the fewest of these; fewer make a slow product."""

_one_by_one: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def show_in_pieces(accessed: AccessedModel, inputs: dict[str, Tensor], observers: Sequence[object]) -> None:
    """One forward pass whose logits the observers see in pieces; if none listens, they are not made.

    A piece is all positions for some tokens of the vocabulary on a CPU, where this is the faster product and all
    listeners take it, else some positions. Where the model does not make logits from what its decoder returned, there
    is one piece.
    """
    rows, tokens = inputs["input_ids"].shape
    listening = bool(listeners(observers, "on_logits"))
    step = max(1, PIECE_ELEMENTS // (rows * accessed.vocab_size)) if listening else 1
    decoder = accessed.model.get_decoder()
    if step >= tokens or decoder is accessed.model or isinstance(accessed.model, FSDPModule):
        show(observers, accessed.model(**inputs, use_cache=False).logits, 0)
        return
    with _decoder_once(decoder) as choose:

        def made(positions: slice) -> Tensor:
            choose(positions)
            return accessed.model(**inputs, use_cache=False).logits

        if listening and _takes_columns(accessed, observers) and _show_columns(accessed, rows, tokens, observers, made):
            return
        for start in range(0, tokens if listening else 1, step):
            logits = made(slice(start, start + step))
            show(observers, logits, start)
            if logits.shape[1] == tokens:
                return


def show(observers: Sequence[object], logits: Tensor, start: int, method: str = "on_logits") -> None:
    """Give a piece to those who listen. Raises NumericError where a logit is not a number, or plus infinity."""
    listening = listeners(observers, method)
    # Minus infinity is how some families rule out a token. The largest is not a number where any is not.
    if listening and not bool(logits.amax() < torch.inf):
        raise not_finite("The logits", logits)
    for listen in listening:
        listen(logits, start)


def _takes_columns(accessed: AccessedModel, observers: Sequence[object]) -> bool:
    """Whether every listener takes some tokens of the vocabulary, and the model's unembedding is a plain linear map on
    a CPU, which nobody watches."""
    head = accessed.model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or head.weight.device.type != "cpu":
        return False
    by_position = [observer for observer in observers if listeners([observer], "on_logits")]
    watched = head._forward_hooks or head._forward_pre_hooks
    return not watched and all(listeners([observer], "on_logit_columns") for observer in by_position)


def _show_columns(
    accessed: AccessedModel, rows: int, tokens: int, observers: Sequence[object], made: Callable[[slice], Tensor]
) -> bool:
    """Show all positions, some tokens of the vocabulary at a time; whether the model's code allowed it."""
    if accessed.model not in _one_by_one:
        first = made(slice(0, 1))
        if first.shape[1] == tokens:
            show(observers, first, 0)
            return True
        _one_by_one[accessed.model] = _made_one_by_one(accessed, first, lambda: made(slice(0, 1)))
    if _one_by_one[accessed.model]:
        width = COLUMN_ELEMENTS // (rows * tokens) // MIN_COLUMNS * MIN_COLUMNS
        for start, piece in _columns(accessed, max(MIN_COLUMNS, width), lambda: made(slice(None))):
            show(observers, piece, start, "on_logit_columns")
    return _one_by_one[accessed.model]


def _made_one_by_one(accessed: AccessedModel, logits: Tensor, made: Callable[[], Tensor]) -> bool:
    """Whether the model's code makes each logit from what the unembedding gives for its token alone (a scale, a cap):
    these logits again, in two parts of unequal size."""
    try:
        parts = [part for _, part in _columns(accessed, accessed.vocab_size * 2 // 3, made)]
        return difference(torch.cat(parts, -1), logits) < tolerances(accessed.dtype).forward
    except (IndexError, RuntimeError):  # It writes at a token that is not among these.
        return False


def _columns(accessed: AccessedModel, width: int, made: Callable[[], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(First token, logits of the vocabulary's tokens from there on), `width` tokens at a time."""
    head: Any = accessed.model.get_output_embeddings()
    for start in range(0, len(head.weight), width):
        part = slice(start, start + width)
        weight, bias = head.weight[part], None if head.bias is None else head.bias[part]
        with replaced_forward(head, partial(nn.functional.linear, weight=weight, bias=bias)):
            piece = made()
        yield start, piece


@contextmanager
def _decoder_once(decoder: nn.Module) -> Iterator[Callable[[slice], None]]:
    """The decoder computes when first called; it then returns the chosen positions of that, whatever it is given."""
    original = decoder.forward
    computed: list[Any] = []
    chosen = slice(None)

    def choose(positions: slice) -> None:
        nonlocal chosen
        chosen = positions

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not computed:
            computed.append(original(*args, **kwargs))
        output = computed[0]
        # In one piece of memory, since the head would take a view with gaps as a small product for each sequence.
        if not isinstance(output, ModelOutput):
            return (output[0][:, chosen].contiguous(), *output[1:])
        return type(output)(**{**output, "last_hidden_state": output["last_hidden_state"][:, chosen].contiguous()})

    with replaced_forward(decoder, forward):
        yield choose


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of the module end in another function; its hooks stay."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
