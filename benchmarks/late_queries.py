"""Are sinks gone where a loss stands, or only where none does? Sinks counted apart for early and late queries.

Run: python benchmarks/late_queries.py FOLDER ..., each the `--work` folder of a study's cells (work/context-sinks-700).
A markdown row a variant, mean and standard deviation over its seeds, on 256 held-out sequences of the folder's shortest
context: the sink ratio (eq. 27-28) over all queries, over those of the first half and over those of the second half.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from cells import by_variant, held_out, show, spread
from torch import Tensor

from spikesink.measure.sinks import SinkCriteria
from spikesink.observer import AttentionRows, Observer
from spikesink.positions import half_of


class Halves(Observer):
    """By block, weights summed over the queries of each half: (half, sequence, head, key)."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}

    def on_attention_rows(self, rows: AttentionRows) -> None:
        weights, tokens = rows.weights.double(), rows.total_queries
        sums = self.sums.setdefault(rows.block, torch.zeros(2, *weights.shape[:2], tokens, dtype=torch.float64))
        late = torch.arange(tokens)[rows.queries] >= tokens // 2
        for half, chosen in enumerate((~late, late)):
            sums[half][..., rows.keys] += weights[:, :, chosen].sum(2)


def ratios(cell: Path, tokens: int) -> tuple[float, float, float]:
    """Of one trained model: the sink ratio over all queries, the early and the late ones."""
    halves = Halves()
    show(cell, held_out(cell)[:, :tokens], halves)
    early, late = torch.cat(list(halves.sums.values()), 2)
    alphas = (early + late) / tokens, early / (tokens // 2), late / (tokens - tokens // 2)
    keys, epsilon = half_of(tokens), SinkCriteria().epsilon
    every, first, second = (float((alpha[..., :keys].amax(-1) > epsilon).double().mean()) for alpha in alphas)
    return every, first, second


def main() -> None:
    print("| variant | sink ratio | early queries | late queries |")
    print("| --- | --- | --- | --- |")
    for folder in map(Path, sys.argv[1:]):
        shortest = min(held_out(path.parent).shape[1] for path in folder.glob("*/held_out.npy"))
        for variant, values in by_variant(folder, partial(ratios, tokens=shortest)):
            print(f"| {variant} (n = {len(values)}) | {spread(values)} |", flush=True)


if __name__ == "__main__":
    main()
