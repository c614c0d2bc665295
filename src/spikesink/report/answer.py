"""The summary in sentences: what spikes, what sinks, what breaks without them, what to do."""

from collections import Counter

import numpy as np

from spikesink.positions import first_half
from spikesink.records import Anatomy
from spikesink.records.advice import advice as recommended
from spikesink.records.advice import missing_maps, unmeasured
from spikesink.records.deployment import PARTS, UNASKED
from spikesink.records.interventions import InterventionRow, Interventions, Recommendation
from spikesink.report.command import command
from spikesink.report.document import Statement
from spikesink.report.format import blocks, counted, listed, number, percent, quantity, quoted
from spikesink.report.next_step import intervene_s, lasting
from spikesink.report.runs import Model
from spikesink.report.training import training_statement

HEADING = "What to do"
LISTED = 4


def advice(anatomy: Anatomy | None, interventions: Interventions | None) -> Statement:
    """What interventions recommend; where nothing was measured for that, what a scan alone can say."""
    points: list[str] = []
    line = None
    if anatomy is not None and not (interventions and says_what_to_do(interventions)):
        cache, line = _cache(anatomy)
        points = [*_precision(anatomy), *cache]
    elif interventions is not None:
        points = _measured(interventions, anatomy)
    if interventions is not None:
        missing, more = _not_measured(interventions)
        points, line = points + missing, more or line
    if len(points) == 1:
        return Statement(HEADING, points[0], command=line)
    return Statement(HEADING, "", tuple(points), command=line)


def says_what_to_do(record: Interventions) -> bool:
    """Whether anything was measured that says what to do."""
    return any(getattr(record, name).applicable for name in PARTS)


def _measured(record: Interventions, anatomy: Anatomy | None) -> list[str]:
    points = _modules(record.recommendation, anatomy)
    budget, has_spikes = record.recommendation.budget, bool(record.found.get("has_spikes"))
    parts = recommended(has_spikes, record.quantisation, record.kv_cache, budget, record.remedies, record.formats)
    if " ".join(parts) == record.recommendation.text:
        return points + parts
    # A record of another version may say it in other words: those are shown as they are.
    return [
        *points,
        record.recommendation.text,
        *unmeasured(missing_maps(record.quantisation, record.remedies, record.formats)),
    ]


def _not_measured(record: Interventions) -> tuple[list[str], str | None]:
    """What else says what to do, and the command that measures what was not asked for."""
    reasons = {name: briefly(getattr(record, name).reason) for name in PARTS if not getattr(record, name).applicable}
    unasked = [name for name, reason in reasons.items() if reason in ("", UNASKED)]
    points = [f"Not measured: {name} ({reason})." for name, reason in reasons.items() if name not in unasked]
    if not unasked:
        return points, None
    line = command("intervene", record.provenance, "--which", ",".join(unasked))
    return [*points, f"Not measured: {listed(unasked)}; {line} measures that."], line


def briefly(reason: str | None) -> str:
    """Why something was not measured, without the option that stands in the command beside it."""
    return (reason or "").split(" (--which")[0]


def _modules(advised: Recommendation, anatomy: Anatomy | None) -> list[str]:
    """What breaks int8 by the names of modules, to be pasted into a list of what is left alone."""
    if advised.budget is not None and advised.budget.chosen is not None:
        # It says which layers to ignore, if any.
        return []
    by_block = module_names(anatomy) if anatomy is not None else {}
    names = advised.modules or [name for block in advised.blocks if (name := by_block.get(block))]
    return [f"Keep in high precision: {', '.join(names)}."] if names else []


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
    written = [f"block {record.placed(block)}" + (f", {names[block]}" if names.get(block) else "") for block in blocks]
    where = f"; the blocks that write and remove them: {'; '.join(written)}" if written else ""
    channels = f"channel{'s' if len(summary.spike_channels) > 1 else ''} {listed(summary.spike_channels, 8)}"
    return [f"In high precision first: {_advice_tokens(record)}; {channels} of the residual stream{where}."]


def _advice_tokens(record: Anatomy) -> str:
    """The tokens that spike, as one would name them in a list of exceptions."""
    first = any(token.position == 0 for token in record.summary.spike_tokens)
    later = Counter(token.text for token in record.summary.spike_tokens if token.position > 0)
    parts = ["the first token of a sequence"] if first else []
    parts += [f"{quoted(text)} where it stands later" for text, _ in later.most_common(LISTED)]
    return listed(parts, LISTED + 1)


