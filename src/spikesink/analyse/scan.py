"""Scan: spikes and sinks of a model on given token ids, in one streaming pass, as an `Anatomy` record."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spikesink.access import AccessedModel, access, full_batch, load, observing, run
from spikesink.analyse import assemble
from spikesink.analyse.anatomy import run_measures
from spikesink.analyse.passes import Progress, no_progress, stream
from spikesink.analyse.scanned import Criteria, Scanned
from spikesink.data.tokens import Tokens, as_tokens, as_valid, check_ids
from spikesink.errors import InputError, did_you_mean
from spikesink.measure.gather import Gather
from spikesink.measure.lifecycle import StepCriteria, StepResult, find_steps
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sinks import METRICS, SinkCriteria, SinkMeasure
from spikesink.measure.spikes import SpikeMeasure, SpikeResult
from spikesink.records import Anatomy, Provenance, Timing, package_versions

REPLAY_TOKENS = 4096
"""Forward tokens spent on measuring contributions again at spike tokens."""
REPLAY_SPIKES = 64


def scan(
    model: AccessedModel | nn.Module | str | Path | None,
    tokens: Tokens | np.ndarray | Tensor | Sequence[Sequence[int]],
    *,
    valid: np.ndarray | Tensor | Sequence[Sequence[int]] | None = None,
    epsilon: float = 0.3,
    sink_metric: str = "sun2026",
    batch_size: int | None = None,
    measures: tuple[str, ...] = (),
    progress: Progress = no_progress,
) -> Anatomy:
    """Measure spikes, sinks, life cycle and perplexity; returns a typed record.

    model: an accessed model, a Hugging Face causal LM (also wrapped), or what `load` takes. tokens: integer ids
    (sequence, token), evaluated exactly as given. valid: same shape, False or 0 where padding. epsilon: threshold on
    importance, in (0, 1). measures: names of further measures (see `spikesink.measures`), or ("all",).
    Raises SpikesinkError subclasses for ids, options or models that cannot be measured. Sun et al. 2026, eq. 27-28.
    """
    started = time.perf_counter()
    accessed = accessed_model(model)
    load_s = time.perf_counter() - started
    given = as_tokens(tokens)
    check_ids(given, accessed.vocab_size, accessed.max_positions)
    mask = None if valid is None else torch.from_numpy(as_valid(valid, given.ids.shape))
    criteria = check_options(epsilon, sink_metric)
    # Copied only where torch could not read it in place: there may be more ids than memory holds twice.
    ids = torch.from_numpy(np.require(given.ids, np.int64, ["C", "W"]))
    scanned, forward_s = measure(accessed, ids, criteria, valid=mask, batch_size=batch_size, progress=progress)
    sections, arrays = run_measures(scanned, measures, progress)
    return Anatomy.model_validate(
        {
            **sections,
            "summary": assemble.summary(scanned),
            "lifecycle": assemble.lifecycle(scanned),
            "spikes": scanned.spike.verdict,
            "sinks": scanned.sinks.section(),
            "provenance": _provenance(accessed, given, criteria, batch_size, measures),
            "timing": Timing.now(
                load_s=load_s + accessed.load_s,
                forward_s=forward_s,
                total_s=time.perf_counter() - started + accessed.load_s,
            ),
            "arrays": {**assemble.arrays(scanned), **arrays},
        }
    )


def measure(
    accessed: AccessedModel,
    ids: Tensor,
    criteria: Criteria,
    *,
    valid: Tensor | None = None,
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Scanned, float]:
    """The streaming pass itself, and its seconds."""
    spikes, sinks, losses = SpikeMeasure(criteria.spikes), SinkMeasure(criteria.sinks), LossMeasure()
    seconds = stream(
        accessed, ids, [spikes, sinks, losses], valid=valid, batch_size=batch_size, stage="scan", progress=progress
    )
    found = spikes.compute()
    steps, step_tokens = _steps(accessed, ids, valid, found, criteria.steps)
    scanned = Scanned(
        accessed, ids, criteria, spikes, found, sinks.compute(), losses, steps, step_tokens, valid, batch_size
    )
    return scanned, seconds


def accessed_model(model: AccessedModel | nn.Module | str | Path | None) -> AccessedModel:
    """A model in any form that the public functions take, as an accessed one."""
    if isinstance(model, AccessedModel):
        return model
    return access(model) if isinstance(model, nn.Module) else load(model)


def check_options(epsilon: float, sink_metric: str) -> Criteria:
    """The options as criteria. Raises InputError for what is out of range or unknown."""
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon is {epsilon}; expected a share of attention between 0 and 1, e.g. 0.3.")
    if sink_metric not in METRICS:
        raise InputError(f"Unknown sink metric '{sink_metric}'{did_you_mean(sink_metric, METRICS)}")
    return Criteria(sinks=SinkCriteria(metric=sink_metric, epsilon=epsilon))


def _steps(
    accessed: AccessedModel, ids: Tensor, valid: Tensor | None, spike: SpikeResult, criteria: StepCriteria
) -> tuple[StepResult | None, int]:
    """Replay the spike tokens that come first in their sequences, cut behind the token: causal, so exact and cheap."""
    if not spike.has_spikes or accessed.post_norm:
        return None, 0
    channels = torch.tensor(spike.channels)
    writes: dict[int, list[Tensor]] = {}
    residuals: dict[int, list[Tensor]] = {}
    prefixes = _prefixes(ids, valid, spike.tokens)
    for prefix in prefixes:
        rows = torch.arange(len(prefix))
        last = torch.full_like(rows, prefix.shape[1] - 1)
        gathered = Gather(rows, last, residuals=None, writes=None, channels=channels)
        with observing(accessed, [gathered]):
            run(accessed, full_batch(prefix))
        for pieces, kept in ((writes, gathered.writes), (residuals, gathered.residuals)):
            for block, states in kept.items():
                pieces.setdefault(block, []).append(states.double())
    steps = find_steps(_joined(writes), _joined(residuals), spike.verdict.verdict_block, criteria)
    return steps, sum(map(len, prefixes))


def _prefixes(ids: Tensor, valid: Tensor | None, tokens: np.ndarray) -> list[Tensor]:
    """Ids up to and with each spike token, without padding, those of one length together (sequence, token)."""
    lengths: dict[int, list[Tensor]] = {}
    spent = 0
    for _, sequence, position in tokens[np.lexsort((tokens[:, 1], tokens[:, 2]))][:REPLAY_SPIKES]:
        until = slice(int(position) + 1)
        prefix = ids[int(sequence), until]
        if valid is not None:
            prefix = prefix[valid[int(sequence), until]]
        spent += len(prefix)
        if lengths and spent > REPLAY_TOKENS:
            break
        lengths.setdefault(len(prefix), []).append(prefix)
    return [torch.stack(prefixes) for prefixes in lengths.values()]


def _joined(pieces: dict[int, list[Tensor]]) -> dict[int, Tensor]:
    return {block: torch.cat(tensors) for block, tensors in pieces.items()}


def _provenance(
    accessed: AccessedModel, tokens: Tokens, criteria: Criteria, batch_size: int | None, measures: tuple[str, ...]
) -> Provenance:
    return Provenance(
        model=accessed.provenance,
        tokens=tokens.provenance(),
        versions=package_versions(),
        settings={**asdict(criteria), "batch_size": batch_size, "measures": list(measures), "attention": "spikesink"},
    )
