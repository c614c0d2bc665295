"""What to do, from what was measured: what to keep in high precision, what a KV cache must keep, what to run next."""

import re
from collections import Counter

from spikesink.records import Anatomy
from spikesink.records.interventions import Interventions
from spikesink.report.conditions import argument
from spikesink.report.document import Statement
from spikesink.report.format import counted, listed, placed, quoted

HEADING = "What to do"
LISTED = 4
PASSES = 45
"""About how many times `spikesink intervene` runs its text, in its default table."""
EVALUATED = 40
"""Sequences that it runs by default."""


def advice(anatomy: Anatomy | None, interventions: Interventions | None) -> Statement:
    """What interventions recommend; without them, what a scan alone can say."""
    if interventions is not None:
        return _measured(interventions, anatomy)
    assert anatomy is not None
    return Statement(HEADING, "", (*_precision(anatomy), *_cache(anatomy), _next(anatomy)))


def minutes(record: Anatomy) -> str:
    """About how long `spikesink intervene` takes where this scan was made."""
    sequences = record.provenance.tokens.get("sequences") or EVALUATED
    seconds = record.timing.forward_s * EVALUATED / sequences * PASSES
    return f"about {max(1, round(seconds / 60))} min"


def _measured(record: Interventions, anatomy: Anatomy | None) -> Statement:
    points = list(_modules(record.recommendation.blocks, anatomy))
    points += [part.strip() for part in re.split(r"(?<=[a-z)])\. (?=[A-Z])", record.recommendation.text.rstrip("."))]
    sections = {"quantisation": record.quantisation, "kv_cache": record.kv_cache}
    missing = [name for name, section in sections.items() if not section.applicable]
    if missing:
        reasons = sorted({sections[name].reason for name in missing} - {None, ""}, key=str)
        why = "; ".join(map(str, reasons)) or "intervene --which all adds it"
        points.append(f"Not measured: {listed(missing)} ({why})")
    points = [f"{point}." for point in points]
    return Statement(HEADING, points[0]) if len(points) == 1 else Statement(HEADING, "", tuple(points))


def _modules(blocks: list[int], anatomy: Anatomy | None) -> list[str]:
    """Blocks that break int8 by the names of their modules, to be pasted into a list of what is left alone."""
    names = module_names(anatomy) if anatomy is not None else {}
    known = [name for block in blocks if (name := names.get(block))]
    return [f"Keep in high precision: {', '.join(known)}"] if known else []


def module_names(record: Anatomy) -> dict[int, str | None]:
    """Module of each block, as `named_modules` calls it; None in records from before it was kept."""
    return {cycle.block: cycle.module for cycle in record.lifecycle.blocks}


def _precision(record: Anatomy) -> list[str]:
    """What would suffer first from a coarse number format."""
    summary = record.summary
    if not summary.has_spikes:
        return ["No spikes: nothing that a scan sees calls for mixed precision."]
    names = module_names(record)
    blocks = summary.step_up_blocks + summary.step_down_blocks
    written = [f"block {placed(block)}" + (f", {names[block]}" if names.get(block) else "") for block in blocks]
    where = f"; the blocks that write and remove them: {'; '.join(written)}" if written else ""
    channels = f"channel{'s' if len(summary.spike_channels) > 1 else ''} {listed(summary.spike_channels, 8)}"
    return [f"In high precision first: {_tokens(record)}; {channels} of the residual stream{where}."]


def _tokens(record: Anatomy) -> str:
    """The tokens that spike, as one would name them in a list of exceptions."""
    first = any(token.position == 0 for token in record.summary.spike_tokens)
    later = Counter(token.text for token in record.summary.spike_tokens if token.position > 0)
    parts = ["the first token of a sequence"] if first else []
    parts += [f"{quoted(text)} where it stands later" for text, _ in later.most_common(LISTED)]
    return listed(parts, LISTED + 1)


def _cache(record: Anatomy) -> list[str]:
    summary = record.summary
    if not summary.has_sinks:
        return []
    heads = counted(summary.sink_head_count, "head")
    return [f"Keep the first token in the KV cache: {heads} of {summary.head_count:,} attend to a sink."]


def _next(record: Anatomy) -> str:
    command = f"spikesink intervene {argument(record.provenance.model)}"
    return f"Next: {command} measures what int8 and a short KV cache cost, and what breaks ({minutes(record)})."
