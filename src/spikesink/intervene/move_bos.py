"""BOS moved into the text."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.bos import InputEditor, all_but, bos_id

CONTROL = "second_token"


@intervention("input", controls=(CONTROL,))
def move_bos(
    accessed: AccessedModel,
    found: Found,
    *,
    position: int | None = None,
    control: str | None = None,
    seed: int = 0,
) -> Context:
    """Move the BOS token that every sequence begins with into the text, to the middle unless told otherwise.

    position: its new position. The loss is over the text's tokens from the second on. Control: move the token after
    BOS there instead.
    """
    moved = 1 if control == CONTROL else 0

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
