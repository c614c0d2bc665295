"""Edits of the input that move, drop or repeat the BOS token; the loss is over tokens that stay predicted."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch, editing
from spikesink.access.rotary import learns_positions
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene.base import Context, Targets, intervention, seeded

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


def require_positions(accessed: AccessedModel, tokens: int) -> None:
    """Raise DoesNotApplyError for sequences that an edit makes longer than a table of positions."""
    most = accessed.max_positions
    if most is not None and tokens > most and learns_positions(accessed):
        raise DoesNotApplyError(f"sequences would have {tokens} tokens, and the model has {most} positions")


def all_but(tokens: int, like: Tensor, *unscored: int) -> Tensor:
    """Target mask (batch, tokens) that is False at these positions."""
    scored = torch.ones(len(like), tokens, dtype=torch.bool, device=like.device)
    scored[:, list(unscored)] = False
    return scored


def bos_id(accessed: AccessedModel) -> int:
    """The model's BOS token id. Raises DoesNotApplyError where it has none."""
    if accessed.bos_id is None:
        raise DoesNotApplyError("neither the tokenizer nor the config names a BOS token")
    return accessed.bos_id


@intervention(edits="input", controls=("random_token",))
def repeat_bos(
    accessed: AccessedModel, targets: Targets, *, copies: int = 4, control: str | None = None, seed: int = 0
) -> Context:
    """Put copies of the BOS token in front of every sequence, four unless told otherwise.

    The loss is over the same tokens as without. Control: copies of a random token of the text. It does not apply where
    the model has no positions for them.
    """
    if copies < 1:
        raise InputError(f"copies is {copies}; expected at least 1.")

    def rewrite(ids: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.cat([token.expand(-1, copies), ids], dim=1)
        require_positions(accessed, changed.shape[1])
        return changed, all_but(changed.shape[1], ids, *range(copies + 1))

    drawn = seeded(seed) if control == "random_token" else None
    return editing(accessed, InputEditor(rewrite, bos_id(accessed), must_begin=False, drawn=drawn))


@intervention(edits="input", controls=("second_token",))
def drop_bos(accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0) -> Context:
    """Leave out the BOS token that every sequence begins with.

    The loss is over the tokens that are still predicted, all but the first after BOS. Control: leave out the token
    after BOS instead.
    """
    left_out = 1 if control == "second_token" else 0

    def rewrite(ids: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.cat([ids[:, :left_out], ids[:, left_out + 1 :]], dim=1)
        return changed, all_but(changed.shape[1], ids, 0)

    return editing(accessed, InputEditor(rewrite, bos_id(accessed), must_begin=True, drawn=None))


@intervention(edits="input", controls=("second_token",))
def move_bos(
    accessed: AccessedModel, targets: Targets, *, position: int | None = None, control: str | None = None, seed: int = 0
) -> Context:
    """Move the BOS token that every sequence begins with into the text, to the middle unless told otherwise.

    position: its new position. The loss is over the text's tokens from the second on. Control: move the token after
    BOS there instead.
    """
    moved = 1 if control == "second_token" else 0

    def rewrite(ids: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        tokens = ids.shape[1]
        place = tokens // 2 if position is None else position
        if position is None and place < 2:
            raise DoesNotApplyError(f"sequences of {tokens} tokens are too short to move BOS into")
        if not 1 < place < tokens:
            raise InputError(f"position is {place}; expected 2 to {tokens - 1}.")
        others = [index for index in range(tokens) if index != moved]
        order = torch.tensor([*others[:place], moved, *others[place:]], device=ids.device)
        return ids[:, order], all_but(tokens, ids, 0, place)

    return editing(accessed, InputEditor(rewrite, bos_id(accessed), must_begin=True, drawn=None))
