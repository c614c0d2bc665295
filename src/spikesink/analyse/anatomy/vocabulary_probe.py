"""Every vocabulary item alone at position 0, and behind random prefixes: who becomes a spike token. Spec 2.3, table 2.

Only the blocks up to the plateau are computed. Partial results are kept in a file, so that a run that was interrupted
goes on where it stopped.
"""

import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, full_batch, observing
from spikesink.access.capture import run_until
from spikesink.access.checkpoint import cache_folder
from spikesink.access.fingerprint import fingerprint
from spikesink.analyse.passes import Progress, no_progress

LATER_LENGTH = 16
"""Tokens of a control sequence: one in front, then items, each behind a random prefix."""
BATCH_TOKENS = 512
SAVE_SECONDS = 5.0
SEED = 0
VERSION = 1


@dataclass(frozen=True)
class Probed:
    """Per item (item,): largest magnitude after the block, alone and behind a prefix; norm of the embedding H[1]."""

    ids: np.ndarray
    first: np.ndarray
    later: np.ndarray
    embedding_norm: np.ndarray


class _Peak:
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
    partial = _Partial(accessed, block, items, batch_tokens)
    first, later = _alone(items, batch_tokens), _behind(items, batch_tokens)
    total = len(first) + len(later)
    peak = _Peak(block)
    with observing(accessed, [peak]):
        try:
            for step, (rows, places) in enumerate([*first, *later]):
                if step >= partial.done:
                    run_until(accessed, full_batch(torch.from_numpy(rows)), block)
                    if step < len(first):
                        partial.first[places], partial.norms[places] = peak.peak[:, 0], peak.embedding_norm[:, 0]
                    else:
                        known = places >= 0
                        partial.later[places[known]] = peak.peak[known]
                    partial.step(step + 1)
                progress("vocabulary probe", step + 1, total)
        except BaseException:
            partial.save()
            raise
    partial.remove()
    return Probed(items, partial.first, partial.later, partial.norms)


def vocabulary(accessed: AccessedModel) -> int:
    """Items that the tokenizer knows; embedding rows beyond it are padding that no text reaches."""
    known = accessed.vocab_size if accessed.tokenizer is None else len(accessed.tokenizer)
    return min(known, accessed.vocab_size)


def _alone(items: np.ndarray, batch_tokens: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches (rows of ids, index of the item at each place), one item a sequence."""
    places = np.arange(len(items))
    return [(items[chosen][:, None], chosen) for chosen in _pieces(places, batch_tokens)]


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


class _Partial:
    """What is measured so far, in memory and in a file named after the model and the settings."""

    def __init__(self, accessed: AccessedModel, block: int, items: np.ndarray, batch_tokens: int) -> None:
        settings = {
            "version": VERSION,
            "model": fingerprint(accessed),
            "dtype": str(accessed.dtype),
            "block": block,
            "items": hashlib.sha256(items.tobytes()).hexdigest(),
            "batch_tokens": batch_tokens,
            "later_length": LATER_LENGTH,
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        self.path = cache_folder() / "vocabulary_probe" / f"{key}.npz"
        self.first, self.later, self.norms = (np.full(len(items), np.nan, dtype=np.float32) for _ in range(3))
        self.done = 0
        self._saved = time.monotonic()
        self._read()

    def step(self, done: int) -> None:
        self.done = done
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write atomically; a cache that cannot be written costs only the resumption."""
        self._saved = time.monotonic()
        if self.done == 0:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".npz")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, first=self.first, later=self.later, norms=self.norms, done=np.array(self.done))
                os.replace(temporary, self.path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError:
            return

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as kept:
                first, later, norms, done = (kept[name] for name in ("first", "later", "norms", "done"))
        # A damaged archive raises whatever its parts raise; each part has a checksum.
        except Exception:
            return
        like = (self.first.shape, self.first.dtype)
        if all((array.shape, array.dtype) == like for array in (first, later, norms)) and done.shape == ():
            self.first, self.later, self.norms, self.done = first, later, norms, int(done)
