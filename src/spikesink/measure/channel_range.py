"""Largest magnitude of every channel of named activations, streamed: what static scales are made of."""

import torch
from torch import Tensor


class ChannelRange:
    """Largest magnitudes (channel,) by name, over everything that was shown; optionally without some tokens."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def update(self, name: str, values: Tensor) -> None:
        """values (..., channel)."""
        found = values.detach().float().abs().flatten(0, -2).amax(0).cpu()
        known = self.largest.get(name)
        self.largest[name] = found if known is None else torch.maximum(known, found)

    def worst(self, name: str, count: int) -> Tensor:
        """The channels with the largest magnitude, the largest first."""
        return self.largest[name].topk(min(count, len(self.largest[name]))).indices
