"""Copies of BOS in front."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.errors import InputError
from spikesink.intervene.base import Context, Found, intervention, seeded
from spikesink.intervene.bos import InputEditor, all_but, bos_id

CONTROL = "random_token"


@intervention("input", controls=(CONTROL,))
def repeat_bos(
    accessed: AccessedModel, found: Found, *, copies: int = 4, control: str | None = None, seed: int = 0
) -> Context:
    """Put copies of the BOS token in front of every sequence, four unless told otherwise.

    The loss is over the same tokens as without. Control: copies of a random token of the text.
    """
    if copies < 1:
        raise InputError(f"copies is {copies}; expected at least 1.")

    def rewrite(ids: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.cat([token.expand(-1, copies), ids], dim=1)
        return changed, all_but(changed.shape[1], ids, *range(copies + 1))

    drawn = seeded(seed) if control == CONTROL else None
    return editing(accessed, InputEditor(rewrite, bos_id(accessed), must_begin=False, drawn=drawn))
