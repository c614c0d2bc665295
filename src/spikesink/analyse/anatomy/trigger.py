"""Which tokens spike, and why: vocabulary probe, the first token's map into s*, self-sinking delimiters. Spec 2.3."""

import numpy as np

from spikesink.analyse.anatomy.first_token_map import first_token_map
from spikesink.analyse.anatomy.self_sinking import self_sinking
from spikesink.analyse.anatomy.vocabulary_probe import LATER_LENGTH, Probed, probe_vocabulary
from spikesink.analyse.passes import Progress
from spikesink.analyse.scanned import Scanned
from spikesink.errors import DoesNotApplyError
from spikesink.records import anatomy as record

PRIMARY = "sun2024"
ABSOLUTE = 1000.0
LISTED_EXCEPTIONS = 64


def measure_trigger(scanned: Scanned, progress: Progress) -> tuple[record.Trigger, dict[str, np.ndarray]]:
    """The probe for any model; the rest where there are spikes to explain."""
    block = plateau_block(scanned)
    probed = probe_vocabulary(scanned.accessed, block, progress=progress)
    arrays = {"first": probed.first, "later": probed.later, "embedding_norm": probed.embedding_norm}
    fixed_map = map_reason = sinking = sinking_reason = None
    try:
        fixed_map = first_token_map(scanned, progress)
    except DoesNotApplyError as reason:
        map_reason = str(reason)
    try:
        sinking = self_sinking(scanned, block, progress)
    except DoesNotApplyError as reason:
        sinking_reason = str(reason)
    section = record.Trigger(
        probe=_probe_record(scanned, block, probed),
        first_token_map=fixed_map,
        first_token_reason=map_reason,
        self_sinking=sinking,
        self_sinking_reason=sinking_reason,
    )
    return section, arrays


def plateau_block(scanned: Scanned) -> int:
    """The last step-up block, or the block of the largest value where no step is known."""
    steps = scanned.steps
    return max(steps.step_up) if steps is not None and steps.step_up else scanned.spike.block


def _probe_record(scanned: Scanned, block: int, probed: Probed) -> record.VocabularyProbe:
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
