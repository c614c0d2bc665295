"""`dissociate`: from a model and token ids to the record of what spikes and sinks do in it."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access import AccessedModel
from spikesink.access.rotary import rotates
from spikesink.analyse.budget import within_budget
from spikesink.analyse.dissociation import dissociation_rows
from spikesink.analyse.dose import doses, parse_dose
from spikesink.analyse.evaluation import Evaluator
from spikesink.analyse.finding import targets_of
from spikesink.analyse.formats import served_formats
from spikesink.analyse.kv_cache import kv_cache
from spikesink.analyse.passes import Progress, ids_of
from spikesink.analyse.quantisation import quantisation
from spikesink.analyse.recommend import recommend
from spikesink.analyse.remedies import remedies
from spikesink.analyse.resume import FinishedPasses
from spikesink.analyse.scan import Ids, accessed_model, check_options, measure
from spikesink.analyse.verdict import dissociation
from spikesink.data.tokens import Tokens, as_tokens, check_ids
from spikesink.errors import InputError, did_you_mean
from spikesink.intervene import INTERVENTIONS, Intervention, Targets
from spikesink.intervene.base import EDITS
from spikesink.observer import notebook_progress
from spikesink.records.base import Provenance, Timing, package_versions
from spikesink.records.deployment import NO_FORMATS, NO_REMEDIES, PARTS, UNASKED, Formats, KvCache, Quantisation
from spikesink.records.interventions import Dissociation, InterventionRow, Interventions

CORE = ("zero_spikes", "freeze_spikes", "pin_spikes", "cut_amplifier", "project_out_direction", "mask_sinks")
ASKED = ("mask_sinks_everywhere", "move_sinks")
"""Run with the core: where sinks are edited from the first block on, spikes may go with them."""
DEFAULT_PARTS = ("quantisation", "kv_cache")
GROUPS = ("default", "all", "core", "spikes", "sinks", "input", "none")
MIN_SEQUENCES = 4
PASSES = 4
"""Rises when a pass keeps something else, so that what a killed run of an earlier version left is not taken over."""


@dataclass(frozen=True)
class Chosen:
    """What `--which` asked for."""

    interventions: tuple[Intervention, ...]
    parts: tuple[str, ...]
    thorough: bool = False
    """Everything was asked for."""


def parse_which(text: str | None, budget: float | None = None) -> Chosen:
    """Names of interventions, of groups (default, all, core, spikes, sinks, input, none) and of parts, with commas.

    A budget in nats adds quantisation, which its search starts from. Raises InputError for unknown names, and for a
    budget that is none.
    """
    if budget is not None and not 0 < budget < math.inf:
        raise InputError(f"budget is {budget}; expected nats above 0, e.g. 0.05.")
    names = [name.strip().replace("-", "_") for name in (text or "default").split(",") if name.strip()]
    known = [*INTERVENTIONS, *GROUPS, *PARTS]
    chosen: dict[str, None] = {}
    parts: dict[str, None] = {} if budget is None else {"quantisation": None}
    for name in names:
        if name not in known:
            raise InputError(f"Unknown intervention '{name}'{did_you_mean(name, known)}")
        parts.update(
            dict.fromkeys({"default": DEFAULT_PARTS, "all": PARTS}.get(name, (name,) if name in PARTS else ()))
        )
        if name in INTERVENTIONS:
            chosen[name] = None
        chosen.update(dict.fromkeys(_group(name)))
    ordered = sorted(
        (made for name, made in INTERVENTIONS.items() if name in chosen), key=lambda made: EDITS.index(made.edits)
    )
    return Chosen(tuple(ordered), tuple(part for part in PARTS if part in parts), "all" in names)


def check_magnitude(magnitude: float | None) -> None:
    """Refuse a threshold that no element or every element reaches. Raises InputError."""
    if magnitude is not None and not 0 < magnitude < math.inf:
        raise InputError(f"magnitude is {magnitude}; expected a number above 0, e.g. 1000, or nothing for the default.")


def _for_cache(tokens: Ids, long_tokens: Ids | None, choice: Chosen) -> Tokens:
    """The ids that a KV cache is measured on. Raises InputError for some of its own where none is."""
    if long_tokens is not None and "kv_cache" not in choice.parts:
        raise InputError("Got long_tokens, but which asks for no KV cache; add kv_cache to it, or leave them out.")
    return as_tokens(tokens if long_tokens is None else long_tokens)


def _group(name: str) -> tuple[str, ...]:
    if name in ("default", "core"):
        return CORE + ASKED
    return tuple(other for other, made in INTERVENTIONS.items() if name in ("all", made.edits))


def dissociate(
    model: AccessedModel | PreTrainedModel | str | None,
    tokens: Ids,
    *,
    which: str | None = None,
    dose: Sequence[str] = (),
    budget: float | None = None,
    held_out: int = 16,
    draws: int = 2,
    epsilon: float = 0.3,
    sink_metric: str = "sun2026",
    magnitude: float | None = None,
    batch_size: int | None = None,
    long_tokens: Ids | None = None,
    folder: Path | str | None = None,
    progress: Progress = notebook_progress,
) -> Interventions:
    """Remove spikes and sinks one at a time, with controls, and say what each does; a typed record.

    tokens: integer ids (sequence, token); the last `held_out` sequences (at most half) are held out to find spikes,
    sinks and constants on, the others are evaluated. which: names of interventions, groups and parts (`parse_which`).
    dose: sweeps of strength (`parse_dose`). budget: nats that int8 may cost (`within_budget`). draws: of every random
    control; a sweep takes one. epsilon, sink_metric: as in `scan`; magnitude: as in `find`. long_tokens: for the KV
    cache, of at least 128 tokens each, where positions are rotations also more than the model was trained on; default
    the evaluated ones. folder: of finished passes, for a run that was killed. Raises SpikesinkError subclasses.
    """
    started = time.perf_counter()
    choice, sweeps = parse_which(which, budget), parse_dose(dose)
    criteria = check_options(epsilon, sink_metric, batch_size)
    _check_numbers(magnitude, draws)
    given, long = as_tokens(tokens), _for_cache(tokens, long_tokens, choice)
    (evaluated, kept_back), accessed = split(given, held_out), accessed_model(model, given)
    _check_long(accessed, long)
    scanned, _ = measure(accessed, kept_back, criteria, batch_size=batch_size, progress=progress)
    targets = targets_of(scanned, magnitude=magnitude, progress=progress)
    asked = {
        "which": which, "dose": list(dose), "budget": budget, "held_out": held_out, "draws": draws, "epsilon": epsilon,
        "sink_metric": sink_metric, "magnitude": magnitude, "batch_size": batch_size, "cache_tokens": long.provenance(),
    }  # fmt: skip
    provenance = _provenance(accessed, given, {**asdict(criteria), **asked}, len(evaluated))
    kept = FinishedPasses(None if folder is None else Path(folder), identity(provenance))
    evaluator = Evaluator(accessed, evaluated, targets, kept, criteria.sinks, batch_size, progress)
    rows = dissociation_rows(evaluator, list(choice.interventions), draws)
    quantised = _quantisation(evaluator, kept_back, choice)
    cache = _kv_cache(evaluator, evaluated if long_tokens is None else long.ids, choice)
    deployed, arrays = remedies(evaluator, kept_back) if "remedies" in choice.parts else (NO_REMEDIES, {})
    met, formats = within_budget(evaluator, quantised, budget, deployed, arrays), _formats(evaluator, kept_back, choice)
    return Interventions(
        interventions=rows,
        dissociation=_judged(rows, targets),
        quantisation=quantised,
        kv_cache=cache,
        formats=formats,
        remedies=deployed,
        recommendation=recommend(evaluator, quantised, cache, met, deployed, formats),
        dose=doses(evaluator, sweeps),
        found=_facts(targets),
        provenance=provenance,
        timing=_timing(evaluator, started),
        arrays=_arrays(targets) | arrays,
    )


def _check_numbers(magnitude: float | None, draws: int) -> None:
    check_magnitude(magnitude)
    if draws < 1:
        raise InputError(f"draws is {draws}; expected at least 1 of every control, without which no cost says much.")


def _check_long(accessed: AccessedModel, long: Tokens) -> None:
    """Sequences for the KV cache may be longer than the model's positions where these are rotations."""
    most = accessed.max_positions
    is_beyond = most is not None and long.ids.shape[1] > most and rotates(accessed)
    check_ids(long, accessed.vocab_size, None if is_beyond else most)


