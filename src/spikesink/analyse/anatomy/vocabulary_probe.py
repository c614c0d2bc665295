"""Every vocabulary item alone at position 0, and behind random prefixes: who becomes a spike token. Spec 2.3, table 2.

Only the blocks up to the plateau are computed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, full_batch, observing
from spikesink.access.capture import run_until
from spikesink.analyse.passes import Progress, no_progress
from spikesink.observer import Observer

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
