"""Scan: spikes and sinks of a model on given token ids, in one streaming pass, as an `Anatomy` record."""

import datetime
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import spikesink
from spikesink.access import AccessedModel, access, full_batch, load, observing, run
from spikesink.analyse.passes import Progress, no_progress, stream
from spikesink.data.tokens import Tokens, check_ids
from spikesink.errors import InputError
from spikesink.measure.lifecycle import ContributionMeasure, StepCriteria, StepResult, find_steps
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sinks import METRICS, SinkCriteria, SinkMeasure, SinkResult, uniform_first_key
from spikesink.measure.spikes import SpikeCriteria, SpikeMeasure, SpikeResult
from spikesink.records import (
    Anatomy,
    BlockCycle,
    Lifecycle,
    Provenance,
    SinkHead,
    Sinks,
    SpikeToken,
    SpikeVerdict,
    StepRule,
    Summary,
    Timing,
)

LISTED_TOKENS = 256
"""Spike tokens listed in the summary; all are counted."""
REPLAY_TOKENS = 4096
"""Forward tokens spent on measuring contributions again at spike tokens."""
REPLAY_SPIKES = 64


@dataclass(frozen=True)
class Criteria:
    """Every threshold of a scan."""

    spikes: SpikeCriteria = SpikeCriteria()
    sinks: SinkCriteria = SinkCriteria()
    steps: StepCriteria = StepCriteria()


@dataclass(frozen=True)
class Scanned:
    """What one pass found, before it becomes a record; further measures start from it."""

    accessed: AccessedModel
    ids: Tensor
    spikes: SpikeMeasure
    spike: SpikeResult
    sinks: SinkResult
    losses: LossMeasure
    steps: StepResult | None
    step_tokens: int


