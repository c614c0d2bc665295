"""Sinks counted in what a query gives to tokens at all: heads that have somewhere else to attend give them little.

Run: python benchmarks/elsewhere.py FOLDER ..., each the `--work` folder of a study's cells ("work/beyond-sinks-700"). A
markdown row a variant, mean and standard deviation over its seeds, on 256 held-out sequences: what a query gives to
tokens in all, and the sink ratio (eq. 27-28) of three alphas: the weights themselves; each query's weights over what it
gives to tokens; the weights of all queries over what they give together. Under plain softmax the three are one.
"""

import sys
from pathlib import Path

import torch
from cells import by_variant, held_out, show, spread
from torch import Tensor

from spikesink.measure.sinks import SinkCriteria
from spikesink.observer import AttentionRows, Observer
from spikesink.positions import half_of, uniform_first_key


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
    ids, shares = held_out(cell), Shares()
    show(cell, ids, shares)
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
        for variant, values in by_variant(folder, figures):
            row = f"{spread(values[:, :5])} (uniform {values[0, 5]:.1%})"
            print(f"| {variant} (n = {len(values)}) | {row} |", flush=True)


if __name__ == "__main__":
    main()
