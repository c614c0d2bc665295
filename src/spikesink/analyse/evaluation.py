"""Evaluation passes under interventions: loss, sinks and spike of every sequence, each pass run once."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikesink import bootstrap
from spikesink.access import AccessedModel, Batch, editing, observing
from spikesink.access.capture import run_until
from spikesink.access.prefix import Prefix
from spikesink.analyse.passes import Progress, batches, default_batch_size, no_progress, stream
from spikesink.analyse.resume import FinishedPasses
from spikesink.intervene import Targets
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sinks import SinkCriteria, SinkMeasure
from spikesink.measure.spikes import SequenceSpikes
from spikesink.measure.states import SpikeStates
from spikesink.records.intervals import Estimate

HELD_OUT_SPIKES = "held-out spike tokens"
"""Key of the spike tokens of the held-out sequences."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass measured of every sequence; all but the losses is empty where only they were asked for."""

    loss_sums: list[float]
    """Sums in nats over the predictions."""
    predictions: list[int]
    sink_ratios: list[float]
    downstream_ratios: list[float]
    """Sink ratio of the blocks after the one where spikes are complete."""
    spikes: list[float]
    """Largest magnitude after any block."""
    plateaus: list[float]
    """Largest magnitude between the step-up and the step-down block."""
    plateau_ratios: list[float]
    """Largest ratio of the largest magnitude to the median one between the step-up and the step-down block."""
    ratios: list[float]
    """Largest over blocks of the ratio of the largest magnitude to the median one."""
    spike_tokens: list[float]
    """Number of tokens that hold a spike after the step-up block."""
    spike_positions: list[float]
    """Share of the sequences whose token at this position does; not by sequence."""
    norm_ratios: list[float] = field(default_factory=list)
    """Largest norm of a token over the median token's, after the block where spikes are complete; empty without."""

    @property
    def losses(self) -> np.ndarray:
        """Mean loss in nats of each sequence."""
        return np.array(self.loss_sums) / np.array(self.predictions)

    @property
    def perplexity(self) -> Estimate:
        """Over all predictions, with its interval over sequences."""
        return bootstrap.estimate(bootstrap.perplexity, self.loss_sums, self.predictions)

    def cost(self, baseline: "Evaluation") -> Estimate:
        """Mean loss less the baseline's in nats, paired over sequences, with its interval."""
        return bootstrap.estimate(bootstrap.difference, self.losses, baseline.losses)

    def to_dict(self) -> dict[str, list]:
        return asdict(self)

    @classmethod
    def average(cls, draws: "list[Evaluation]") -> "Evaluation":
        """Mean over draws, sequence by sequence; of spikes and their ratios the largest."""
        means = ("loss_sums", "sink_ratios", "downstream_ratios", "spike_positions", "spike_tokens", "norm_ratios")
        largest = ("spikes", "plateaus", "plateau_ratios", "ratios")
        over: dict[str, list[float]] = {
            name: of([getattr(drawn, name) for drawn in draws], axis=0).tolist()
            for of, names in ((np.mean, means), (np.max, largest))
            for name in names
        }
        return replace(draws[0], **over)


class ScoreLast:
    """Counts only the last `predictions` tokens of every sequence as targets."""

    def __init__(self, predictions: int) -> None:
        self.predictions = predictions

    def edit_batch(self, batch: Batch) -> Batch:
        scored = torch.zeros_like(batch.valid)
        scored[:, batch.ids.shape[1] - self.predictions :] = True
        return replace(batch, scored=scored)


def evaluate(
    accessed: AccessedModel,
    ids: Tensor,
    *contexts: AbstractContextManager,
    sinks: SinkCriteria | None = None,
    targets: Targets | None = None,
    score_last: int | None = None,
    batch_size: int | None = None,
    loss_only: bool = False,
) -> Evaluation:
    """One pass over ids (sequence, token) with the contexts open."""
    losses, sink = LossMeasure(), SinkMeasure(sinks)
    spikes = SequenceSpikes(targets.plateau if targets else None)
    tokens = SpikeStates(targets.edit_block, targets.is_spike) if targets and targets.has_spikes else None
    observers = [losses] if loss_only else [losses, spikes, sink, *([tokens] if tokens else [])]
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        if score_last is not None:
            stack.enter_context(editing(accessed, ScoreLast(score_last)))
        stream(accessed, ids, observers, batch_size=batch_size)
    return Evaluation(
        loss_sums=losses.loss_sums,
        predictions=[int(count) for count in losses.predictions],
        sink_ratios=[] if loss_only else sink.sequence_ratios(),
        downstream_ratios=sink.sequence_ratios(targets.edit_block + 1) if targets and not loss_only else [],
        spikes=spikes.largest,
        plateaus=spikes.plateaus,
        plateau_ratios=spikes.plateau_ratios,
        ratios=spikes.ratios,
        norm_ratios=spikes.norm_ratios,
        spike_positions=torch.cat(tokens.spikes).float().mean(0).tolist() if tokens and not loss_only else [],
        spike_tokens=[float(row.sum()) for rows in tokens.spikes for row in rows] if tokens and not loss_only else [],
    )


