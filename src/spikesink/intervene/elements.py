"""Edits of single elements of the residual after the step-up block, at spikes or at as many random places."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Options, Targets, intervention, random_tokens, require_residual, seeded

CONTROLS = ("random_channels", "random_tokens")
Change = Callable[[Tensor, Tensor], Tensor]
"""From the residual (batch, token, channel) and the mean state (channel,) of such tokens to the new values."""


class ElementEditor:
    """Gives chosen elements after `edit_block` new values.

    The chosen are all elements of at least `magnitude`, whichever channel they are in and whether or not their token
    is a spike token; by default also the massive channels of spike tokens. Under a control as many elements in random
    channels of the same tokens, or the same channels of as many random tokens.
    """

    def __init__(
        self, targets: Targets, change: Change, magnitude: float | None, control: str | None = None, seed: int = 0
    ) -> None:
        self.targets, self.change, self.control = targets, change, control
        self.magnitude = targets.magnitude_min if magnitude is None else magnitude
        self.massive = list(targets.massive_channels) if magnitude is None else []
        self._generator = seeded(seed)
        self._preference: Tensor | None = None

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        if block != self.targets.edit_block:
            return hidden
        spikes = hidden.abs() >= self.magnitude
        if self.massive:
            spikes[..., self.massive] |= self.targets.is_spike(hidden)[..., None]
        state = self.targets.spike_states.get(block)
        if self.control == "random_channels":
            spikes = self._moved_channels(spikes)
        elif self.control == "random_tokens":
            spikes = self._moved_tokens(spikes)
            state = self.targets.ordinary_states.get(block)
        mean = torch.zeros(hidden.shape[-1]) if state is None else state
        return torch.where(spikes, self.change(hidden, mean.to(hidden)), hidden)

    def _moved_channels(self, spikes: Tensor) -> Tensor:
        """As many channels of each token, none of them a spike channel; one random order of preference for all."""
        if self._preference is None:
            self._preference = torch.rand(spikes.shape[-1], generator=self._generator)
        allowed = ~spikes
        allowed[..., list(self.targets.channels)] = False
        draw = self._preference.to(spikes.device).expand(spikes.shape).masked_fill(~allowed, -1.0)
        rank = draw.argsort(-1, descending=True).argsort(-1)
        return (rank < spikes.sum(-1, keepdim=True)) & allowed

    def _moved_tokens(self, spikes: Tensor) -> Tensor:
        """The channels of each row's spikes, at as many random other tokens."""
        tokens = spikes.any(-1)
        return random_tokens(tokens, self._generator)[..., None] & spikes.any(1, keepdim=True)


@intervention(edits="spikes", controls=CONTROLS, reach="residual")
def zero_spikes(
    accessed: AccessedModel, targets: Targets, *, magnitude: float | None = None, **options: Unpack[Options]
) -> Context:
    """Set every spike element after the step-up block to zero.

    magnitude: from which magnitude on an element counts; default `targets.magnitude_min`. Sun et al. 2024, section 3.
    """
    require_residual(accessed, targets.edit_block)
    return editing(accessed, ElementEditor(targets, _zeros, magnitude, **options))


@intervention(edits="spikes", controls=CONTROLS, reach="residual")
def mean_spikes(
    accessed: AccessedModel, targets: Targets, *, magnitude: float | None = None, **options: Unpack[Options]
) -> Context:
    """Set every spike element after the step-up block to its channel's mean over other prompts.

    The mean is over the spike tokens of the held-out sequences. Sun et al. 2024, section 3.
    """
    require_residual(accessed, targets.edit_block)
    return editing(accessed, ElementEditor(targets, _means, magnitude, **options))


@intervention(edits="spikes", controls=CONTROLS, reach="residual")
def clip_spikes(
    accessed: AccessedModel,
    targets: Targets,
    *,
    bound: float | None = None,
    magnitude: float | None = None,
    **options: Unpack[Options],
) -> Context:
    """Clip every spike element after the step-up block to a bound, keeping its sign.

    bound: default the largest magnitude that any element of the other tokens had on the held-out sequences.
    """
    require_residual(accessed, targets.edit_block)
    limit = targets.ordinary_max if bound is None else bound

    def clipped(hidden: Tensor, _mean: Tensor) -> Tensor:
        return hidden.clamp(-limit, limit)

    return editing(accessed, ElementEditor(targets, clipped, magnitude, **options))


def _zeros(hidden: Tensor, _mean: Tensor) -> Tensor:
    return torch.zeros_like(hidden)


def _means(hidden: Tensor, mean: Tensor) -> Tensor:
    return mean.expand_as(hidden)
