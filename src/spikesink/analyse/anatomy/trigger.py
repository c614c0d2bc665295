"""Which tokens spike, and why: vocabulary probe, alignment with s*, early attention left out, delimiters. Spec 2.3."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from spikesink.access import AccessedModel, editing, observing
from spikesink.access.capture import run_until
from spikesink.access.weights import NormScale, attention_weights, gated_ffns, norm_scale, probe
from spikesink.analyse.anatomy.sample import sample_tokens, valid_mask
from spikesink.analyse.passes import Pass, Progress, Scan, Steps, in_steps, no_progress
from spikesink.errors import DoesNotApplyError
from spikesink.measure.amplifier import spectrum
from spikesink.measure.geometry import alignment, map_gain, random_cosine, random_gain
from spikesink.measure.lifecycle import main_step_up
from spikesink.measure.states import Gather
from spikesink.measure.statistics import bootstrap_mean
from spikesink.observer import AttentionRows, Batch, Observer, full_batch
from spikesink.positions import placed, ranks
from spikesink.records.intervals import Interval
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
    nothing spikes or no attention block comes before.
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
    channel = scanned.spike.peak.channel
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


MAX_SEQUENCES = 256
CLASSES = ("first", "delimiter", "other")


def self_sinking(scanned: Scan, last_block: int) -> Steps[list[record.SelfSinkingBlock]]:
    """Per token class, for every attention block up to `last_block`. Raises DoesNotApplyError."""
    accessed = scanned.accessed
    if accessed.tokenizer is None:
        raise DoesNotApplyError("Without a tokenizer it is not known which tokens are delimiters")
    ids, valid = scanned.ids[:MAX_SEQUENCES], valid_mask(scanned)[:MAX_SEQUENCES]
    blocks = [sites.block for sites in accessed.attending if sites.block <= last_block]
    scales = {block: norm_scale(accessed.blocks()[block - 1], accessed.d_model) for block in blocks}
    known = {block: scale for block, scale in scales.items() if scale is not None}
    if not known:
        raise DoesNotApplyError("The attention blocks have no norm at their input, so there is no gamma to align with")
    watched = _SelfAttention(blocks, known, (len(ids), ids.shape[1]))
    yield Pass([watched], slice(MAX_SEQUENCES))
    classes = _classes(scanned, ids, valid)
    return [
        record.SelfSinkingBlock(block=block, classes=[_class(watched, block, name, classes[name]) for name in CLASSES])
        for block in known
    ]


def is_delimiter(text: str) -> bool:
    """No letter and no digit: punctuation, brackets, white space, line ends."""
    return bool(text) and not any(character.isalnum() for character in text)


def _classes(scanned: Scan, ids: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Masks of the shape of ids; the first token counts as nothing else."""
    known = {int(token): is_delimiter(scanned.accessed.token_text(int(token))) for token in torch.unique(ids)}
    delimiter = torch.tensor([[known[int(token)] for token in row] for row in ids])
    first = valid & (ranks(valid) == 0)
    later = valid & ~first
    return {"first": first, "delimiter": later & delimiter, "other": later & ~delimiter}


