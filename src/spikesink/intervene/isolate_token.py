"""A token that sees only itself."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch, editing
from spikesink.errors import InputError
from spikesink.intervene.base import Context, Found, intervention, seeded

CONTROL = "random_key"


@intervention("tokens", controls=(CONTROL,))
def isolate_token(
    accessed: AccessedModel,
    found: Found,
    *,
    position: int | None = None,
    control: str | None = None,
    seed: int = 0,
) -> Context:
    """Force one token to attend to itself only, up to the step-up block: does it spike and become a sink?

    position: which one; default the middle of the sequence. Control: it attends to one random earlier token only.
    Sun et al. 2026, table 2: the first token spikes because it attends only to itself.
    """
    if position is not None and position < 1:
        raise InputError(f"position is {position}; expected 1 or more: the first token sees only itself already.")
    return editing(accessed, IsolatingEditor(found, position, control, seed))


class IsolatingEditor:
    """Masks every key but one for one query, in the blocks up to `edit_block` (all of them without spikes)."""

    def __init__(self, found: Found, position: int | None, control: str | None, seed: int) -> None:
        self.found, self.position, self.control = found, position, control
        self._generator = seeded(seed)
        self.token = 0
        self._keys = torch.zeros(0, dtype=torch.long)

    def edit_batch(self, batch: Batch) -> Batch:
        rows, tokens = batch.ids.shape
        self.token = tokens // 2 if self.position is None else self.position
        if self.token >= tokens:
            raise InputError(f"position is {self.token}, but the sequences have {tokens} tokens.")
        self._keys = torch.full((rows,), self.token)
        if self.control == CONTROL:
            self._keys = torch.randint(1, max(2, self.token), (rows,), generator=self._generator)
        return batch

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        rows, keys = scores.shape[-2:]
        late = self.found.has_spikes and block > self.found.edit_block
        if late or not query_start <= self.token < query_start + rows:
            return scores
        allowed = torch.arange(key_start, key_start + keys)[None] == self._keys[:, None]
        row = scores[:, :, self.token - query_start]
        scores[:, :, self.token - query_start] = row.masked_fill(~allowed[:, None].to(row.device), float("-inf"))
        return scores
