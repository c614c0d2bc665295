"""Which attention weights belong to a sink: its key, in the blocks and heads that an edit acts on."""

import torch
from torch import Tensor

from spikesink.errors import InputError
from spikesink.intervene.base import Found, random_tokens, seeded

KEY_CONTROL = "random_keys"
HEAD_CONTROL = "random_heads"


class SinkEditor:
    """Base of edits on sinks. Sink keys are `found.sink_positions` and, after the step-up block, the spike tokens.

    It acts after `edit_block` where the model has spikes (before, the edit would only make the next token attend to
    itself, spike and become the sink), else in every block. A sink keeps attending to itself, so that its own state
    stays. heads: `all`, or `sinks` for sink heads only. Controls: as many random other keys of the first half of each
    sequence; or, with `heads="sinks"`, as many random other heads of each block.
    """

    def __init__(self, found: Found, heads: str, control: str | None, seed: int) -> None:
        if heads not in ("all", "sinks"):
            raise InputError(f"Unknown heads '{heads}'; expected all or sinks.")
        self.found, self.heads, self.control = found, heads, control
        self.start = found.edit_block if found.has_spikes else 0
        self._generator = seeded(seed)
        self._tokens: Tensor | None = None
        self._by_block: dict[int, set[int]] = {}
        for block, head in found.sink_heads:
            self._by_block.setdefault(block, set()).add(head)
        self._drawn: dict[int, set[int]] = {}

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        if block == self.start:
            self._tokens = self._sink_tokens(hidden)
        return hidden

    def _sink_tokens(self, hidden: Tensor) -> Tensor:
        """Sink keys of every row, (batch, token) bool."""
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        tokens[:, [position for position in self.found.sink_positions if position < hidden.shape[1]]] = True
        if self.found.has_spikes:
            tokens |= self.found.is_spike(hidden)
        if self.control == KEY_CONTROL:
            first_half = torch.arange(hidden.shape[1])[None] < max(2, hidden.shape[1] // 2)
            return random_tokens(tokens, self._generator, among=first_half)
        return tokens

    def sink_weights(self, block: int, query_start: int, key_start: int, like: Tensor) -> Tensor | None:
        """Which entries of `like` (batch, head, row, key) are another token's weight on a sink; None where none is."""
        if block <= self.start or self._tokens is None:
            return None
        rows, keys = like.shape[-2:]
        sinks = self._tokens[:, key_start : key_start + keys].to(like.device)[:, None, None, :]
        queries = torch.arange(query_start, query_start + rows, device=like.device)[:, None]
        others = queries != torch.arange(key_start, key_start + keys, device=like.device)[None]
        found = sinks & others
        if self.heads == "all":
            return found.expand_as(like)
        chosen = self._chosen_heads(block, like.shape[1])
        if not chosen:
            return None
        acts = torch.zeros(like.shape[1], dtype=torch.bool, device=like.device)
        acts[sorted(chosen)] = True
        return found & acts[None, :, None, None]

    def _chosen_heads(self, block: int, n_heads: int) -> set[int]:
        sinks = self._by_block.get(block, set())
        if self.control != HEAD_CONTROL:
            return sinks
        if block not in self._drawn:
            others = [head for head in range(n_heads) if head not in sinks]
            order = torch.randperm(len(others), generator=self._generator).tolist()
            self._drawn[block] = {others[index] for index in order[: len(sinks)]}
        return self._drawn[block]
