"""What a serving engineer can act on, from what was measured: tokens, channels, blocks, kept first tokens."""

from collections import Counter
from typing import Any

from torch import Tensor

from spikesink.analyse.evaluation import Evaluator
from spikesink.records.advice import advice, advised_prefix, formats_within
from spikesink.records.deployment import Budget, Formats, KvCache, Quantisation, Remedies
from spikesink.records.interventions import Recommendation

LISTED = 8


def recommend(
    evaluator: Evaluator,
    quantised: Quantisation,
    cache: KvCache,
    budget: Budget | None,
    deployed: Remedies,
    formats: Formats,
) -> Recommendation:
    """What to do, in words and as lists."""
    targets = evaluator.targets
    return Recommendation(
        text=" ".join(advice(targets.has_spikes, quantised, cache, budget, deployed, formats)),
        tokens=_tokens(evaluator, evaluator.spike_tokens()),
        channels=list(targets.channels),
        blocks=sorted(quantised.worst_blocks),
        modules=quantised.worst_modules,
        keep_sink_tokens=cache.keep,
        budget=budget,
        prefix_ids=advised_prefix(deployed, budget),
        formats=formats_within(formats, budget),
    )


def _tokens(evaluator: Evaluator, spikes: Tensor | None) -> list[dict[str, Any]]:
    """Spike tokens as rules: the first position, and the most frequent token ids at later ones, with their share."""
    if spikes is None or not bool(spikes.any()):
        return []
    rules: list[dict[str, Any]] = []
    first = int(spikes[:, 0].sum())
    if first:
        rules.append({"position": 0, "spikes": first, "of": len(spikes)})
    later = spikes.clone()
    later[:, 0] = False
    for token_id, count in Counter(evaluator.ids[later].tolist()).most_common(LISTED):
        there = int((evaluator.ids[:, 1:] == token_id).sum())
        text = evaluator.accessed.token_text(token_id)
        rules.append({"token_id": token_id, "text": text, "spikes": count, "of": there})
    return rules
