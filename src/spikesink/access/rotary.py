"""Queries and keys before their rotary position embedding, of any family.

The attention registry hands over post-RoPE q and k. transformers passes the rotation itself (`position_embeddings`,
cosine and sine) to every attention module, so it can be undone. Which of the conventions a layer uses is found by its
defining property: shifting all positions leaves the residual stream as it is, so pre-RoPE q and k must not move.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access.attention import BACKEND
from spikesink.access.capture import observing
from spikesink.access.comparison import probe_ids, tolerances
from spikesink.access.model import AccessedModel
from spikesink.errors import DoesNotApplyError
from spikesink.observer import AttentionInputs, Observer
from spikesink.positions import placed

SHIFT = 7

Undo = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(post-RoPE (batch, head, token, d_head), cos, sin (batch, 1, token, rotary)) to pre-RoPE."""


@dataclass
class Rotary:
    """The rotation of the forward pass that is running, and how each attention block applies it."""

    undo: dict[int, Undo] = field(default_factory=dict)
    current: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def unrotated(self, inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
        """Pre-RoPE query (batch, head, token, d_head) and key (batch, kv_head, token, d_head), float32 or wider."""
        query, key = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (inputs.query, inputs.key))
        if inputs.block not in self.current:
            return query, key
        cos, sin = self.current[inputs.block]
        undo = self.undo[inputs.block]
        return undo(query, cos, sin), undo(key, cos, sin)

    def moved(self, block: int, states: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Post-RoPE states (batch, head, token, d_head) at positions `start` (token,) as at `end`, float32 or wider."""
        cos, sin = self.current[block]
        undo = self.undo[block]
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        squared = cos[:, :, end].square() + sin[:, :, end].square()
        # Undoing the opposite rotation rotates; a scaled rotation (YaRN) has cos^2 + sin^2 = scale^2.
        before = undo(states, cos[:, :, start], sin[:, :, start])
        cos, sin = (-cos, sin) if undo is _sine_first else (cos, -sin)
        return undo(before, cos[:, :, end] / squared, sin[:, :, end] / squared)


@contextmanager
def unrotating(accessed: AccessedModel) -> Iterator[Rotary]:
    """A Rotary that follows every forward pass while the context is open.

    Raises DoesNotApplyError for a model whose rotation cannot be undone.
    """
    rotary = Rotary()
    with _following(accessed, rotary):
        rotary.undo = _conventions(accessed, rotary)
        yield rotary


def learns_positions(accessed: AccessedModel) -> bool:
    """Whether positions are rows of a table, so that there are no others."""
    most, words = accessed.max_positions, accessed.model.get_input_embeddings()
    # OPT and its relatives have two rows more than positions.
    return most is not None and any(
        isinstance(module, nn.Embedding) and module is not words and 0 <= module.num_embeddings - most <= 2
        for module in accessed.model.modules()
    )


def rotates(accessed: AccessedModel) -> bool:
    """Whether positions are rotations, which exist for any position, in some block."""
    if learns_positions(accessed):
        return False
    try:
        with unrotating(accessed) as rotary:
            return bool(rotary.undo)
    except DoesNotApplyError:
        return False


@contextmanager
def _following(accessed: AccessedModel, rotary: Rotary) -> Iterator[None]:
    def follow(block: int) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            pair = kwargs.get("position_embeddings")
            if isinstance(pair, tuple) and len(pair) == 2:
                cos, sin = (t[:, None].to(torch.promote_types(t.dtype, torch.float32)) for t in pair)
                rotary.current[block] = (cos, sin)
            else:
                rotary.current.pop(block, None)

        return hook

    handles = [
        layer.attention.inner.register_forward_pre_hook(follow(layer.attention.block), with_kwargs=True)
        for layer in accessed.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Keep(Observer):
    """Keeps queries, keys and the rotation of each block."""

    def __init__(self, rotary: Rotary) -> None:
        self.rotary = rotary
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.rotations: dict[int, tuple[Tensor, Tensor]] = {}

    def on_attention(self, inputs: AttentionInputs) -> None:
        self.seen[inputs.block] = (inputs.query.clone(), inputs.key.clone())
        if inputs.block in self.rotary.current:
            self.rotations[inputs.block] = self.rotary.current[inputs.block]


def _conventions(accessed: AccessedModel, rotary: Rotary) -> dict[int, Undo]:
    """How each block that is given a rotation applies it."""
    plain, shifted = _Keep(rotary), _Keep(rotary)
    for keep, shift in ((plain, 0), (shifted, SHIFT)):
        ids = probe_ids(accessed.vocab_size).to(accessed.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None] + shift
        with observing(accessed, [keep]), torch.inference_mode():
            assert accessed.model.config._attn_implementation == BACKEND
            accessed.model(input_ids=ids, position_ids=positions, use_cache=False)
    conventions: dict[int, Undo] = {}
    limit = tolerances(accessed.dtype).forward
    for block, rotation in plain.rotations.items():
        pairs = [(plain.seen[block], rotation), (shifted.seen[block], shifted.rotations[block])]
        moved = {undo: _moved(undo, pairs) for undo in _CONVENTIONS if _fits(undo, rotation, plain.seen[block][0])}
        best = min(moved, key=lambda undo: moved[undo])
        if not moved[best] < limit:
            raise DoesNotApplyError(
                f"The rotary position embedding of block {placed(block)} cannot be undone: pre-RoPE queries and "
                f"keys still move with the position by {moved[best]:.2g} (relative; limit {limit:.0e})"
            )
        conventions[block] = best
    return conventions


def _moved(undo: Undo, pairs: list) -> float:
    """Largest relative change of pre-RoPE queries and keys when all positions are shifted."""
    largest = 0.0
    for index in range(2):
        one, other = (undo(seen[index].float(), *(t.float() for t in rotation)) for seen, rotation in pairs)
        scale = one.norm(dim=-1).clamp_min(1e-6)
        largest = max(largest, float(((one - other).norm(dim=-1) / scale).max()))
    return largest


def _fits(undo: Undo, rotation: tuple[Tensor, Tensor], query: Tensor) -> bool:
    width = rotation[0].shape[-1]
    if undo in (_doubled, _sine_first):
        return 2 * width <= query.shape[-1]
    return undo is _none or (width % 2 == 0 and width <= query.shape[-1])


def _none(rotated: Tensor, _cos: Tensor, _sin: Tensor) -> Tensor:
    """A layer that ignores the rotation (NoPE)."""
    return rotated


def _halves(rotated: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama: channel i turns with channel i + rotary / 2; further channels pass (partial rotary)."""
    turned, passed = rotated[..., : cos.shape[-1]], rotated[..., cos.shape[-1] :]
    half = cos.shape[-1] // 2
    other = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
    # A scaled rotation (YaRN) has cos^2 + sin^2 = scale^2.
    return torch.cat([(turned * cos - other * sin) / (cos.square() + sin.square()), passed], dim=-1)


def _doubled(rotated: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `_halves`, where cosine and sine come once per pair (gpt-oss)."""
    return _halves(rotated, torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1))


def _interleaved(rotated: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Cohere: channels 2i and 2i + 1 turn together, cosine and sine repeated for both."""
    turned, passed = rotated[..., : cos.shape[-1]], rotated[..., cos.shape[-1] :]
    other = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([(turned * cos - other * sin) / (cos.square() + sin.square()), passed], dim=-1)


def _interleaved_halves(rotated: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """GLM: channels 2i and 2i + 1 turn together, their cosine and sine in the first half of what is passed."""
    half = cos.shape[-1] // 2
    return _interleaved(rotated, *(t[..., :half].repeat_interleave(2, dim=-1) for t in (cos, sin)))


def _sine_first(rotated: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """GPT-J: as `_interleaved`, with the sine passed first and both once per pair."""
    return _interleaved(rotated, *(t.repeat_interleave(2, dim=-1) for t in (cos, sin)))


_CONVENTIONS: tuple[Undo, ...] = (_none, _halves, _doubled, _interleaved, _interleaved_halves, _sine_first)
