"""Scan: spikes and sinks of a model on given token ids, in one streaming pass, as an `Anatomy` record."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikesink.access import AccessedModel, access, full_batch, load, observing, watch
from spikesink.access.load import unwrapped
from spikesink.analyse.anatomy import run_measures
from spikesink.analyse.passes import Criteria, Progress, Scan, no_progress, stream
from spikesink.data.tokenise import whole_texts
from spikesink.data.tokens import Tokens, as_tokens_and_valid, check_ids
from spikesink.errors import InputError
from spikesink.measure.lifecycle import StepCriteria, StepResult, find_steps
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.sink_tokens import SinkTokenMeasure
from spikesink.measure.sinks import SinkCriteria, SinkMeasure
from spikesink.measure.spikes import SpikeMeasure, SpikeResult
from spikesink.measure.states import Gather
from spikesink.measures import check_names, parse_names
from spikesink.observer import notebook_progress
from spikesink.positions import uniform_first_key
from spikesink.records import (
    Anatomy,
    BlockCycle,
    Lifecycle,
    Provenance,
    SpikeToken,
    StepRule,
    Summary,
    Timing,
    package_versions,
)

REPLAY_TOKENS = 4096
"""Forward tokens spent on measuring contributions again at spike tokens."""
REPLAY_SPIKES = 64
LISTED_TOKENS = 256
"""Spike tokens listed in the summary; all are counted."""
CONTEXT = 8
"""Tokens before and after a spike token whose text is kept beside it."""

Ids = Tokens | np.ndarray | Tensor | Sequence[Sequence[int]] | Mapping[str, Any]
"""What the public functions take as tokens: ids (sequence, token)."""


def scan(
    model: AccessedModel | nn.Module | str | Path | None,
    tokens: Ids | None = None,
    *,
    text: str | Sequence[str] | None = None,
    tokenizer: Any | None = None,
    valid: np.ndarray | Tensor | Sequence[Sequence[int]] | None = None,
    epsilon: float = 0.3,
    sink_metric: str = "sun2026",
    batch_size: int | None = None,
    measures: Sequence[str] = (),
    progress: Progress = notebook_progress,
) -> Anatomy:
    """Measure spikes, sinks, life cycle and perplexity; returns a typed record.

    model: an accessed model, a Hugging Face causal LM (also wrapped), or what `load` takes. tokens: integer ids
    (sequence, token), evaluated exactly as given, or what a tokenizer returns. valid: same shape, False or 0 where
    padding; default the tokenizer's attention mask. text: instead of tokens, a text or a list of texts, each measured
    whole as a sequence of its own. tokenizer: for text, and for the text of tokens in the record; default the accessed
    model's. epsilon: threshold on importance, in (0, 1). measures: names of further measures (see
    `spikesink.measures`), or "all". Every argument is checked before the model is verified.
    Raises SpikesinkError subclasses for ids, options or models that cannot be measured. Sun et al. 2026, eq. 27-28.
    """
    criteria = check_options(epsilon, sink_metric, batch_size)
    measures = parse_names(measures) if isinstance(measures, str) else tuple(measures)
    check_names(measures)
    started = time.perf_counter()
    if text is not None:
        # A model that is named brings its tokenizer; one in memory is verified when its ids have been checked.
        model = model if isinstance(model, nn.Module) else accessed_model(model)
        tokens, valid = _of_text(model, tokens, text, tokenizer, valid)
    elif tokens is None:
        raise InputError("Got neither token ids nor text=; expected one of them.")
    given, real = as_tokens_and_valid(tokens, valid)
    mask = None if real is None else _predicting(torch.from_numpy(real))
    accessed = accessed_model(model, given)
    if tokenizer is not None:
        accessed = replace(accessed, tokenizer=tokenizer)
    load_s = time.perf_counter() - started
    # Copied only where torch could not read it in place: there may be more ids than memory holds twice.
    ids = torch.from_numpy(np.require(given.ids, np.int64, ["C", "W"]))
    scanned, forward_s = measure(accessed, ids, criteria, valid=mask, batch_size=batch_size, progress=progress)
    sections, arrays = run_measures(scanned, measures, progress)
    return Anatomy.model_validate(
        {
            **sections,
            "summary": _summary(scanned),
            "lifecycle": _lifecycle(scanned),
            "spikes": scanned.spike.verdict,
            "sinks": scanned.sinks.section(),
            "provenance": _provenance(accessed, given, criteria, batch_size, measures),
            "timing": Timing.now(
                load_s=load_s + accessed.load_s,
                forward_s=forward_s,
                total_s=time.perf_counter() - started + accessed.load_s,
            ),
            "arrays": {**_arrays(scanned), **arrays},
        }
    )


def _of_text(
    model: AccessedModel | nn.Module, tokens: Ids | None, text: str | Sequence[str], tokenizer: Any, valid: Any
) -> tuple[Tokens, np.ndarray]:
    if tokens is not None or valid is not None:
        raise InputError("Got text= and token ids or valid=; expected one source of text.")
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise InputError("The model has no tokenizer; expected one for text: scan(model, text=..., tokenizer=...).")
    return whole_texts(text, tokenizer)


def _predicting(valid: Tensor) -> Tensor:
    """The mask (sequence, token) as it is. Raises InputError where no token has one behind it."""
    if not bool((valid[:, 1:] & valid[:, :-1]).any()):
        raise InputError(
            "valid leaves no two tokens in a row in any sequence, so nothing is predicted and there is no perplexity; "
            "expected at least one sequence of 2 tokens or more."
        )
    return valid


def measure(
    accessed: AccessedModel,
    ids: Tensor,
    criteria: Criteria,
    *,
    valid: Tensor | None = None,
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Scan, float]:
    """The streaming pass itself, and its seconds."""
    spikes, sinks, losses = SpikeMeasure(criteria.spikes), SinkMeasure(criteria.sinks), LossMeasure()
    lengths = [ids.shape[1]] * len(ids) if valid is None else valid.sum(1).tolist()
    least = [criteria.sinks.importance_min(uniform_first_key(tokens)) for tokens in lengths]
    sink_tokens = SinkTokenMeasure((len(ids), ids.shape[1]), torch.tensor(least, dtype=torch.float64))
    observers = [spikes, sinks, sink_tokens, losses]
    seconds = stream(accessed, ids, observers, valid=valid, batch_size=batch_size, stage="scan", progress=progress)
    spike = spikes.compute()
    steps, step_tokens = _steps(accessed, ids, valid, spike, criteria.steps)
    scanned = Scan(
        accessed, ids, criteria, spikes, spike, sinks.compute(), losses, steps, step_tokens, sink_tokens.compute(),
        valid, batch_size,
    )  # fmt: skip
    return scanned, seconds


def accessed_model(model: AccessedModel | nn.Module | str | Path | None, *texts: Tokens) -> AccessedModel:
    """A model in any form that the public functions take, as an accessed one that can take the ids of these texts.

    Raises InputError for what is no model, and for the ids, where the model is in memory before it is verified.
    """
    if not isinstance(model, AccessedModel | nn.Module | str | Path | None):
        raise InputError(
            f"Got a model of type {type(model).__name__}; expected a name or path, a Hugging Face causal LM, or what "
            "spikesink.load gives."
        )
    if isinstance(model, nn.Module):
        inner = unwrapped(model)
        check_taken(AccessedModel(inner, None, None, []), texts)
        return access(inner)
    accessed = model if isinstance(model, AccessedModel) else load(model)
    check_taken(accessed, texts)
    return accessed


def check_taken(accessed: AccessedModel, texts: Sequence[Tokens]) -> None:
    """Refuse ids outside the vocabulary, and sequences beyond the positions. Raises InputError."""
    for text in texts:
        check_ids(text, accessed.vocab_size, accessed.max_positions)


def check_options(epsilon: float, sink_metric: str, batch_size: int | None = None) -> Criteria:
    """The options as criteria. Raises InputError for what is out of range or unknown."""
    if not isinstance(epsilon, int | float):
        raise InputError(f"epsilon is {epsilon!r}; expected a number between 0 and 1, e.g. 0.3.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size is {batch_size!r}; expected at least 1 sequence, or None for the default.")
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
            watch(accessed, full_batch(prefix))
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
        tokens=tokens.provenance(accessed.bos_id),
        versions=package_versions(),
        settings={**asdict(criteria), "batch_size": batch_size, "measures": list(measures), "attention": "spikesink"},
    )


def _summary(scanned: Scan) -> Summary:
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
        massive_count=spike.verdict.massive_count,
        max_over_median=spike.max_over_median,
        step_up_blocks=steps.step_up if steps else [],
        step_down_blocks=steps.step_down if steps else [],
    )


def _spike_tokens(scanned: Scan) -> list[SpikeToken]:
    tokens = []
    for value, *place in scanned.spike.tokens[:LISTED_TOKENS]:
        sequence, position = map(int, place)
        token_id = int(scanned.ids[sequence, position])
        tokens.append(
            SpikeToken(
                sequence=sequence,
                position=position,
                token_id=token_id,
                text=scanned.accessed.token_text(token_id),
                value=float(value),
                before=_text(scanned, sequence, slice(max(0, position - CONTEXT), position)),
                after=_text(scanned, sequence, slice(position + 1, position + 1 + CONTEXT)),
            )
        )
    return tokens


def _text(scanned: Scan, sequence: int, places: slice) -> str:
    """Text of these positions, without padding."""
    ids = scanned.ids[sequence, places]
    if scanned.valid is not None:
        ids = ids[scanned.valid[sequence, places]]
    return "".join(scanned.accessed.token_text(int(token)) for token in ids)


def _lifecycle(scanned: Scan) -> Lifecycle:
    measured, steps = scanned.spikes, scanned.steps
    kinds = {sites.block: sites.kind for sites in scanned.accessed.blocks()}
    names = {module: name for name, module in scanned.accessed.model.named_modules()}
    modules = {sites.block: names.get(sites.inner) for sites in scanned.accessed.blocks()}
    blocks = []
    for block in sorted(measured.writes):
        residual = measured.residuals.get(block)
        blocks.append(
            BlockCycle(
                block=block,
                kind=kinds[block],
                module=modules[block],
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
        share_min=scanned.criteria.steps.share_min,
        plateau=steps.plateau if steps else None,
        tokens=scanned.step_tokens,
        applies=steps is not None,
        reason=reason,
    )
    return Lifecycle(blocks=blocks, step_rule=rule, unrolled_sum_holds=not post_norm)


def _arrays(scanned: Scan) -> dict[str, np.ndarray]:
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
        "sequence_spike": np.array(measured.sequence_largest),
        "sequence_sink_ratio": np.array(scanned.sinks.by_sequence),
        "massive": scanned.spike.massive[:, :4].astype(np.int64),
    }


def _stacked(per_block: list[np.ndarray]) -> np.ndarray:
    """(block, head, key); blocks with fewer heads or keys are filled with NaN."""
    heads = max(array.shape[0] for array in per_block)
    keys = max(array.shape[1] for array in per_block)
    stacked = np.full((len(per_block), heads, keys), np.nan, dtype=np.float32)
    for index, array in enumerate(per_block):
        stacked[index, : array.shape[0], : array.shape[1]] = array
    return stacked
