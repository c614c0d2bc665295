"""What a serving engineer can act on, from what was measured: tokens, channels, blocks, kept first tokens."""

from collections import Counter
from typing import Any

from torch import Tensor

from spikesink.analyse.evaluation import Evaluator
from spikesink.records.interventions import Damage, KvCache, Quantisation, Recommendation

LISTED = 8


def recommend(evaluator: Evaluator, quantised: Quantisation, cache: KvCache) -> Recommendation:
    """What to do, in words and as lists."""
    targets = evaluator.targets
    sentences = [*_int8(quantised), *_cache(cache)]
    if not targets.has_spikes:
        sentences.insert(0, "The model has no spikes.")
    return Recommendation(
        text=" ".join(sentences) or "Nothing was measured that calls for a measure.",
        tokens=_tokens(evaluator, evaluator.spike_tokens()),
        channels=list(targets.channels),
        blocks=sorted(quantised.worst_blocks),
        keep_sink_tokens=cache.keep,
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


def _int8(quantised: Quantisation) -> list[str]:
    if not quantised.applicable or quantised.baseline is None or quantised.worst_kind is None:
        return []
    kind = quantised.worst_kind
    broken = next(row for row in quantised.sites if (row.kind, row.bits, row.granularity) == (kind, 8, "tensor"))
    if broken.loss_difference_nats.low <= 0.01:
        return ["Int8 with one scale per tensor does no notable damage at any site."]
    base = quantised.baseline.value
    text = f"Int8 with one scale per tensor breaks the input of {kind}: perplexity {base:.1f} to "
    text += f"{broken.perplexity.value:.1f}"
    if quantised.worst_blocks:
        text += f", most of it in block{'s' if len(quantised.worst_blocks) > 1 else ''} "
        text += ", ".join(map(str, sorted(quantised.worst_blocks)))
    if quantised.spike_share is not None:
        text += f"; {quantised.spike_share.value:.0%} of the damage goes when spike tokens are kept in high precision"
    options = sorted(quantised.remedies, key=lambda row: row.perplexity.value)
    return [text + ".", f"Remedies, the best first: {', '.join(map(_option, options))}."]


def _option(row: Damage) -> str:
    what = {
        "worst blocks kept": "keep these blocks in high precision",
        "per token": "one scale per token",
        "spike tokens kept": "keep spike tokens in high precision",
        "spike tokens frozen": "spike tokens from one constant",
    }.get(row.remedy or "", f"{row.remedy}")
    return f"{what} ({row.perplexity.value:.1f})"


def _cache(cache: KvCache) -> list[str]:
    if not cache.applicable or cache.keep is None:
        return []
    window = max(row.window for row in cache.table if row.window)
    rows = [row for row in cache.table if row.window == window and row.first == 0 and row.positions == "true"]
    by_keep = {row.keep: row.perplexity.value for row in rows}
    text = f"KV cache: keep {cache.keep} first token{'' if cache.keep == 1 else 's'}"
    return [f"{text} (window {window}: perplexity {by_keep[cache.keep]:.1f}, with none kept {by_keep[0]:.1f})."]
