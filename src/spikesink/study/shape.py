"""How extreme a spike is, and in how few channels, at the block of the largest residual; `scan` counts its tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikesink.observer import Observer

TOP = 3


@dataclass
class _Residual:
    """Per sequence and token, of one residual."""

    largest: list[Tensor] = field(default_factory=list)
    """(sequence, token): largest magnitude of a token."""
    norm: list[Tensor] = field(default_factory=list)
    """(sequence, token)."""
    median: list[Tensor] = field(default_factory=list)
    """(sequence,): of all magnitudes."""
    within: list[Tensor] = field(default_factory=list)
    """(sequence,): largest over median magnitude within the token of the sequence's largest."""
    energy: list[Tensor] = field(default_factory=list)
    """(sequence,): that token's squared norm in its three largest channels, as a share."""


class SpikeShape(Observer):
    """Watches residuals of sequences without padding; keeps two numbers a token and block."""

    def __init__(self) -> None:
        super().__init__()
        self.residuals: dict[int, _Residual] = {}

    def on_residual(self, block: int, hidden: Tensor) -> None:
        """hidden (sequence, token, channel) after the block; the embedding, block 0, does not count."""
        if block == 0:
            return
        kept = self.residuals.setdefault(block, _Residual())
        magnitude = hidden.detach().float().abs().cpu()
        largest = magnitude.amax(-1)
        top = magnitude[torch.arange(len(magnitude)), largest.argmax(1)]
        kept.largest.append(largest)
        kept.norm.append(magnitude.norm(dim=-1))
        kept.median.append(magnitude.flatten(1).median(1).values)
        kept.within.append(_over(top.amax(1), top.median(1).values))
        kept.energy.append(_over(top.square().topk(min(TOP, top.shape[1]), 1).values.sum(1), top.square().sum(1)))

    def compute(self) -> dict[str, float]:
        """By the names of `records.study.Measured`, at the block of the largest magnitude, the earlier of equals."""
        peaks = {block: float(torch.cat(kept.largest).max()) for block, kept in self.residuals.items()}
        block = max(peaks, key=lambda one: (peaks[one], -one))
        kept, peak = self.residuals[block], torch.tensor(peaks[block])
        largest, norm = torch.cat(kept.largest), torch.cat(kept.norm)
        return {
            "spike_max_over_median": float(_over(peak, torch.cat(kept.median).mean())),
            "within_token": float(torch.cat(kept.within).mean()),
            "top3_energy": float(torch.cat(kept.energy).mean()),
            "norm_ratio": float(_over(norm.amax(1), norm.median(1).values).mean()),
            "bos_over_rest": float(_over(largest[:, 0], largest[:, 1:].amax(1)).mean()),
            "sequence_tokens": largest.shape[1],
        }


def _over(above: Tensor, below: Tensor) -> Tensor:
    """A ratio that stays finite where what is below is 0."""
    return above / below.clamp_min(1e-20)