def scan(
    model: AccessedModel | PreTrainedModel | str | None,
    tokens: Tokens | np.ndarray | Tensor,
    *,
    valid: Tensor | None = None,
    epsilon: float = 0.3,
    sink_metric: str = "sun2026",
    batch_size: int | None = None,
    measures: tuple[str, ...] = (),
    progress: Progress = no_progress,
) -> Anatomy:
    """Measure spikes, sinks, life cycle and perplexity; returns a typed record.

    model: an accessed model, a Hugging Face causal LM, or what `load` takes. tokens: integer ids (sequence, token),
    evaluated exactly as given. valid: same shape, False where padding. epsilon: threshold on importance, in (0, 1).
    measures: names of further measures (see `spikesink.analyse.anatomy.MEASURES`), or ("all",).
    Raises SpikesinkError subclasses for ids, options or models that cannot be measured. Sun et al. 2026, eq. 27-28.
    """
    started = time.perf_counter()
    accessed = _accessed(model)
    load_s = time.perf_counter() - started
    given = Tokens.from_ids(np.asarray(tokens)) if isinstance(tokens, np.ndarray | Tensor) else tokens
    check_ids(given, accessed.vocab_size, accessed.max_positions)
    criteria = _criteria(epsilon, sink_metric)
    ids = torch.from_numpy(np.array(given.ids, dtype=np.int64))
    scanned, forward_s = measure(accessed, ids, criteria, valid=valid, batch_size=batch_size, progress=progress)
    sections, arrays = _further(scanned, measures, progress)
    return Anatomy.model_validate(
        {
            **sections,
            "summary": _summary(scanned),
            "lifecycle": _lifecycle(scanned, criteria.steps),
            "spikes": _verdict(scanned, criteria.spikes),
            "sinks": _sinks(scanned.sinks),
            "provenance": _provenance(accessed, given, criteria, batch_size, measures),
            "timing": Timing(
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                load_s=load_s + accessed.load_s,
                forward_s=forward_s,
                total_s=time.perf_counter() - started + accessed.load_s,
            ),
            "arrays": {**_arrays(scanned), **arrays},
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
    steps, step_tokens = _steps(accessed, ids, found, criteria.steps)
    return Scanned(accessed, ids, spikes, found, sinks.compute(), losses, steps, step_tokens), seconds


def _accessed(model: AccessedModel | PreTrainedModel | str | None) -> AccessedModel:
    if isinstance(model, AccessedModel):
        return model
    return access(model) if isinstance(model, PreTrainedModel) else load(model)


def _criteria(epsilon: float, sink_metric: str) -> Criteria:
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon is {epsilon}; expected a share of attention between 0 and 1, e.g. 0.3.")
    if sink_metric not in METRICS:
        raise InputError(f"Unknown sink metric '{sink_metric}'; expected one of {', '.join(METRICS)}.")
    return Criteria(sinks=SinkCriteria(metric=sink_metric, epsilon=epsilon))


def _further(scanned: Scanned, names: tuple[str, ...], progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sections and arrays of the further measures that were asked for."""
    if not names:
        return {}, {}
    from spikesink.analyse.anatomy import run_measures

    return run_measures(scanned, names, progress)


def _steps(
    accessed: AccessedModel, ids: Tensor, spike: SpikeResult, criteria: StepCriteria
) -> tuple[StepResult | None, int]:
    """Replay the spike tokens that come first in their sequences, cut behind the token: causal, so exact and cheap."""
    if not spike.has_spikes or accessed.post_norm:
        return None, 0
    by_position = spike.tokens[np.lexsort((spike.tokens[:, 1], spike.tokens[:, 2]))][:REPLAY_SPIKES]
    groups: dict[int, list[int]] = {}
    spent = 0
    for _, sequence, position in by_position:
        spent += int(position) + 1
        if groups and spent > REPLAY_TOKENS:
            break
        groups.setdefault(int(position), []).append(int(sequence))
    channels = torch.tensor(spike.channels)
    writes: dict[int, list[Tensor]] = {}
    residuals: dict[int, list[Tensor]] = {}
    for position, sequences in groups.items():
        rows = torch.arange(len(sequences))
        gathered = ContributionMeasure(rows, torch.full_like(rows, position), channels)
        with observing(accessed, [gathered]):
            run(accessed, full_batch(ids[sequences, : position + 1]))
        for block, write in gathered.writes.items():
            writes.setdefault(block, []).append(write)
        for block, residual in gathered.residuals.items():
            residuals.setdefault(block, []).append(residual)
    steps = find_steps(_joined(writes), _joined(residuals), spike.block, criteria)
    return steps, sum(len(sequences) for sequences in groups.values())


def _joined(pieces: dict[int, list[Tensor]]) -> dict[int, Tensor]:
    return {block: torch.cat(tensors) for block, tensors in pieces.items()}


def _summary(scanned: Scanned) -> Summary:
    spike, sinks, steps = scanned.spike, scanned.sinks, scanned.steps
    heads = np.concatenate([sinks.is_sink(block) for block in sinks.rates[sinks.criteria.metric]])
    return Summary(
        perplexity=scanned.losses.compute(),
        sink_ratio=sinks.ratio(sinks.criteria.metric),
        sink_ratio_sun2026=sinks.ratio("sun2026"),
        sink_ratio_gu2025=sinks.ratio("gu2025"),
        sink1_gu2025=sinks.ratio("sink1_gu2025"),
        has_sinks=bool(heads.any()),
        sink_head_count=int(heads.sum()),
        head_count=len(heads),
        spike=spike.peak.value,
        spike_block=spike.block,
        spike_channel=spike.peak.channel,
        has_spikes=spike.has_spikes,
        spike_channels=spike.channels,
        spike_tokens=_spike_tokens(scanned),
        massive_count=spike.massive_count,
        max_over_median=spike.max_over_median,
        step_up_blocks=steps.step_up if steps else [],
        step_down_blocks=steps.step_down if steps else [],
    )


def _spike_tokens(scanned: Scanned) -> list[SpikeToken]:
    found = []
    for value, sequence, position in scanned.spike.tokens[:LISTED_TOKENS]:
        token_id = int(scanned.ids[int(sequence), int(position)])
        found.append(
            SpikeToken(
                sequence=int(sequence),
                position=int(position),
                token_id=token_id,
                text=token_text(scanned.accessed, token_id),
                value=float(value),
            )
        )
    return found


def token_text(accessed: AccessedModel, token_id: int) -> str:
    """The token as text; `<id>` where there is no tokenizer."""
    tokenizer = accessed.tokenizer
    return f"<{token_id}>" if tokenizer is None else str(tokenizer.decode([token_id]))


def _lifecycle(scanned: Scanned, criteria: StepCriteria) -> Lifecycle:
    measured, steps = scanned.spikes, scanned.steps
    blocks = []
    for block in sorted(measured.writes):
        residual = measured.residuals.get(block)
        blocks.append(
            BlockCycle(
                block=block,
                kind="attention" if block % 2 else "ffn",
                resid_top3=residual.peaks.top() if residual else None,
                out_top3=measured.writes[block].top(),
                resid_median=residual.median if residual else None,
                resid_max_over_median=residual.max_over_median if residual else None,
                share_of_plateau=steps.shares[block] if steps else None,
            )
        )
    post_norm = scanned.accessed.post_norm
    reason = "no spikes" if not scanned.spike.has_spikes else "post-norm: writes do not add up" if post_norm else None
    rule = StepRule(
        share_min=criteria.share_min,
        plateau=steps.plateau if steps else None,
        tokens=scanned.step_tokens,
        applies=steps is not None,
        reason=reason,
    )
    return Lifecycle(blocks=blocks, step_rule=rule, unrolled_sum_holds=not post_norm)


def _verdict(scanned: Scanned, criteria: SpikeCriteria) -> SpikeVerdict:
    return SpikeVerdict(
        **asdict(criteria),
        massive_count=scanned.spike.massive_count,
        massive_blocks=scanned.spike.massive_blocks,
        token_count=len(scanned.spike.tokens),
    )


def _sinks(result: SinkResult) -> Sinks:
    metric = result.criteria.metric
    heads = [
        SinkHead(
            block=block,
            head=head,
            first_key_importance=float(result.first[block][head]),
            max_importance=float(result.largest[block][head]),
            sink_rate=float(rates[head]),
            is_sink=bool(result.is_sink(block)[head]),
        )
        for block, rates in result.rates[metric].items()
        for head in range(len(rates))
    ]
    virtual = None if result.virtual is None else float(np.concatenate(list(result.virtual.values())).mean())
    return Sinks(
        **asdict(result.criteria),
        uniform_first_key=uniform_first_key(result.tokens),
        first_key_importance=float(np.concatenate(list(result.first.values())).mean()),
        virtual_mass=virtual,
        heads=heads,
    )


def _provenance(
    accessed: AccessedModel, tokens: Tokens, criteria: Criteria, batch_size: int | None, measures: tuple[str, ...]
) -> Provenance:
    return Provenance(
        model=accessed.provenance,
        tokens=tokens.provenance(),
        versions={
            "spikesink": spikesink.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        settings={**asdict(criteria), "batch_size": batch_size, "measures": list(measures), "attention": "spikesink"},
    )


def _arrays(scanned: Scanned) -> dict[str, np.ndarray]:
    """The large numbers: channel maxima by block, importance by head and position, loss by sequence."""
    measured = scanned.spikes

    def maxima(trackers: dict[int, Any]) -> np.ndarray:
        return np.stack([trackers[block].channel_max.float().cpu().numpy() for block in sorted(trackers)])

    positions = scanned.sinks.positions
    return {
        "residual_blocks": np.array(sorted(measured.residuals)),
        "residual_channel_max": maxima({block: s.peaks for block, s in measured.residuals.items()}),
        "write_channel_max": maxima(measured.writes),
        "attention_blocks": np.array(sorted(positions)),
        "key_importance": _stacked([positions[block].astype(np.float32) for block in sorted(positions)]),
        "sequence_loss_nats": np.array(scanned.losses.sequence_losses()),
    }


def _stacked(per_block: list[np.ndarray]) -> np.ndarray:
    """(block, head, key); blocks with fewer heads or keys are filled with NaN."""
    heads = max(array.shape[0] for array in per_block)
    keys = max(array.shape[1] for array in per_block)
    stacked = np.full((len(per_block), heads, keys), np.nan, dtype=np.float32)
    for index, array in enumerate(per_block):
        stacked[index, : array.shape[0], : array.shape[1]] = array
    return stacked
