"""A softmax that may attend to nothing."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel, editing
from spikesink.intervene.base import Context, Found, intervention, seeded

CONTROL = "random_shrinkage"


@intervention("sinks", controls=(CONTROL,))
def softmax_off_by_one(accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0) -> Context:
    """Add 1 to every softmax's denominator: exp(s) / (1 + sum exp(s)); nothing is learned for it.

    The mass that goes nowhere is missing from the weights. Control: the same factors, dealt to random queries and
    heads of the block. Miller 2023; Gu et al. 2025 train with it.
    """
    return editing(accessed, OffByOneEditor(control, seed))


class OffByOneEditor:
    """Shrinks each query's weights by Z / (1 + Z), Z the sum of its exponentials."""

    def __init__(self, control: str | None, seed: int) -> None:
        self.control = control
        self._generator = seeded(seed)
        self._factor: Tensor | None = None

    def edit_scores(self, block: int, query_start: int, key_start: int, scores: Tensor) -> Tensor:
        self._factor = torch.sigmoid(scores.float().logsumexp(-1, keepdim=True))
        return scores

    def edit_weights(self, block: int, query_start: int, key_start: int, weights: Tensor) -> Tensor:
        assert self._factor is not None
        factor = self._factor
        if self.control == CONTROL:
            order = torch.randperm(factor.numel(), generator=self._generator).to(factor.device)
            factor = factor.flatten()[order].view_as(factor)
        return weights * factor
