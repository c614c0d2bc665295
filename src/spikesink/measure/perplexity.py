"""Perplexity = exp(mean negative log-likelihood over all S (T - 1) predictions), streamed. Spec section 2."""

import math

import torch
from torch import Tensor

from spikesink.observer import Batch, Observer
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
        chosen = piece.log_softmax(-1).gather(-1, targets[:, start : start + step, None])
        losses[:, start : start + step] = -chosen[..., 0]
    return losses


class LossMeasure(Observer):
    """Observer of logits; keeps one number per sequence, for intervals over sequences.

    skip: first predictions of every sequence that do not count.
    """

    def __init__(self, skip: int = 0) -> None:
        self.skip = skip
        self.loss_sums: list[float] = []
        self.predictions: list[int] = []

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        counted = batch.valid[:, 1:] & batch.valid[:, :-1] & (ranks(batch.valid)[:, 1:] > self.skip)
        self._counted = counted if batch.scored is None else counted & batch.scored[:, 1:].to(counted.device)
        self._first = len(self.loss_sums)
        self._log_sum: Tensor | None = None
        self.loss_sums += [0.0] * len(batch.ids)
        self.predictions += self._counted.sum(1).tolist()

    def on_logits(self, logits: Tensor, start: int) -> None:
        # The last position predicts nothing that is there.
        targets = self.batch.ids[:, start + 1 : start + 1 + logits.shape[1]].to(logits.device)
        self._add(token_losses(logits[:, : targets.shape[1]], targets), start)

    def on_logit_columns(self, logits: Tensor, start: int) -> None:
        piece, width = logits[:, :-1].float(), logits.shape[-1]
        places = self.batch.ids[:, 1:].to(logits.device) - start
        log_sum = piece.logsumexp(-1).double()
        own = piece.gather(-1, places.clamp(0, width - 1)[..., None])[..., 0].double()
        own = own.where((places >= 0) & (places < width), 0.0)
        if self._log_sum is None:
            self._log_sum, self._own = log_sum, own
        else:
            self._log_sum, self._own = torch.logaddexp(self._log_sum, log_sum), self._own + own

    def on_batch_end(self) -> None:
        if self._log_sum is not None:
            self._add(self._log_sum - self._own, 0)

    def _add(self, losses: Tensor, start: int) -> None:
        """Losses (batch, token) of consecutive predictions, of which the batch's mask says which count."""
        counted = self._counted[:, start : start + losses.shape[1]].to(losses.device)
        for row, total in enumerate(losses.double().where(counted, 0.0).sum(1).tolist(), start=self._first):
            self.loss_sums[row] += total

    def sequence_losses(self) -> list[float]:
        """Mean loss in nats of each sequence; NaN where it predicts nothing, as with a single token."""
        both = zip(self.loss_sums, self.predictions, strict=True)
        return [total / count if count else math.nan for total, count in both]

    def compute(self) -> float:
        """Perplexity over every prediction; dimensionless. Infinite where float64 overflows."""
        mean = sum(self.loss_sums) / sum(self.predictions)
        return math.exp(mean) if mean < 700 else math.inf
