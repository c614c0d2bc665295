"""The five properties of massive activations as numbers. Sun et al. 2026, section 2; spec section 2.

(i) intermediate layers only, (ii) few channels, (iii) these channels spike together, (iv) at almost fixed ratios to one
another, (v) in few tokens.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spikesink.observer import Observer
from spikesink.records.intervals import Interval
from spikesink.records.sections.properties import TokenOverlap


@dataclass(frozen=True)
class PropertyCriteria:
    """The value that each property must stay at or below, or reach (`together_min`)."""

    edge_share_max: float = 0.25
    """(i) Largest value after the first or last layer, as a share of the spike."""
    channel_share_max: float = 0.01
    """(ii) Share of channels that are spike channels."""
    together_min: float = 0.9
    """(iii) Mean correlation of the channels' magnitudes over spike and other tokens."""
    ratio_variation_max: float = 0.25
    """(iv) Coefficient of variation of a channel's ratio to the spike channel over spike tokens."""
    token_share_max: float = 0.05
    """(v) Share of tokens that are spike tokens."""


LAXER = 1.25
"""How far limits are moved to see whether a verdict hangs on them: by a quarter."""


def limits_around(limit: float, *, at_least: bool) -> tuple[float, float]:
    """The stricter and the laxer limit; of a correlation, by its distance from 1."""
    if at_least:
        return 1 - (1 - limit) / LAXER, 1 - (1 - limit) * LAXER
    return limit / LAXER, limit * LAXER


def answer(value: float, limit: float, interval: Interval | None, *, at_least: bool) -> str:
    """`holds` or `does not hold`; `borderline` if another limit or the ends of the interval say otherwise."""
    stricter, laxer = limits_around(limit, at_least=at_least)
    cases = [(value, limit), (value, stricter), (value, laxer)]
    cases += [(end, limit) for end in (interval.low, interval.high) if end is not None] if interval else []
    verdicts = {one >= other if at_least else one <= other for one, other in cases}
    return "borderline" if len(verdicts) > 1 else "holds" if verdicts.pop() else "does not hold"


class SequenceMaxima(Observer):
    """Largest magnitude after every block, sequence by sequence: `maxima[block]` (sequence,)."""

    def __init__(self, sequences: int) -> None:
        self.maxima: dict[int, np.ndarray] = {}
        self.sequences = sequences

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == 0:
            return
        largest = hidden.abs().amax(-1).masked_fill(~self.batch.valid.to(hidden.device), 0).amax(-1)
        kept = self.maxima.setdefault(block, np.zeros(self.sequences))
        kept[self.batch.rows] = largest.double().cpu().numpy()


def edge_share(maxima: dict[int, float]) -> float:
    """Largest value after the first layer (block 2) or the last block, over the largest of all blocks."""
    blocks = sorted(maxima)
    first = [block for block in blocks if block <= 2]
    edges = [*first, blocks[-1]]
    return max(maxima[block] for block in edges) / max(maxima.values())


def together(values: Float[np.ndarray, "token channel"]) -> float | None:
    """Mean Pearson correlation of magnitudes over pairs of channels; 1 = they rise in the same tokens."""
    magnitudes = np.abs(values.astype(np.float64))
    if values.shape[1] < 2 or len(values) < 3 or (magnitudes.std(0) == 0).any():
        return None
    correlations = np.corrcoef(magnitudes.T)
    return float(correlations[np.triu_indices(values.shape[1], 1)].mean())


def ratio_variation(values: Float[np.ndarray, "token channel"]) -> float | None:
    """Coefficient of variation of channel / channel 0 over tokens, averaged over the other channels. 0 = fixed."""
    if values.shape[1] < 2 or len(values) < 2 or (values[:, 0] == 0).any():
        return None
    ratios = values[:, 1:].astype(np.float64) / values[:, :1]
    means = np.abs(ratios.mean(0))
    return float((ratios.std(0, ddof=1) / means).mean()) if (means > 0).all() else None


DRAWS = 1000


def overlap(spike: Tensor, sink: Tensor, eligible: Tensor, seed: int = 0) -> TokenOverlap:
    """Overlap of two masks of one shape within the eligible tokens, against random sets of the same sizes.

    The number of common tokens of a random set is hypergeometric.
    """
    spike, sink = spike & eligible, sink & eligible
    n, spikes, sinks, both = (int(mask.sum()) for mask in (eligible, spike, sink, spike & sink))
    if spikes == 0 or sinks == 0:
        unknown = dict.fromkeys(("precision", "recall", "jaccard", "chance_jaccard", "chance_high", "p_value"))
        return TokenOverlap(n=n, spikes=spikes, sinks=sinks, both=both, **unknown)
    drawn = np.random.default_rng(seed).hypergeometric(spikes, n - spikes, sinks, DRAWS)
    chance = drawn / (spikes + sinks - drawn)
    return TokenOverlap(
        n=n,
        spikes=spikes,
        sinks=sinks,
        both=both,
        precision=both / spikes,
        recall=both / sinks,
        jaccard=both / (spikes + sinks - both),
        chance_jaccard=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.975)),
        p_value=float((1 + (drawn >= both).sum()) / (DRAWS + 1)),
    )