@dataclass
class Evaluator:
    """Evaluates one model on the same tokens under one intervention after another; a pass that is kept is not run."""

    accessed: AccessedModel
    ids: Tensor
    """Token ids (sequence, token), on the CPU."""
    targets: Targets
    finished: FinishedPasses
    sinks: SinkCriteria
    batch_size: int | None = None
    progress: Progress = no_progress
    seconds: float = 0.0
    """Spent in passes so far."""
    prefix: Prefix = field(init=False)
    """Of the baseline."""

    def __post_init__(self) -> None:
        watched = self.targets.edit_block // 2 if self.targets.has_spikes else 0
        self.prefix = Prefix(self.accessed, watched)

    def steps(self, stage: str, passes: int) -> Callable[[], None]:
        """What to call after each of so many passes, for `progress` to hear of it."""
        done = count(1)
        self.progress(stage, 0, passes)
        return lambda: self.progress(stage, next(done), passes)

    def baseline(self) -> Evaluation:
        """Everything of the model as it is; its first layers are kept for passes that change nothing there."""
        return self.measure("baseline", self.prefix.keeping())

    def measure(
        self, key: str, *contexts: AbstractContextManager, score_last: int | None = None, untouched: int = 0
    ) -> Evaluation:
        """Everything of a pass with these contexts open, which change nothing in the first `untouched` layers.

        Raises DoesNotApplyError where a context does.
        """
        options = {"sinks": self.sinks, "targets": self.targets, "score_last": score_last}
        return self._once(key, (self.prefix.replaying(untouched), *contexts), options)

    def loss(self, key: str, *contexts: AbstractContextManager, untouched: int = 0) -> Evaluation:
        """Only the loss of a pass with these contexts open, which change nothing in the first `untouched` layers."""
        return self._once(f"loss/{key}", (self.prefix.replaying(untouched), *contexts), {"loss_only": True})

    def baseline_loss(self) -> Evaluation:
        """Only the loss of the model as it is."""
        return self.loss("baseline", untouched=self.accessed.n_layers)

    def _once(self, key: str, contexts: tuple[AbstractContextManager, ...], options: dict[str, Any]) -> Evaluation:
        def run() -> dict[str, Any]:
            return evaluate(self.accessed, self.ids, *contexts, batch_size=self.batch_size, **options).to_dict()

        return Evaluation(**self.kept(key, run))

    def kept(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a pass found, as JSON; it is run once, and not where an earlier run of the command kept it."""

        def timed() -> dict[str, Any]:
            started = time.perf_counter()
            result = run()
            self.seconds += time.perf_counter() - started
            return result

        return self.finished.get(key, timed)

    def spike_tokens(self, ids: Tensor | None = None, key: str = "spike tokens") -> Tensor | None:
        """Which tokens spike in the model as it is, (sequence, token) bool; None where it has no spikes.

        ids: other sequences than the evaluated ones, whose marks are kept as `key`.
        """
        if not self.targets.has_spikes:
            return None
        ids, block = self.ids if ids is None else ids, self.targets.edit_block

        def run() -> dict[str, list]:
            states = SpikeStates(block, self.targets.is_spike)
            with self.prefix.replaying(block // 2), observing(self.accessed, [states]):
                for batch in batches(ids, None, self.batch_size or default_batch_size(ids.shape[1])):
                    run_until(self.accessed, batch, block)
            return {"spikes": torch.cat(states.spikes).nonzero().tolist()}

        marked = torch.zeros(ids.shape, dtype=torch.bool)
        for sequence, position in self.finished.get(key, run)["spikes"]:
            marked[sequence, position] = True
        return marked


def spike_share(broken: Evaluation, kept: Evaluation, baseline: Evaluation) -> Estimate:
    """Share of the damage, in nats, that is gone when spike tokens are kept in high precision."""

    def gone(damaged: np.ndarray, mended: np.ndarray, plain: np.ndarray, axis: int = -1) -> np.ndarray:
        return (damaged - mended).mean(axis) / (damaged - plain).mean(axis)

    return bootstrap.estimate(gone, broken.losses, kept.losses, baseline.losses)
