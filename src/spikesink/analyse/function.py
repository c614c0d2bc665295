"""What spikes and sinks do in a model, in few numbers: for models of which there are many, as the cells of a study."""

import statistics
from typing import Any

from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.analyse.anatomy.heads import measure_heads
from spikesink.analyse.evaluation import evaluate
from spikesink.analyse.finding import targets_of
from spikesink.analyse.passes import Criteria, Scan, run_together
from spikesink.analyse.scan import measure
from spikesink.errors import DoesNotApplyError, NumericError
from spikesink.intervene import Targets, freeze_spikes, zero_spikes
from spikesink.observer import Progress, no_progress
from spikesink.records.study import CellFunction

SEQUENCES = 64
"""Constants and heads are measured on so many sequences, costs on as many others."""


def function_of(accessed: AccessedModel, ids: Tensor, progress: Progress = no_progress) -> CellFunction:
    """One constant for spike tokens against zero and a random constant; heads with the sink taken out.

    ids (sequence, token), none of them trained on. What does not apply is said why.
    """
    count = max(1, min(SEQUENCES, len(ids) // 2))
    scanned, _ = measure(accessed, ids[:count], Criteria(), progress=progress)
    targets = targets_of(scanned, progress=progress)
    facts: dict[str, Any] = {
        "spike_tokens": targets.spike_tokens / count, "same_context": targets.same_context,
        "attention_behind": targets.attention_behind,
    }  # fmt: skip
    try:
        facts |= _spike_costs(accessed, ids[count : 2 * count], targets)
    except (DoesNotApplyError, NumericError) as reason:
        facts["spikes_missing"] = str(reason)
    try:
        facts |= _heads(scanned, progress)
    except DoesNotApplyError as reason:
        facts["sinks_missing"] = str(reason)
    return CellFunction.model_validate(facts)


def _spike_costs(accessed: AccessedModel, ids: Tensor, targets: Targets) -> dict[str, float]:
    contexts = {
        "freeze_nats": freeze_spikes(accessed, targets),
        "zero_nats": zero_spikes(accessed, targets),
        "random_constant_nats": freeze_spikes(accessed, targets, control="random_constant", seed=1),
    }
    plain = evaluate(accessed, ids, loss_only=True).losses
    return {
        name: float((evaluate(accessed, ids, context, loss_only=True).losses - plain).mean())
        for name, context in contexts.items()
    }


def _heads(scanned: Scan, progress: Progress) -> dict[str, float]:
    """Means over heads, and over sink heads, which give their sink as much as the criterion asks; the correlation."""
    section, _ = run_together(scanned, {"heads": measure_heads(scanned, progress, effects=False)}, progress)["heads"]
    write = [head.mass_with_write for head in section.heads]
    sinks = [head for head in section.heads if head.sink_mass >= scanned.sinks.importance_min]
    reach = [head.distance / section.uniform_distance[head.block] for head in sinks if head.distance is not None]
    further = [row.within_layers.value for row in section.correlations if row.other == "distance"]
    means = {"write_with_mass": write, "sink_head_distance": reach, "distance_with_mass": further}
    known = {name: [value for value in values if value is not None] for name, values in means.items()}
    return {name: statistics.fmean(values) for name, values in known.items() if values}
