"""Which tokens spike, and why: vocabulary probe, alignment with s*, early attention left out, delimiters. Spec 2.3."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing, observing
from spikesink.access.capture import run_until
from spikesink.access.gated_ffn import gated_ffns
from spikesink.access.weights import attention_weights, probe
from spikesink.analyse.anatomy.sample import read_by, sample_tokens, spike_block, valid_mask
from spikesink.analyse.anatomy.self_sinking import self_sinking
from spikesink.analyse.anatomy.vocabulary_probe import PRIMARY, SEED, alone, probe_record, probe_vocabulary, vocabulary
from spikesink.analyse.passes import Progress, Scan, Steps, in_steps
from spikesink.errors import DoesNotApplyError
from spikesink.measure.amplifier import spectrum
from spikesink.measure.geometry import alignment, map_gain, random_cosine, random_gain
from spikesink.measure.lifecycle import main_step_up
from spikesink.measure.states import Gather
from spikesink.observer import Batch, full_batch
from spikesink.positions import placed
from spikesink.records.sections import trigger as record

ABLATED_ITEMS = 256
"""Vocabulary items, drawn with a fixed seed: a share near one half is known to 0.03 (standard error)."""
MAX_ROWS = 8
KEPT_MIN = 0.9
"""Attention is not needed where at least this share of the items that spike with it do so without it."""


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
    nothing spikes, in the text or alone at position 0, or no attention block comes before.
    """
    if not scanned.spike.has_spikes:
        raise DoesNotApplyError("The model has no spikes on this text, so there is nothing that attention could make")
    accessed = scanned.accessed
    blocks = [sites.block for sites in accessed.attending if sites.block < last_block]
    if not blocks:
        raise DoesNotApplyError(f"No attention block comes before block {placed(last_block)}, which makes the spike")
    starts = [blocks[index] for index in np.unique(np.linspace(0, len(blocks) - 1, MAX_ROWS).astype(int))]
    silenced = [[], *([block for block in blocks if block >= start] for start in starts)]
    if len(blocks) > 1:
        silenced.append(blocks[:1])
    items = np.random.default_rng(SEED).permutation(vocabulary(accessed))[:ABLATED_ITEMS]
    shares = []
    for done, chosen in enumerate(silenced):
        progress("attention ablation", done, len(silenced))
        with editing(accessed, WithoutWrites(chosen)):
            magnitude, _ = alone(accessed, last_block, items)
        shares.append(float((magnitude > threshold).mean()))
    progress("attention ablation", len(silenced), len(silenced))
    if not shares[0]:
        raise DoesNotApplyError(
            f"None of {len(items)} items alone at position 0 exceeds {threshold:.4g} after block {placed(last_block)}, "
            "so there is nothing that attention could make"
        )
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
    earliest = None
    for start, share in zip(reversed(starts), reversed(shares), strict=True):
        if share < enough:
            break
        earliest = start
    return earliest


ITEMS = 256
"""Vocabulary items alone at position 0, drawn with a fixed seed; as many tokens of the text are the control."""
MAX_BLOCKS = 24


def first_token_map(scanned: Scan, progress: Progress) -> record.FirstTokenMap:
    """Alignment with s* before, in and after every early attention block. Raises DoesNotApplyError."""
    accessed = scanned.accessed
    step, channel, direction = step_direction(scanned)
    blocks = list(range(1, read_by(accessed, step) + 1, 2))[-MAX_BLOCKS:]
    if not blocks:
        raise DoesNotApplyError(f"No attention block comes before what the step-up block {placed(step)} reads")
    ids = np.random.default_rng(0).permutation(vocabulary(accessed))[:ITEMS]
    sample = sample_tokens(scanned, spikes=0, others=ITEMS)
    later = sample.rank > 0
    alone = torch.from_numpy(ids)[:, None]
    at_first = torch.arange(len(ids))
    first = _gathered(accessed, full_batch(alone), at_first, torch.zeros_like(at_first), blocks)
    rows, index = torch.unique(sample.sequence[later], return_inverse=True)
    text = Batch(scanned.ids[rows], valid_mask(scanned)[rows])
    rest = _gathered(accessed, text, index, sample.position[later], blocks)
    seen = probe(accessed)
    early = []
    for done, block in enumerate(blocks):
        progress("first-token map", done, len(blocks))
        gain, random, reason = _gain(accessed, block, seen, direction)
        early.append(
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
        blocks=early,
    )


PLACES = ("before", "write", "after")


def step_direction(scanned: Scan) -> tuple[int, int, Tensor]:
    """The main step-up FFN, the spike channel and the s* of that channel there. Raises DoesNotApplyError."""
    block = main_step_up(scanned.steps)
    if block is None:
        raise DoesNotApplyError("There is no step-up FFN block whose direction s* a token could be led to")
    ffns = gated_ffns(scanned.accessed, block)
    if len(ffns) != 1:
        raise DoesNotApplyError(f"The step-up block {placed(block)} is a mixture of experts: s* depends on the expert")
    channel = scanned.spike.channels[0]
    return block, channel, torch.from_numpy(spectrum(ffns[0], channel)[1][0]).float()


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


Part = TypeVar("Part")


def measure_trigger(scanned: Scan, progress: Progress) -> Steps[tuple[record.Trigger, dict[str, np.ndarray]]]:
    """The probe for any model; the rest where there are spikes to explain."""
    block = plateau_block(scanned)
    probed = probe_vocabulary(scanned.accessed, block, progress=progress)
    arrays = {"first": probed.first, "later": probed.later, "embedding_norm": probed.embedding_norm}
    probe = probe_record(scanned, block, probed)
    threshold = next(count.threshold for count in probe.counts if count.criterion == PRIMARY)
    fixed_map, map_reason = yield from _or_reason(lambda: first_token_map(scanned, progress))
    ablation, ablation_reason = yield from _or_reason(lambda: attention_ablation(scanned, block, threshold, progress))
    sinking, sinking_reason = yield from _or_reason(lambda: self_sinking(scanned, block))
    section = record.Trigger(
        probe=probe,
        first_token_map=fixed_map,
        first_token_reason=map_reason,
        self_sinking=sinking,
        self_sinking_reason=sinking_reason,
        attention_ablation=ablation,
        attention_ablation_reason=ablation_reason,
    )
    return section, arrays


def _or_reason(measure: Callable[[], Part | Steps[Part]]) -> Steps[tuple[Part | None, str | None]]:
    """A part of the section, or why it does not apply."""
    try:
        return (yield from in_steps(measure())), None
    except DoesNotApplyError as reason:
        return None, str(reason)


def plateau_block(scanned: Scan) -> int:
    """The last step-up block, or where the spike is read where no step is known; of a parallel layer its end."""
    steps = scanned.steps
    block = max(steps.step_up) if steps is not None and steps.step_up else spike_block(scanned)
    return block + block % 2 if scanned.accessed.parallel else block
