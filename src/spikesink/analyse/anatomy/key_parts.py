"""Keys of spike tokens as sums of few columns of W_K, in the blocks where the spike stands. Sun et al. 2026, eq. 26."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikesink.access.comparison import difference, tolerances
from spikesink.access.weights import input_norm, key_projection
from spikesink.analyse.passes import Scan
from spikesink.errors import DoesNotApplyError
from spikesink.measure.gather import Gather
from spikesink.measure.geometry import column_parts
from spikesink.records import anatomy as record

CHANNELS = 8
TOKENS = 64
"""Spike tokens whose keys are taken apart, and as many others."""


class KeyParts:
    """`entering` observes the residuals that the blocks read; `measure` takes the keys apart.

    rows, positions (token,): tokens whose keys are known; is_sink, is_spike (token,): which are sink and spike tokens.
    """

    def __init__(
        self, scanned: Scan, rows: Tensor, positions: Tensor, is_sink: np.ndarray, is_spike: np.ndarray
    ) -> None:
        self.accessed = scanned.accessed
        self.spike, self.other = (np.flatnonzero(mask)[:TOKENS] for mask in (is_spike, ~is_sink))
        steps = scanned.steps
        start = max(steps.step_up) if steps is not None and steps.step_up else self.accessed.n_blocks
        stop = min(steps.step_down, default=self.accessed.n_blocks) if steps is not None else 0
        self.blocks = [sites.block for sites in self.accessed.attending if start < sites.block < stop]
        chosen = torch.from_numpy(np.concatenate([self.spike, self.other]))
        residuals = [block - 1 for block in self.blocks]
        self.entering = Gather(rows[chosen], positions[chosen], residuals=residuals)

    def measure(self, keys: dict[int, Tensor]) -> dict[str, Any]:
        """keys: by block, pre-RoPE (token, KV head, d_head) of all tokens. The fields of the record."""
        try:
            if not len(self.spike) or not len(self.other):
                raise DoesNotApplyError("No sink token is a spike token")
            if not self.blocks:
                raise DoesNotApplyError("No attention block stands between a spike's step-up and its step-down")
            return {"key_parts": [self._part(block, keys[block]) for block in self.blocks]}
        except DoesNotApplyError as reason:
            return {"key_parts_reason": str(reason)}

    def _part(self, block: int, keys: Tensor) -> record.KeyPart:
        hidden = self.entering.residuals[block - 1]
        norm = input_norm(self.accessed, block)
        hidden = hidden if norm is None else norm(hidden)
        weight, offset = (t.cpu() for t in key_projection(self.accessed, block, keys[0].numel()))
        ours = torch.cat([keys[self.spike], keys[self.other]]).flatten(1)
        wrong = difference(hidden @ weight.T + offset, ours)
        if not wrong < tolerances(self.accessed.dtype).forward:
            raise DoesNotApplyError(
                f"The keys of block {block} are not W_K times the normed state (they differ by {wrong:.2g}), as where "
                "keys are normed"
            )
        channels, explained = column_parts(hidden[: len(self.spike)], weight, CHANNELS)
        _, explained_other = column_parts(hidden[len(self.spike) :], weight, CHANNELS)
        return record.KeyPart(
            block=block,
            n=len(self.spike),
            channels=channels,
            explained=explained,
            n_other=len(self.other),
            explained_other=explained_other,
        )
