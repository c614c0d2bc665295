"""BOS left out."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Found, intervention
from spikesink.intervene.bos import InputEditor, all_but, bos_id

CONTROL = "second_token"


@intervention("input", controls=(CONTROL,))
def drop_bos(accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0) -> Context:
    """Leave out the BOS token that every sequence begins with.

    The loss is over the tokens that are still predicted, all but the first after BOS. Control: leave out the token
    after BOS instead.
    """
    left_out = 1 if control == CONTROL else 0

    def rewrite(ids: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.cat([ids[:, :left_out], ids[:, left_out + 1 :]], dim=1)
        return changed, all_but(changed.shape[1], ids, 0)

    return editing(accessed, InputEditor(rewrite, bos_id(accessed), must_begin=True, drawn=None))
