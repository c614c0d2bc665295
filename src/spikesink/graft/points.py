"""One model on held-out text: everything that a graft is judged by, and how far two functions are apart."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access import access
from spikesink.access.linears import editing_inputs, find_linears
from spikesink.access.protocol import Progress
from spikesink.analyse import bootstrap
from spikesink.analyse.evaluation import evaluate
from spikesink.analyse.passes import default_batch_size
from spikesink.analyse.probe import probe
from spikesink.intervene.quantise import Scheme, quantised_inputs
from spikesink.measure.perplexity import LossMeasure
from spikesink.observer import Observer
from spikesink.records.graft import GraftPoint, Move

FP8_LARGEST = float(torch.finfo(torch.float8_e4m3fn).max)


class FirstTokenNorms(Observer):
    """Norm of the first token's residual over the median token's, by block, summed over sequences."""

    def __init__(self) -> None:
        self.sums: dict[int, float] = {}
        self.sequences = 0

    def on_residual(self, block: int, hidden: Tensor) -> None:
        norms = hidden.float().norm(dim=-1)
        self.sums[block] = self.sums.get(block, 0.0) + float((norms[:, 0] / norms.median(1).values).sum())
        self.sequences += len(hidden) if block == 0 else 0

    def compute(self) -> float:
        """The largest mean over sequences among blocks."""
        return max(self.sums.values()) / self.sequences


def measure_point(model: PreTrainedModel, ids: Tensor, stage: str, progress: Progress) -> GraftPoint:
    """Measure one model on ids (sequence, token). Raises NumericError and VerificationError."""
    accessed = access(model)
    norms, losses = FirstTokenNorms(), LossMeasure()
    progress(stage, 0, 3)
    readings = probe(accessed, ids, also=(norms, losses)).readings()
    progress(stage, 1, 3)
    per_sequence = losses.sequence_losses()
    sites = find_linears(accessed)
    int8 = evaluate(accessed, ids, quantised_inputs(accessed, sites, Scheme()), loss_only=True)
    progress(stage, 2, 3)
    fp8 = evaluate(accessed, ids, editing_inputs(sites, lambda _, entering: fake_fp8(entering)), loss_only=True)
    progress(stage, 3, 3)
    return GraftPoint(
        perplexity=bootstrap.estimate(bootstrap.perplexity, losses.loss_sums, losses.predictions),
        losses_nats=per_sequence,
        spike=readings["spike"],
        max_over_median=readings["max_over_median"],
        norm_ratio=norms.compute(),
        sink_ratio=readings["sink_ratio"],
        first_key_importance=readings["first_token_importance"],
        int8_nats=bootstrap.estimate(bootstrap.difference, int8.losses, per_sequence),
        fp8_nats=bootstrap.estimate(bootstrap.difference, fp8.losses, per_sequence),
    )


def fake_fp8(values: Tensor) -> Tensor:
    """Values rounded to float8 e4m3 under one scale for the tensor; the dtype stays."""
    scale = (values.abs().max() / FP8_LARGEST).clamp_min(torch.finfo(values.dtype).tiny)
    return (values / scale).to(torch.float8_e4m3fn).to(values.dtype) * scale


@torch.no_grad()
def moved(before: PreTrainedModel, after: PreTrainedModel, ids: Tensor) -> Move:
    """How far apart two models are on ids (sequence, token)."""
    total, kept, count = 0.0, 0, 0
    for batch in _batches(ids):
        one, other = (model(input_ids=batch, use_cache=False).logits.log_softmax(-1) for model in (before, after))
        total += float((one.exp() * (one - other)).sum())
        kept += int((one.argmax(-1) == other.argmax(-1)).sum())
        count += batch.numel()
    return Move(kl_nats=total / count, top1_kept=kept / count)


def _batches(ids: Tensor) -> Iterable[Tensor]:
    return ids.split(default_batch_size(ids.shape[1]))