def _cache(record: Anatomy) -> tuple[list[str], str | None]:
    """What a small KV cache must keep, and the command that measures it where that is more than the first token."""
    summary = record.summary
    if not summary.has_sinks:
        return [], None
    places = _sink_places(record)
    if 2 * places[0] > places.total():
        heads = counted(summary.sink_head_count, "head")
        return [f"Keep the first token in the KV cache: {heads} of {summary.head_count:,} attend to a sink."], None
    most = places.most_common(LISTED)
    where = listed([f"{place} ({counted(heads, 'head')})" for place, heads in most])
    line = command("intervene", record.provenance, "--which", "kv_cache")
    text = f"Keep positions 0 to {max(place for place, _ in most)} in the KV cache, not the first token alone: heads "
    return [f"{text}sink mostly on position{'s' * (len(most) > 1)} {where}. {line} measures how many."], line


def answer(model: Model) -> list[Statement]:
    """What spikes, where and who makes it; what sinks; what breaks without; what to do; how it was trained.

    What to do comes first where it was measured.
    """
    statements = []
    if model.anatomy is not None:
        statements += [Statement("Spikes", _spikes(model.anatomy)), Statement("Sinks", _sinks(model.anatomy))]
    elif model.interventions is not None:
        statements.append(_found(model.interventions))
    if model.anatomy is not None or model.interventions is not None:
        statements.append(_breaks(model))
        measured = model.interventions is not None and says_what_to_do(model.interventions)
        statements.insert(0 if measured else len(statements), advice(model.anatomy, model.interventions))
    if model.interventions is not None and model.interventions.dose:
        # Where nothing but the sweep was asked for it is the answer.
        statements.insert(len(statements) if model.interventions.has_changes else 0, _swept(model.interventions))
    if model.training is not None:
        statements.append(training_statement(model.training))
    return statements


def _spikes(record: Anatomy) -> str:
    summary = record.summary
    top = f"{number(summary.spike)} in channel {summary.spike_channel} after block {record.placed(summary.spike_block)}"
    if not summary.has_spikes:
        rule = record.spikes
        if rule.token_share_max is not None and (rule.token_share or 0) > rule.token_share_max and rule.reason:
            return f"No spikes: {rule.reason}. The largest magnitude is {top}."
        return (
            f"No spikes. The largest magnitude is {top}. At most it is {number(summary.max_over_median)} × the median "
            f"and {number(rule.token_ratio)} × its own token's median; a spike needs {rule.max_over_median_min:g} × "
            f"and {rule.token_ratio_min:g} × after one block."
        )
    massive = massive_word(record)
    channels = f"{counted(len(summary.spike_channels), 'channel')} ({listed(summary.spike_channels, 6)})"
    text = f"The largest magnitude is {top}, {number(summary.max_over_median)} × the median: {massive}. {channels} and "
    text += f"{counted(record.spikes.token_count, 'token')} spike: {_tokens(record)}. {_made(record)}"
    return text


def massive_word(record: Anatomy) -> str:
    """Whether the published criterion of massive activations holds too, or ours alone."""
    rule = record.spikes
    if rule.massive_count:
        return "massive by Sun et al. 2024"
    return (
        f"an outlier by our rule, not massive by Sun et al. 2024 (above {rule.sun2024_absolute:g} and "
        f"{rule.sun2024_ratio:g} × the median)"
    )


def _tokens(record: Anatomy) -> str:
    """Where spike tokens stand; of the listed ones, which is said where not all are listed."""
    listed_tokens = record.summary.spike_tokens
    first = sum(token.position == 0 for token in listed_tokens)
    later = Counter(token.text for token in listed_tokens if token.position > 0)
    sequences = record.provenance.tokens.get("sequences")
    parts = []
    if first:
        parts.append(
            f"the first token of {first:,} of {sequences:,} sequences" if sequences else f"{first:,} first tokens"
        )
    if later:
        texts = listed([quoted(text) for text, _ in later.most_common(4)])
        parts.append(f"{counted(sum(later.values()), 'later one')} ({texts})")
    among = f" (of the {len(listed_tokens)} largest)" if len(listed_tokens) < record.spikes.token_count else ""
    return " and ".join(parts) + among


def _made(record: Anatomy) -> str:
    rule, summary = record.lifecycle.step_rule, record.summary
    if not rule.applies:
        return f"Which block makes them is not named: {rule.reason}."
    if not summary.step_up_blocks:
        return f"No single block makes them: none writes {percent(rule.share_min)} of the plateau by itself."
    up = blocks(summary.step_up_blocks, record.placed)
    text = f"{up[0].upper()}{up[1:]} {'makes' if len(summary.step_up_blocks) == 1 else 'make'} them"
    if summary.step_down_blocks:
        down = blocks(summary.step_down_blocks, record.placed)
        return f"{text}; {down} {'takes' if len(summary.step_down_blocks) == 1 else 'take'} them away."
    return f"{text}; no single block takes them away."


