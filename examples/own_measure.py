"""A measure of your own in a scan: how much of the residual stream each block rewrites, at spike tokens and elsewhere.

Of each block, ||write|| / ||residual after it||, mean over tokens; dimensionless. At a spike token the blocks between
step-up and step-down can hardly change the direction of the state, and this says by how little they do.

Run: python examples/own_measure.py
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

import spikesink
from spikesink.access import Batch
from spikesink.analyse.anatomy.sample import spike_mask, valid_mask
from spikesink.analyse.passes import Pass, Progress, Scan, Steps
from spikesink.data import default_corpus, tokenise
from spikesink.errors import DoesNotApplyError
from spikesink.measures import Measure, register
from spikesink.records import Frozen, Section


class RewrittenBlock(Frozen):
    """One residual block; null where there are no such tokens."""

    block: int
    spike: float | None
    other: float | None


class Rewritten(Section):
    """The section of the record. Its name is what `measures=` and `--measure` take, and where it stands in the file."""

    section: ClassVar[str | None] = "rewritten"

    blocks: list[RewrittenBlock]
    spike_tokens: int
    other_tokens: int


@dataclass
class Shares:
    """Observer: sums over tokens, so that any number of batches costs the same memory."""

    spike: Tensor
    other: Tensor
    sums: dict[int, list[float]] = field(default_factory=dict)

    def on_batch(self, batch: Batch) -> None:
        self._rows = batch.rows
        self._writes: dict[int, Tensor] = {}

    def on_write(self, block: int, write: Tensor) -> None:
        self._writes[block] = write.float().norm(dim=-1)

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:  # the embedding, which no block wrote
            return
        share = (self._writes.pop(block) / hidden.float().norm(dim=-1)).cpu()
        sums = self.sums.setdefault(block, [0.0, 0.0])
        for index, tokens in enumerate((self.spike, self.other)):
            sums[index] += float(share[tokens[self._rows]].sum())


def measure_rewritten(scanned: Scan, _progress: Progress) -> Steps[tuple[Rewritten, dict[str, np.ndarray]]]:
    """The measure: from what a scan found to a section of the record and its large arrays (here none)."""
    accessed = scanned.accessed
    if accessed.post_norm or accessed.parallel:
        raise DoesNotApplyError("A write and the residual after it belong together in sequential pre-norm layers only")
    spike = spike_mask(scanned)
    shares = Shares(spike, valid_mask(scanned) & ~spike)
    yield Pass([shares])
    spikes, others = int(shares.spike.sum()), int(shares.other.sum())
    blocks = [
        RewrittenBlock(block=block, spike=_mean(sums[0], spikes), other=_mean(sums[1], others))
        for block, sums in sorted(shares.sums.items())
    ]
    return Rewritten(blocks=blocks, spike_tokens=spikes, other_tokens=others), {}


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


REWRITTEN = register(Measure("rewritten", "How much does each block rewrite?", run=measure_rewritten))


def main() -> None:
    model = spikesink.load()
    tokens = tokenise(default_corpus(), model.tokenizer, seq_len=64, sequences=8)
    record = spikesink.scan(model, tokens, measures=("rewritten",))
    known: Rewritten = record.rewritten
    print(f"{known.spike_tokens} spike tokens, {known.other_tokens} others")
    for row in known.blocks:
        spike = "none" if row.spike is None else f"{row.spike:.4f}"
        print(f"block {row.block:>3}: spike tokens {spike}, others {row.other:.4f}")


if __name__ == "__main__":
    main()
