"""One streaming pass over a text, watched by any number of observers, and what the first one of a scan measured."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel, Batch, full_batch, observing, watch
from spikesink.access.checks import check_left_padding
from spikesink.data.tokens import Tokens
from spikesink.errors import ModelError
from spikesink.measure.lifecycle import StepCriteria, StepResult
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sink_tokens import SinkTokens
from spikesink.measure.sinks import SinkCriteria, SinkResult
from spikesink.measure.spikes import SpikeCriteria, SpikeMeasure, SpikeResult
from spikesink.observer import Progress, no_progress

TOKENS_PER_BATCH = 1024
Found = TypeVar("Found")


@dataclass(frozen=True)
class Criteria:
    """Every threshold of a scan."""

    spikes: SpikeCriteria = SpikeCriteria()
    sinks: SinkCriteria = SinkCriteria()
    steps: StepCriteria = StepCriteria()


def ids_of(tokens: Tokens) -> Tensor:
    """Their ids (sequence, token) as a tensor of its own."""
    return torch.from_numpy(np.array(tokens.ids, dtype=np.int64))


def default_batch_size(tokens: int) -> int:
    """Sequences per batch so that a batch has about TOKENS_PER_BATCH tokens."""
    return max(1, TOKENS_PER_BATCH // tokens)


def batches(ids: Tensor, valid: Tensor | None, batch_size: int) -> Iterator[Batch]:
    """Consecutive rows of ids (sequence, token); valid of the same shape marks padding with False."""
    for start in range(0, len(ids), batch_size):
        rows = slice(start, start + batch_size)
        if valid is None:
            yield full_batch(ids[rows], start)
        else:
            yield Batch(ids=ids[rows], valid=valid[rows], first_sequence=start)


def stream(
    accessed: AccessedModel,
    ids: Tensor,
    observers: Sequence[object],
    *,
    valid: Tensor | None = None,
    batch_size: int | None = None,
    stage: str = "forward",
    progress: Progress = no_progress,
) -> float:
    """Run every sequence once under the observers; returns the seconds it took."""
    started = time.perf_counter()
    if valid is not None:
        check_left_padding(accessed, valid)
    size = batch_size or default_batch_size(ids.shape[1])
    progress(stage, 0, len(ids))
    with observing(accessed, observers):
        for batch in batches(ids, valid, size):
            try:
                watch(accessed, batch)
            except (RuntimeError, MemoryError) as error:
                raise _memory_error(error, size) from error
            progress(stage, min(batch.first_sequence + size, len(ids)), len(ids))
    return time.perf_counter() - started


def _memory_error(error: BaseException, batch_size: int) -> BaseException:
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return ModelError(
            f"Not enough memory for a batch of {batch_size} sequences; try --batch-size {max(1, batch_size // 2)}, a "
            "smaller seq_len (--seq-len) or dtype bfloat16 (--dtype)."
        )
    return error


@dataclass(frozen=True, eq=False)
class Scan:
    """What the first pass over a text measured, and under which conditions; further measures start from it."""

    accessed: AccessedModel
    ids: Tensor
    """Token ids (sequence, token)."""
    criteria: Criteria
    spikes: SpikeMeasure
    spike: SpikeResult
    sinks: SinkResult
    losses: LossMeasure
    steps: StepResult | None
    step_tokens: int
    sink_tokens: SinkTokens
    valid: Tensor | None = None
    """Of the shape of ids, False where padding; None without padding."""
    batch_size: int | None = None
    """As asked for; None for the default."""

    def replay(self, observers: list, stage: str, progress: Progress, rows: Tensor | slice = slice(None)) -> None:
        """Show the scanned text, or some sequences of it, to further observers, under the conditions of the scan."""
        valid = None if self.valid is None else self.valid[rows]
        stream(
            self.accessed, self.ids[rows], observers, valid=valid, batch_size=self.batch_size, stage=stage,
            progress=progress,
        )  # fmt: skip


class Pass(NamedTuple):
    """A pass over the scanned text that a measure needs: its observers, and the sequences that they are shown.

    It is shared with other measures: what an observer raises ends all of them.
    """

    observers: Sequence[object]
    rows: Tensor | slice = slice(None)


Steps = Generator[Pass, None, Found]
"""What computes something in steps: it yields the passes it needs, goes on when each has been made, and returns."""


def in_steps(found: Found | Steps[Found]) -> Steps[Found]:
    """What computes something at once, or in steps, as steps."""
    return (yield from cast("Steps[Found]", found)) if isinstance(found, Generator) else found


def run_together(scanned: Scan, running: dict[str, Steps[Found]], progress: Progress) -> dict[str, Found]:
    """What each of these returns. Passes that several wait for at a time, over the same sequences, are made as one."""
    waiting, found = dict(running), {}
    try:
        while waiting:
            passes: dict[tuple[int, ...], list[Pass]] = {}
            for name, steps in list(waiting.items()):
                try:
                    asked = next(steps)
                    passes.setdefault(tuple(torch.arange(len(scanned.ids))[asked.rows].tolist()), []).append(asked)
                except StopIteration as end:
                    found[name] = end.value
                    del waiting[name]
            for shared in passes.values():
                observers = [observer for one in shared for observer in one.observers]
                scanned.replay(observers, "measures", progress, shared[0].rows)
    finally:
        for steps in waiting.values():
            steps.close()
    return found
