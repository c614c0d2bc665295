"""The vocabulary probe: which items spike alone at position 0, and which later. Spec 2.3; Sun et al. 2026, table 2."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, observing
from spikesink.access.capture import run_until
from spikesink.analyse.passes import Progress, Scan, no_progress
from spikesink.observer import Observer, full_batch
from spikesink.records.sections import trigger as record

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


def probe_record(scanned: Scan, block: int, probed: Probed) -> record.VocabularyProbe:
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
