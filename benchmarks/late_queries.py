"""Are sinks gone where a loss stands, or only where none does? Sinks counted apart for early and late queries.

Run: python benchmarks/late_queries.py FOLDER ..., each the `--work` folder of a study's cells (work/context-sinks-700).
A markdown row a variant, mean and standard deviation over its seeds, on 256 held-out sequences of the folder's shortest
context: the sink ratio (eq. 27-28) over all queries, over those of the first half and over those of the second half.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikesink import load
from spikesink.access import full_batch, observing, watch
from spikesink.measure.sinks import SinkCriteria
from spikesink.observer import AttentionRows, Observer
from spikesink.positions import half_of

SEQUENCES = 256


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


def held_out(cell: Path) -> np.ndarray:
    return np.load(cell / "held_out.npy")[:SEQUENCES].astype(np.int64)


def ratios(cell: Path, tokens: int) -> tuple[float, float, float]:
    """Of one trained model: the sink ratio over all queries, the early and the late ones."""
    ids = torch.from_numpy(held_out(cell)[:, :tokens])
    accessed, halves = load(str(cell / "model")), Halves()
    with observing(accessed, [halves]):
        watch(accessed, full_batch(ids))
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
        for variant in dict.fromkeys(path.name.rpartition("-")[0] for path in sorted(folder.glob("*-*"))):
            cells = sorted(folder.glob(f"{variant}-[0-9]*"))
            values = np.array([ratios(cell, shortest) for cell in cells if (cell / "model").is_dir()])
            shown = zip(values.mean(0), values.std(0, ddof=1), strict=True)
            columns = " | ".join(f"{mean:.1%} ± {spread:.1%}" for mean, spread in shown)
            print(f"| {variant} (n = {len(values)}) | {columns} |", flush=True)


if __name__ == "__main__":
    main()