def _sinks(record: Anatomy) -> str:
    summary, sinks = record.summary, record.sinks
    if not summary.has_sinks:
        text = f"No sinks. No head puts more than {sinks.epsilon:g} of its attention on one key of the first half in "
        text += f"{percent(sinks.sink_rate_min)} of the sequences and {sinks.uniform_factor_min:g} × what uniform "
        text += f"attention would; the first token gets {number(sinks.first_key_importance)}, uniform would be "
        text += f"{number(sinks.uniform_first_key)}."
    else:
        text = f"{summary.sink_head_count:,} of {counted(summary.head_count, 'head')} sink (sink ratio "
        text += f"{percent(summary.sink_ratio)}, {sinks.metric}, ε = {sinks.epsilon:g}); {_target(record)}."
    if sinks.ratio_reason:
        text += f" {sinks.ratio_reason[0].upper()}{sinks.ratio_reason[1:].rstrip('.')}."
    if sinks.virtual_mass is not None:
        text += f" Virtual keys hold {percent(sinks.virtual_mass)} of attention and are counted apart."
    return text + _overlap(record)


def _sink_places(record: Anatomy) -> Counter[int]:
    """By position of a key: the sink heads that put most of their attention there."""
    importance, rows = record.arrays["key_importance"], record.arrays["attention_blocks"].tolist()
    keys = first_half(np.ones(importance.shape[-1], dtype=bool))
    return Counter(
        int(np.nanargmax(importance[rows.index(head.block), head.head, keys]))
        for head in record.sinks.heads
        if head.is_sink
    )


def _target(record: Anatomy) -> str:
    """On which key sink heads put most of their attention."""
    places = _sink_places(record)
    first = places[0]
    if first == places.total():
        return "all of them mostly on the first token"
    if first:
        return f"{first:,} of them mostly on the first token"
    return f"none of them mostly on the first token; most often on position {places.most_common(1)[0][0]}"


def _overlap(record: Anatomy) -> str:
    properties = record.further("properties")
    overlap = getattr(properties, "overlap", None)
    if overlap is None:
        return ""
    text = f" {overlap.both:,} of {counted(overlap.spikes, 'spike token')} are among the {overlap.sinks:,} sink tokens"
    later = getattr(properties, "overlap_later", None)
    if later is not None and later.spikes:
        text += f"; without first tokens, {later.both:,} of {later.spikes:,}"
    return f"{text}."


def _found(record: Interventions) -> Statement:
    targets = record.found
    has = "Spikes" if targets.get("has_spikes") else "No spikes"
    text = f"{has}: the largest magnitude is {number(targets.get('spike'))}"
    if targets.get("has_spikes"):
        text += (
            f", in {counted(len(targets.get('channels', [])), 'channel')} ({listed(targets.get('channels', []), 6)})"
        )
    sinks = f"{counted(len(targets.get('sink_heads', [])), 'head')} sink." if targets.get("has_sinks") else "No sinks."
    line = command("scan", record.provenance)
    text = f"{text}. {sinks} Their anatomy was not measured: {line} adds it."
    return Statement("Spikes and sinks", text, command=line)


def _breaks(model: Model) -> Statement:
    record = model.interventions
    if record is None or not record.has_changes:
        known = record or model.anatomy
        assert known is not None
        line = command("intervene", known.provenance)
        lasts = lasting(intervene_s(model.anatomy)) if model.anatomy else ""
        text = f"Not measured; {line} adds it{lasts}."
        return Statement("What breaks without them", text, measured=False, command=line)
    rows = {row.name: row for row in record.interventions if row.applicable and row.loss_difference_nats is not None}
    parts = []
    if "zero_spikes" in rows and "baseline" in rows:
        parts.append(f"Setting spikes to zero takes the perplexity from {_perplexity(rows['baseline'])} to "
                     f"{_perplexity(rows['zero_spikes'])}")  # fmt: skip
    if "freeze_spikes" in rows:
        part = f"one constant vector in place of every spike token's state costs {_cost(rows['freeze_spikes'])}"
        if record.dissociation.constant_suffices.answer == "not applicable":
            unread = record.found.get("attention_behind") == 0
            why = "no attention block reads them" if unread else "most are the same token behind the same ones"
            part += f", as it must, since {why}"
        parts.append(part)
    if "mask_sinks" in rows:
        parts.append(f"masking the sink keys costs {_cost(rows['mask_sinks'])}")
    text = "; ".join(parts)
    text = f"{text[0].upper()}{text[1:]}. " if text else ""
    return Statement("What breaks without them", f"{text}{record.dissociation.sentence}")


def _swept(record: Interventions) -> Statement:
    """How far one of spikes and sinks can be weakened before the other falls."""
    return Statement("How much is enough", "", tuple(f"{dose.name}: {dose.sentence}" for dose in record.dose))


def _perplexity(row: InterventionRow) -> str:
    assert row.perplexity is not None
    return number(row.perplexity.value)


def _cost(row: InterventionRow) -> str:
    cost = row.loss_difference_nats
    assert cost is not None
    return quantity(cost.value, "nats", cost.low, cost.high)
