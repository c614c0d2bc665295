"""Which tokens spike, and why: vocabulary probe, alignment with s*, early attention left out, delimiters. Spec 2.3."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from spikesink.analyse.anatomy.attention_ablation import attention_ablation
from spikesink.analyse.anatomy.first_token_map import first_token_map
from spikesink.analyse.anatomy.self_sinking import self_sinking
from spikesink.analyse.anatomy.vocabulary_probe import LATER_LENGTH, Probed, probe_vocabulary
from spikesink.analyse.passes import Progress, Scan
from spikesink.errors import DoesNotApplyError
from spikesink.records import anatomy as record

PRIMARY = "sun2024"
ABSOLUTE = 1000.0
LISTED_EXCEPTIONS = 64
Part = TypeVar("Part")


def measure_trigger(scanned: Scan, progress: Progress) -> tuple[record.Trigger, dict[str, np.ndarray]]:
    """The probe for any model; the rest where there are spikes to explain."""
    block = plateau_block(scanned)
    probed = probe_vocabulary(scanned.accessed, block, progress=progress)
    arrays = {"first": probed.first, "later": probed.later, "embedding_norm": probed.embedding_norm}
    probe = _probe_record(scanned, block, probed)
    threshold = next(count.threshold for count in probe.counts if count.criterion == PRIMARY)
    fixed_map, map_reason = _or_reason(lambda: first_token_map(scanned, progress))
    ablation, ablation_reason = _or_reason(lambda: attention_ablation(scanned, block, threshold, progress))
    sinking, sinking_reason = _or_reason(lambda: self_sinking(scanned, block, progress))
    section = record.Trigger(
        probe=probe,
        first_token_map=fixed_map,
        first_token_reason=map_reason,
        self_sinking=sinking,
        self_sinking_reason=sinking_reason,
        attention_ablation=ablation,
        attention_ablation_reason=ablation_reason,
    )
    return section, arrays


def _or_reason(measure: Callable[[], Part]) -> tuple[Part | None, str | None]:
    """A part of the section, or why it does not apply."""
    try:
        return measure(), None
    except DoesNotApplyError as reason:
        return None, str(reason)


def plateau_block(scanned: Scan) -> int:
    """The last step-up block, or the block of the largest value where no step is known."""
    steps = scanned.steps
    return max(steps.step_up) if steps is not None and steps.step_up else scanned.spike.block


def _probe_record(scanned: Scan, block: int, probed: Probed) -> record.VocabularyProbe:
    statistics, criteria = scanned.spikes.residuals[block], scanned.criteria.spikes
    thresholds = {
        "sun2024": max(criteria.sun2024_absolute, criteria.sun2024_ratio * statistics.median),
        "share_of_spike": criteria.share_of_spike_min * statistics.maximum,
        "absolute_1000": ABSOLUTE,
    }
    below = np.nonzero(~(probed.first > thresholds[PRIMARY]))[0]
    listed = below[np.argsort(probed.first[below], kind="stable")][:LISTED_EXCEPTIONS]
    return record.VocabularyProbe(
        block=block,
        items=len(probed.ids),
        later_length=LATER_LENGTH,
        ordinary_median=statistics.median,
        criterion=PRIMARY,
        counts=[_count(name, threshold, probed) for name, threshold in thresholds.items()],
        first_median=float(np.median(probed.first)),
        later_median=float(np.median(probed.later)),
        exceptions=[
            record.ProbeException(
                token_id=int(probed.ids[index]),
                text=scanned.accessed.token_text(int(probed.ids[index])),
                value=float(probed.first[index]),
                embedding_norm=float(probed.embedding_norm[index]),
            )
            for index in listed
        ],
        exception_count=len(below),
        median_embedding_norm=float(np.median(probed.embedding_norm)),
    )


def _count(name: str, threshold: float, probed: Probed) -> record.ProbeCount:
    first, later = int((probed.first > threshold).sum()), int((probed.later > threshold).sum())
    return record.ProbeCount(
        criterion=name,
        threshold=threshold,
        first_count=first,
        first_ratio=first / len(probed.ids),
        later_count=later,
        later_ratio=later / len(probed.ids),
    )
