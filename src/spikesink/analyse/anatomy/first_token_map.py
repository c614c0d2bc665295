"""The first token attends only to itself, so attention is the fixed map W_VO: does it lead to s*? Spec 2.3; eq. 22."""

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, observing
from spikesink.access.capture import run_until
from spikesink.access.weights import attention_weights, gated_ffns, probe
from spikesink.analyse.anatomy.sample import sample_tokens, valid_mask
from spikesink.analyse.anatomy.vocabulary_probe import vocabulary
from spikesink.analyse.passes import Progress, Scan
from spikesink.errors import DoesNotApplyError
from spikesink.measure.amplifier import spectrum
from spikesink.measure.directions import alignment, map_gain, random_cosine, random_gain
from spikesink.measure.gather import Gather
from spikesink.measure.lifecycle import main_step_up
from spikesink.observer import Batch, full_batch
from spikesink.records import anatomy as record

ITEMS = 256
"""Vocabulary items alone at position 0, drawn with a fixed seed; as many tokens of the text are the control."""
MAX_BLOCKS = 24


def first_token_map(scanned: Scan, progress: Progress) -> record.FirstTokenMap:
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


def step_direction(scanned: Scan) -> tuple[int, int, Tensor]:
    """The main step-up FFN, the spike channel and the s* of that channel there. Raises DoesNotApplyError."""
    block = main_step_up(scanned.steps)
    if block is None:
        raise DoesNotApplyError("There is no step-up FFN block whose direction s* a token could be led to")
    ffns = gated_ffns(scanned.accessed, block)
    if len(ffns) != 1:
        raise DoesNotApplyError(f"The step-up block {block} is a mixture of experts: s* depends on the expert")
    channel = scanned.spike.peak.channel
    return block, channel, torch.from_numpy(spectrum(ffns[0], channel).vectors[0]).float()


def _gathered(
    accessed: AccessedModel, whole: Batch, rows: Tensor, positions: Tensor, blocks: list[int]
) -> dict[str, dict[int, Tensor]]:
    """What stands around the blocks at tokens (rows, positions): before, write and after by block, (token, d)."""
    residuals = {*blocks, *(block - 1 for block in blocks)}
    gather = Gather(rows, positions, residuals=residuals, writes=blocks)
    size = max(1, 4096 // whole.ids.shape[1])
    with observing(accessed, [gather]):
        for start in range(0, len(whole.ids), size):
            batch = Batch(whole.ids[start : start + size], whole.valid[start : start + size], start)
            run_until(accessed, batch, blocks[-1])
    before = {block: gather.residuals[block - 1] for block in blocks if block - 1 in gather.residuals}
    after = {block: gather.residuals[block] for block in blocks if block in gather.residuals}
    return {"before": before, "write": gather.writes, "after": after}


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