@dataclass
class _SelfAttention(Observer):
    """Per token and block, self-attention (mean over heads), post-norm magnitude and cosine with gamma."""

    blocks: list[int]
    scales: dict[int, NormScale]
    shape: tuple[int, int]
    values: dict[str, dict[int, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {
            name: {block: torch.zeros(self.shape) for block in self.blocks} for name in ("self", "magnitude", "cosine")
        }

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block + 1 not in self.scales:
            return
        scale = self.scales[block + 1]
        magnitude = (scale.norm(hidden) * scale.gain).norm(dim=-1) / hidden.shape[-1] ** 0.5
        cosine = cosine_similarity(hidden.float(), scale.gain, dim=-1)
        self.values["magnitude"][block + 1][self.batch.rows] = magnitude.cpu()
        self.values["cosine"][block + 1][self.batch.rows] = cosine.cpu()

    def on_attention_rows(self, rows: AttentionRows) -> None:
        if rows.block in self.blocks:
            diagonal = rows.weights.mean(1).diagonal(offset=rows.query_start - rows.key_start, dim1=1, dim2=2)
            self.values["self"][rows.block][self.batch.rows, rows.queries] = diagonal.cpu()


def _class(watched: _SelfAttention, block: int, name: str, members: Tensor) -> record.TokenClass:
    counts = members.sum(1).numpy()
    seen = torch.arange(1, members.shape[1] + 1).expand_as(members)[members]

    def mean(quantity: str) -> Interval:
        totals = (watched.values[quantity][block] * members).sum(1).numpy()
        return bootstrap_mean(totals / np.maximum(counts, 1), counts)

    return record.TokenClass(
        name=name,
        tokens=int(counts.sum()),
        self_attention=mean("self"),
        uniform=float((1.0 / seen).mean()) if len(seen) else None,
        norm_magnitude=mean("magnitude"),
        gamma_cosine=mean("cosine"),
    )


LATER_LENGTH = 16
"""Tokens of a control sequence: one in front, then items, each behind a random prefix."""
BATCH_TOKENS = 512
SEED = 0


@dataclass(frozen=True)
class Probed:
    """Per item (item,): largest magnitude after the block, alone and behind a prefix; norm of the embedding H[1]."""

    ids: np.ndarray
    first: np.ndarray
    later: np.ndarray
    embedding_norm: np.ndarray


class _Peak(Observer):
    """Observer of the largest magnitude after a block and of the embedding's norm, (batch, token)."""

    def __init__(self, block: int) -> None:
        self.block = block

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:
            self.embedding_norm = hidden.float().norm(dim=-1).cpu().numpy()
        if block == self.block:
            self.peak = hidden.float().abs().amax(-1).cpu().numpy()


def probe_vocabulary(
    accessed: AccessedModel,
    block: int,
    ids: np.ndarray | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = no_progress,
) -> Probed:
    """Probe these items, or the whole vocabulary. ids: (item,) distinct; block: 1-based.

    The control puts the items in random order into sequences of LATER_LENGTH, the first place taken by a random item,
    so that every item is measured once behind a random prefix.
    """
    items = np.arange(vocabulary(accessed)) if ids is None else np.asarray(ids, dtype=np.int64)
    behind = _behind(items, batch_tokens)
    total = -(-len(items) // batch_tokens) + len(behind)
    first, norms = alone(accessed, block, items, batch_tokens=batch_tokens, progress=progress, total=total)
    later = np.empty(len(items), dtype=np.float32)
    peak = _Peak(block)
    with observing(accessed, [peak]):
        for done, (rows, places) in enumerate(behind, start=1):
            run_until(accessed, full_batch(torch.from_numpy(rows)), block)
            counts = places >= 0
            later[places[counts]] = peak.peak[counts]
            progress("vocabulary probe", total - len(behind) + done, total)
    return Probed(items, first, later, norms)


def alone(
    accessed: AccessedModel,
    block: int,
    items: np.ndarray,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = no_progress,
    total: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Every item as a sequence of its own: largest magnitude after the block, and norm of the embedding, each (item,).

    total: steps of the whole measure, for its progress; default the steps of this function.
    """
    pieces = _pieces(items, batch_tokens)
    peak, magnitudes, norms = _Peak(block), [], []
    with observing(accessed, [peak]):
        for done, piece in enumerate(pieces, start=1):
            run_until(accessed, full_batch(torch.from_numpy(piece)[:, None]), block)
            magnitudes.append(peak.peak[:, 0])
            norms.append(peak.embedding_norm[:, 0])
            progress("vocabulary probe", done, total or len(pieces))
    return np.concatenate(magnitudes), np.concatenate(norms)


def vocabulary(accessed: AccessedModel) -> int:
    """Items that the tokenizer knows; embedding rows beyond it are padding that no text reaches."""
    known = accessed.vocab_size if accessed.tokenizer is None else len(accessed.tokenizer)
    return min(known, accessed.vocab_size)


def _behind(items: np.ndarray, batch_tokens: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of sequences in which every item stands once behind a prefix; place -1 = does not count."""
    generator = np.random.default_rng(SEED)
    per_row = LATER_LENGTH - 1
    order = generator.permutation(len(items))
    missing = -len(order) % per_row
    filled = np.concatenate([order, np.full(missing, -1)]).reshape(-1, per_row)
    front = generator.integers(0, len(items), len(filled))
    rows = np.concatenate([items[front][:, None], items[np.maximum(filled, 0)]], axis=1)
    places = np.concatenate([np.full((len(filled), 1), -1), filled], axis=1)
    pieces = _pieces(np.arange(len(rows)), max(1, batch_tokens // LATER_LENGTH))
    return [(rows[chosen], places[chosen]) for chosen in pieces]


def _pieces(index: np.ndarray, size: int) -> list[np.ndarray]:
    return [index[start : start + size] for start in range(0, len(index), size)]


PRIMARY = "sun2024"
ABSOLUTE = 1000.0
LISTED_EXCEPTIONS = 64
Part = TypeVar("Part")


def measure_trigger(scanned: Scan, progress: Progress) -> Steps[tuple[record.Trigger, dict[str, np.ndarray]]]:
    """The probe for any model; the rest where there are spikes to explain."""
    block = plateau_block(scanned)
    probed = probe_vocabulary(scanned.accessed, block, progress=progress)
    arrays = {"first": probed.first, "later": probed.later, "embedding_norm": probed.embedding_norm}
    probe = _probe_record(scanned, block, probed)
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
    """The last step-up block, or the block of the largest value where no step is known."""
    steps = scanned.steps
    return max(steps.step_up) if steps is not None and steps.step_up else scanned.spike.block


def _probe_record(scanned: Scan, block: int, probed: Probed) -> record.VocabularyProbe:
    statistics, criteria = scanned.spikes.residuals[block], scanned.criteria.spikes
    thresholds = {
        "sun2024": max(criteria.sun2024_absolute, criteria.sun2024_ratio * statistics.median),
        "share_of_spike": criteria.share_of_spike_min * statistics.maximum,
        "absolute_1000": ABSOLUTE,
    }
    below = np.nonzero(~(probed.first > thresholds[PRIMARY]))[0]
    listed = below[np.argsort(probed.first[below], kind="stable")][:LISTED_EXCEPTIONS]
    return record.VocabularyProbe(
        block=block,
        items=len(probed.ids),
        later_length=LATER_LENGTH,
        ordinary_median=statistics.median,
        criterion=PRIMARY,
        counts=[_count(name, threshold, probed) for name, threshold in thresholds.items()],
        first_median=float(np.median(probed.first)),
        later_median=float(np.median(probed.later)),
        exceptions=[
            record.ProbeException(
                token_id=int(probed.ids[index]),
                text=scanned.accessed.token_text(int(probed.ids[index])),
                value=float(probed.first[index]),
                embedding_norm=float(probed.embedding_norm[index]),
            )
            for index in listed
        ],
        exception_count=len(below),
        median_embedding_norm=float(np.median(probed.embedding_norm)),
    )


def _count(name: str, threshold: float, probed: Probed) -> record.ProbeCount:
    first, later = int((probed.first > threshold).sum()), int((probed.later > threshold).sum())
    return record.ProbeCount(
        criterion=name,
        threshold=threshold,
        first_count=first,
        first_ratio=first / len(probed.ids),
        later_count=later,
        later_ratio=later / len(probed.ids),
    )
