"""Padded batches: what the model makes of a short sequence beside a long one, against the sequence alone."""

import torch
from torch import Tensor

from spikesink.access.model import AccessedModel
from spikesink.access.protocol import Batch, full_batch
from spikesink.access.verify import PROBE_TOKENS, Writes, attention_differences, difference, limits, probe_ids, watched
from spikesink.errors import InputError

PADDING = 5
SIDES = ("right", "left")


class Residuals:
    """Observer: the residual after every block, padding left out: (tokens, channel) by sequence."""

    def __init__(self, batch: Batch) -> None:
        self.valid = batch.valid
        self.after: dict[int, list[Tensor]] = {}

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block > 0:
            rows = zip(hidden, self.valid.to(hidden.device), strict=True)
            self.after[block] = [row[valid].clone() for row, valid in rows]


def padded_differences(accessed: AccessedModel, side: str) -> tuple[dict[int, float], dict[int, float]]:
    """By block, of a short and a long sequence together: attention against eager's, residuals against each alone."""
    ids = probe_ids(accessed.vocab_size, 2 * PROBE_TOKENS).view(2, PROBE_TOKENS)
    valid = torch.ones_like(ids, dtype=torch.bool)
    real = slice(PROBE_TOKENS - PADDING) if side == "right" else slice(PADDING, None)
    valid[1] = False
    valid[1, real] = True
    batch = Batch(ids=ids, valid=valid)
    together, ours = Residuals(batch), Writes()
    watched(accessed, batch, together, ours)
    alone: dict[int, float] = {}
    for row, tokens in enumerate((slice(None), real)):
        single = full_batch(ids[row : row + 1, tokens])
        apart = Residuals(single)
        watched(accessed, single, apart)
        for block, (hidden,) in apart.after.items():
            alone[block] = max(difference(together.after[block][row], hidden), alone.get(block, 0.0))
    return attention_differences(accessed, batch, ours.writes), alone


def check_left_padding(accessed: AccessedModel, valid: Tensor) -> None:
    """Refuse a batch with padding on the left, valid (sequence, token), where the model's positions do not follow it.

    Some families count positions from the first column whatever the mask says (BART, RoBERTa): a sequence that is
    padded on the left is another one to them. Raises InputError.
    """
    if bool(valid[:, 0].all()):
        return
    limit = limits(accessed)[1]
    worst = max(padded_differences(accessed, "left")[1].values())
    if not worst <= limit:
        raise InputError(
            f"Padding on the left, but the positions of '{accessed.name}' do not follow it: its residuals then differ "
            f"from each sequence's alone by {worst:.2g} (relative; limit {limit:.0e}). Pad on the right."
        )
