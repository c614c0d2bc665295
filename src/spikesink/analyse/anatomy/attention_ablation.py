"""Does attention make a lone token spike? Its early writes left out, by item. Spec 2.3; Sun et al. 2026, eq. 22."""

import numpy as np
import torch
from torch import Tensor

from spikesink.access import editing
from spikesink.analyse.anatomy.vocabulary_probe import alone, vocabulary
from spikesink.analyse.passes import Progress, Scan
from spikesink.errors import DoesNotApplyError
from spikesink.records import anatomy as record

ITEMS = 256
"""Vocabulary items, drawn with a fixed seed: a share near one half is known to 0.03 (standard error)."""
MAX_ROWS = 8
KEPT_MIN = 0.9
"""Attention is not needed where at least this share of the items that spike with it do so without it."""
SEED = 0


class WithoutWrites:
    """Editor: the chosen blocks add nothing to the residual stream."""

    def __init__(self, blocks: list[int]) -> None:
        self.blocks = frozenset(blocks)

    def edit_write(self, block: int, write: Tensor) -> Tensor:
        return torch.zeros_like(write) if block in self.blocks else write


def attention_ablation(
    scanned: Scan, last_block: int, threshold: float, progress: Progress
) -> record.AttentionAblation:
    """Share of items alone at position 0 that exceed the threshold after `last_block`, attention writes left out.

    One row for the attention blocks from each one on, and one for the first alone. Raises DoesNotApplyError where
    nothing spikes or no attention block comes before.
    """
    if not scanned.spike.has_spikes:
        raise DoesNotApplyError("The model has no spikes on this text, so there is nothing that attention could make")
    accessed = scanned.accessed
    blocks = [sites.block for sites in accessed.attending if sites.block < last_block]
    if not blocks:
        raise DoesNotApplyError(f"No attention block comes before block {last_block}, which makes the spike")
    starts = [blocks[index] for index in np.unique(np.linspace(0, len(blocks) - 1, MAX_ROWS).astype(int))]
    silenced = [[], *([block for block in blocks if block >= start] for start in starts)]
    if len(blocks) > 1:
        silenced.append(blocks[:1])
    items = np.random.default_rng(SEED).permutation(vocabulary(accessed))[:ITEMS]
    shares = []
    for done, chosen in enumerate(silenced):
        progress("attention ablation", done, len(silenced))
        with editing(accessed, WithoutWrites(chosen)):
            magnitude, _ = alone(accessed, last_block, items)
        shares.append(float((magnitude > threshold).mean()))
    progress("attention ablation", len(silenced), len(silenced))
    return record.AttentionAblation(
        block=last_block,
        threshold=threshold,
        items=len(items),
        spiking_share=shares[0],
        kept_min=KEPT_MIN,
        free_from=_free_from(starts, shares[1 : len(starts) + 1], KEPT_MIN * shares[0]),
        rows=[
            record.AttentionAblationRow(first_block=chosen[0], last_block=chosen[-1], spiking_share=share)
            for chosen, share in zip(silenced[1:], shares[1:], strict=True)
        ],
    )


def _free_from(starts: list[int], shares: list[float], enough: float) -> int | None:
    """The earliest block from which on enough items spike without attention; None where even the last is needed."""
    found = None
    for start, share in zip(reversed(starts), reversed(shares), strict=True):
        if share < enough:
            break
        found = start
    return found
