"""Edits of the input that move, drop or repeat the BOS token; the loss is over tokens that stay predicted."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch
from spikesink.errors import DoesNotApplyError, InputError

Rewrite = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From ids (batch, token) and one id per row (batch, 1) to new ids and which of their tokens count as targets.

The targets must be the last ones of the sequence before, so that a baseline can be scored on the same tokens.
"""


class InputEditor:
    """Rewrites the ids of every batch, with BOS or, as a control, with a token drawn from the batch for each row."""

    def __init__(self, rewrite: Rewrite, bos: int, *, must_begin: bool, drawn: torch.Generator | None) -> None:
        self.rewrite, self.bos, self.must_begin, self._drawn = rewrite, bos, must_begin, drawn

    def edit_batch(self, batch: Batch) -> Batch:
        ids = batch.ids
        if batch.padded:
            raise InputError("Inputs with padding cannot be rewritten; give sequences of equal length.")
        if self.must_begin and not bool((ids[:, 0] == self.bos).all()):
            raise DoesNotApplyError("the sequences do not begin with BOS; --bos always puts one there")
        token = torch.full_like(ids[:, :1], self.bos)
        if self._drawn is not None:
            flat = ids.flatten()
            token = flat[torch.randint(0, len(flat), (len(ids), 1), generator=self._drawn).to(ids.device)]
        changed, scored = self.rewrite(ids, token)
        if not bool(scored[:, 1:].any()):
            raise DoesNotApplyError(f"sequences of {ids.shape[1]} tokens are too short: no token is left to predict")
        return replace(batch, ids=changed, valid=torch.ones_like(scored), scored=scored)


def all_but(tokens: int, like: Tensor, *unscored: int) -> Tensor:
    """Target mask (batch, tokens) that is False at these positions."""
    scored = torch.ones(len(like), tokens, dtype=torch.bool, device=like.device)
    scored[:, list(unscored)] = False
    return scored


def bos_id(accessed: AccessedModel) -> int:
    """The model's BOS token id. Raises DoesNotApplyError where it has none."""
    found = getattr(accessed.tokenizer, "bos_token_id", None)
    found = getattr(accessed.config, "bos_token_id", None) if found is None else found
    if isinstance(found, list):
        found = found[0] if found else None
    if found is None:
        raise DoesNotApplyError("neither the tokenizer nor the config names a BOS token")
    return int(found)
