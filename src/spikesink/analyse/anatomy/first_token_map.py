"""The first token attends only to itself, so attention is the fixed map W_VO: does it lead to s*? Spec 2.3; eq. 22."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch, full_batch, observing
from spikesink.access.capture import run_until
from spikesink.access.weights import attention_weights, gated_ffns, probe
from spikesink.analyse.anatomy.sample import sample_tokens, valid_mask
from spikesink.analyse.anatomy.vocabulary_probe import vocabulary
from spikesink.analyse.passes import Progress
from spikesink.analyse.scanned import Scanned
from spikesink.errors import DoesNotApplyError
from spikesink.measure.amplifier import spectrum
from spikesink.measure.directions import alignment, map_gain, random_cosine, random_gain
from spikesink.records import anatomy as record

ITEMS = 256
"""Vocabulary items alone at position 0, drawn with a fixed seed; as many tokens of the text are the control."""
MAX_BLOCKS = 24


def first_token_map(scanned: Scanned, progress: Progress) -> record.FirstTokenMap:
    """Alignment with s* before, in and after every early attention block. Raises DoesNotApplyError."""
    accessed = scanned.accessed
    step, channel, direction = step_direction(scanned)
    blocks = list(range(1, step, 2))[-MAX_BLOCKS:]
    ids = np.random.default_rng(0).permutation(vocabulary(accessed))[:ITEMS]
    sample = sample_tokens(scanned, spikes=0, others=ITEMS)
    later = sample.position > 0
    alone = torch.from_numpy(ids)[:, None]
    at_first = torch.arange(len(ids))
    first = _gathered(accessed, full_batch(alone), at_first, torch.zeros_like(at_first), blocks)
    rows, index = torch.unique(sample.sequence[later], return_inverse=True)
    text = Batch(scanned.ids[rows], valid_mask(scanned)[rows])
    rest = _gathered(accessed, text, index, sample.position[later], blocks)
    seen = probe(accessed)
    found = []
    for done, block in enumerate(blocks):
        progress("first-token map", done, len(blocks))
        gain, random, reason = _gain(accessed, block, seen, direction)
        found.append(
            record.FirstTokenBlock(
                block=block,
                **{f"{place}_first": _aligned(first[place], block, direction) for place in PLACES},
                **{f"{place}_later": _aligned(rest[place], block, direction) for place in PLACES},
                map_gain=gain,
                map_gain_random=random,
                map_reason=reason,
            )
        )
    progress("first-token map", len(blocks), len(blocks))
    return record.FirstTokenMap(
        step_block=step,
        channel=channel,
        n_first=len(ids),
        n_later=int(later.sum()),
        random_cosine=random_cosine(accessed.d_model),
        blocks=found,
    )


PLACES = ("before", "write", "after")


def step_direction(scanned: Scanned) -> tuple[int, int, Tensor]:
    """The first step-up FFN, the spike channel and the s* of that channel there. Raises DoesNotApplyError."""
    steps = scanned.steps
    ffns = [] if steps is None else [block for block in steps.step_up if block % 2 == 0]
    if not ffns:
        raise DoesNotApplyError("There is no step-up FFN block whose direction s* a token could be led to")
    found = gated_ffns(scanned.accessed, ffns[0])
    if len(found) != 1:
        raise DoesNotApplyError(f"The step-up block {ffns[0]} is a mixture of experts: s* depends on the expert")
    channel = scanned.spike.peak.channel
    return ffns[0], channel, torch.from_numpy(spectrum(found[0], channel).vectors[0]).float()


@dataclass
class _Around:
    """Observer that keeps residuals before and after, and writes of, chosen attention blocks at chosen tokens."""

    rows: Tensor
    positions: Tensor
    blocks: list[int]
    seen: dict[str, dict[int, Tensor]] = field(default_factory=lambda: {place: {} for place in PLACES})

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block + 1 in self.blocks:
            self.seen["before"][block + 1] = self._gather(hidden)
        if block in self.blocks:
            self.seen["after"][block] = self._gather(hidden)

    def on_write(self, block: int, write: Tensor) -> None:
        if block in self.blocks:
            self.seen["write"][block] = self._gather(write)

    def _gather(self, hidden: Tensor) -> Tensor:
        return hidden[self.rows, self.positions].float().cpu()


def _gathered(
    accessed: AccessedModel, whole: Batch, rows: Tensor, positions: Tensor, blocks: list[int]
) -> dict[str, dict[int, Tensor]]:
    """What stands around the blocks at tokens (rows, positions), a few sequences at a time."""
    size = max(1, 4096 // whole.ids.shape[1])
    pieces: dict[str, dict[int, list[Tensor]]] = {place: {} for place in PLACES}
    for start in range(0, len(whole.ids), size):
        batch = Batch(whole.ids[start : start + size], whole.valid[start : start + size])
        inside = (rows >= start) & (rows < start + size)
        around = _Around(rows[inside] - start, positions[inside], blocks)
        with observing(accessed, [around]):
            run_until(accessed, batch, blocks[-1])
        for place in PLACES:
            for block, tensor in around.seen[place].items():
                pieces[place].setdefault(block, []).append(tensor)
    return {place: {block: torch.cat(parts) for block, parts in pieces[place].items()} for place in PLACES}


def _aligned(vectors: dict[int, Tensor], block: int, direction: Tensor) -> float | None:
    return alignment(vectors[block], direction) if block in vectors else None


def _gain(
    accessed: AccessedModel, block: int, seen, direction: Tensor
) -> tuple[float | None, float | None, str | None]:
    try:
        weights = attention_weights(accessed, block, seen)
    except DoesNotApplyError as reason:
        return None, None, str(reason)
    matrix = weights.first_token_map()
    return map_gain(matrix, direction.to(matrix)), random_gain(matrix), None
