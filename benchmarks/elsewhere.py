"""Sinks counted in what a query gives to tokens at all: heads that have somewhere else to attend give them little.

Run: python benchmarks/elsewhere.py FOLDER ..., each the `--work` folder of a study's cells ("work/beyond-sinks-700"). A
markdown row a variant, mean and standard deviation over its seeds, on 256 held-out sequences: what a query gives to
tokens in all, and the sink ratio (eq. 27-28) of three alphas: the weights themselves; each query's weights over what it
gives to tokens; the weights of all queries over what they give together. Under plain softmax the three are one.
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
from spikesink.positions import half_of, uniform_first_key

SEQUENCES = 256


class Shares(Observer):
    """By block, summed over queries, (sequence, head, key): weights, and weights over what their query gives tokens."""

    def __init__(self) -> None:
        self.weights: dict[int, Tensor] = {}
        self.shares: dict[int, Tensor] = {}

    def on_attention_rows(self, rows: AttentionRows) -> None:
        weights = rows.weights.double()
        given = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        for sums, values in ((self.weights, weights), (self.shares, weights / given)):
            empty = torch.zeros(*weights.shape[:2], rows.total_queries, dtype=torch.float64)
            sums.setdefault(rows.block, empty)[..., rows.keys] += values.sum(2)


def figures(cell: Path) -> tuple[float, ...]:
    """Of one trained model: given to tokens, three sink ratios, and the first key's share of what is given."""
    ids = torch.from_numpy(np.load(cell / "held_out.npy")[:SEQUENCES].astype(np.int64))
    accessed, shares = load(str(cell / "model")), Shares()
    with observing(accessed, [shares]):
        watch(accessed, full_batch(ids))
    weights, by_query = (torch.cat(list(sums.values()), 1) for sums in (shares.weights, shares.shares))
    together, tokens = weights / weights.sum(-1, keepdim=True), ids.shape[1]
    epsilon, half = SinkCriteria().epsilon, half_of(tokens)
    ratios = [
        float((alpha[..., :half].amax(-1) > epsilon).double().mean())
        for alpha in (weights / tokens, by_query / tokens, together)
    ]
    return float((weights.sum(-1) / tokens).mean()), *ratios, float(together[..., 0].mean()), uniform_first_key(tokens)


def main() -> None:
    print(
        "| variant | given to tokens | sink ratio: weights | share of each query's | share of all | first key's share |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in map(Path, sys.argv[1:]):
        for variant in dict.fromkeys(path.name.rpartition("-")[0] for path in sorted(folder.glob("*-*"))):
            cells = sorted(folder.glob(f"{variant}-[0-9]*"))
            values = np.array([figures(cell) for cell in cells if (cell / "model").is_dir()])
            shown = zip(values.mean(0)[:5], values.std(0, ddof=1)[:5], strict=True)
            columns = " | ".join(f"{mean:.1%} ± {spread:.1%}" for mean, spread in shown)
            print(f"| {variant} (n = {len(values)}) | {columns} (uniform {values[0, 5]:.1%}) |", flush=True)


if __name__ == "__main__":
    main()