def _judged(rows: list[InterventionRow], targets: Targets) -> Dissociation:
    return dissociation(
        rows, has_spikes=targets.has_spikes, has_sinks=targets.has_sinks, same_context=targets.same_context,
        attention_behind=targets.attention_behind,
    )  # fmt: skip


def _timing(evaluator: Evaluator, started: float) -> Timing:
    load_s = evaluator.accessed.load_s
    return Timing.now(load_s=load_s, forward_s=evaluator.seconds, total_s=time.perf_counter() - started + load_s)


def _quantisation(evaluator: Evaluator, held_out: Tensor, choice: Chosen) -> Quantisation:
    if "quantisation" not in choice.parts:
        return Quantisation(applicable=False, reason=f"{UNASKED} (--which quantisation)")
    return quantisation(evaluator, held_out, thorough=choice.thorough)


def _kv_cache(evaluator: Evaluator, ids: Tensor | np.ndarray, choice: Chosen) -> KvCache:
    if "kv_cache" not in choice.parts:
        return KvCache(applicable=False, reason=f"{UNASKED} (--which kv_cache)")
    return kv_cache(evaluator, ids)


def _formats(evaluator: Evaluator, held_out: Tensor, choice: Chosen) -> Formats:
    return served_formats(evaluator, held_out) if "formats" in choice.parts else NO_FORMATS


