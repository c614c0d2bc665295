"""Perplexity = exp(mean negative log-likelihood over all S (T - 1) predictions), streamed. Spec section 2."""

import math

import torch
from torch import Tensor

from spikesink.observer import Observer
from spikesink.positions import ranks

CHUNK_ELEMENTS = 2_000_000
"""Logits turned into float32 log-probabilities at once; 8 MB, so that the vocabulary never doubles in memory."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target; logits (batch, token, vocabulary), targets (batch, token)."""
    batch, tokens, vocabulary = logits.shape
    step = max(1, CHUNK_ELEMENTS // (batch * vocabulary))
    losses = torch.empty(batch, tokens, dtype=torch.float32, device=logits.device)
    for start in range(0, tokens, step):
        piece = logits[:, start : start + step].float()
        chosen = piece.gather(-1, targets[:, start : start + step, None])[..., 0]
        losses[:, start : start + step] = piece.logsumexp(-1) - chosen
    return losses


class LossMeasure(Observer):
    """Observer of logits; keeps one number per sequence, for intervals over sequences.

    skip: first predictions of every sequence that do not count.
    """

    def __init__(self, skip: int = 0) -> None:
        self.skip = skip
        self.loss_sums: list[float] = []
        self.predictions: list[int] = []

    def on_logits(self, logits: Tensor) -> None:
        batch = self.batch
        targets = batch.ids[:, 1:].to(logits.device)
        counted = batch.valid[:, 1:] & batch.valid[:, :-1] & (ranks(batch.valid)[:, 1:] > self.skip)
        if batch.scored is not None:
            counted &= batch.scored[:, 1:].to(counted.device)
        counted = counted.to(logits.device)
        losses = token_losses(logits[:, :-1], targets).double() * counted
        self.loss_sums += losses.sum(1).tolist()
        self.predictions += counted.sum(1).tolist()

    def sequence_losses(self) -> list[float]:
        """Mean loss in nats of each sequence."""
        return [total / max(1, count) for total, count in zip(self.loss_sums, self.predictions, strict=True)]

    def compute(self) -> float:
        """Perplexity over every prediction; dimensionless. Infinite where float64 overflows."""
        mean = sum(self.loss_sums) / sum(self.predictions)
        return math.exp(mean) if mean < 700 else math.inf