def split(tokens: Tokens, held_out: int) -> tuple[Tensor, Tensor]:
    """Evaluated and held-out ids, (sequence, token) each; the held-out ones are the last, at most half of all."""
    total = len(tokens.ids)
    if total < MIN_SEQUENCES:
        raise InputError(
            f"Got {total} sequence{'s' if total > 1 else ''}; interventions need at least {MIN_SEQUENCES}: some to "
            "learn constants on, the others to evaluate. "
            "Give a longer text, a smaller seq_len (--seq-len), or pack (--pack)."
        )
    kept = total - max(1, min(held_out, total // 2))
    ids = ids_of(tokens)
    return ids[:kept], ids[kept:]


def _provenance(accessed: AccessedModel, tokens: Tokens, settings: dict[str, Any], evaluated: int) -> Provenance:
    rows = {"evaluated_sequences": evaluated, "held_out_sequences": len(tokens.ids) - evaluated}
    return Provenance(
        model=accessed.provenance,
        tokens=tokens.provenance(accessed.bos_id),
        versions=package_versions(),
        settings={**settings, **rows, "attention": "spikesink"},
    )


def identity(provenance: Provenance) -> dict[str, Any]:
    """What makes a pass: everything but which passes are asked for, so that a later run may ask for more."""
    content = provenance.model_dump(mode="json")
    for name in ("which", "dose", "budget", "draws"):
        del content["settings"][name]
    return {**content, "passes": PASSES}


def _facts(targets: Targets) -> dict[str, Any]:
    """What was found, without the states."""
    large = ("spike_states", "ordinary_states", "direction", "amplifier")
    facts = {field.name: getattr(targets, field.name) for field in fields(targets) if field.name not in large}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}
    heads = [list(head) for head in targets.sink_heads]
    return {**listed, "sink_heads": heads, "amplifier_entries": len(targets.amplifier)}


def _arrays(targets: Targets) -> dict[str, np.ndarray]:
    """The learned constants: by block the mean state of spike tokens and of the others; s*; the cut entries."""
    arrays = {"amplifier": np.array(targets.amplifier, dtype=np.int64).reshape(-1, 2)}
    if targets.spike_states:
        blocks = sorted(targets.spike_states)
        arrays["state_blocks"] = np.array(blocks)
        arrays["spike_states"] = np.stack([targets.spike_states[block].numpy() for block in blocks])
        arrays["ordinary_states"] = np.stack([targets.ordinary_states[block].numpy() for block in blocks])
    if targets.direction is not None:
        arrays["direction"] = targets.direction.numpy()
    return arrays
