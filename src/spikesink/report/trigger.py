"""Which tokens spike and why: the vocabulary probe, and the way of the first token to s*. Table 2; eq. 22."""

from itertools import pairwise

import altair as alt
import numpy as np

from spikesink.positions import placed
from spikesink.records import Anatomy
from spikesink.records.sections import trigger as sections
from spikesink.report.document import Merit, Part, Table
from spikesink.report.drawing import (
    BLUE,
    ORANGE,
    Figure,
    Rows,
    block_axis,
    colours,
    drawing,
    inline,
    layered,
    lines,
    magnitude_axis,
    table,
)
from spikesink.report.format import interval, number, percent, quantity, shown

BINS = 60
PLACES = ("alone at position 0", "later, behind random items")
TOKENS = ("first token", "later tokens")


CLASSES = 3
"""Early attention blocks whose classes of tokens are listed."""
LISTED = 20


def trigger_part(record: Anatomy, section: sections.Trigger) -> Part:
    """What the trigger's section of the record says."""
    tables = [_self_sinking(section)] if section.self_sinking else []
    return Part(
        "trigger",
        "Which tokens trigger it",
        "The first token attends only to itself, so attention is one fixed linear map there, whatever the token is. "
        "Whether it is that map that makes it spike is tried by leaving it out.",
        merits=_merits(section),
        figures=trigger_figures(record, section),
        tables=[*tables, _exceptions(section.probe)] if section.probe.exceptions else tables,
        note=" ".join([*_attention(section), *_direction_by_kind(section), *_refusals(section)]),
    )


def _count(probe: sections.VocabularyProbe) -> sections.ProbeCount:
    return next(count for count in probe.counts if count.criterion == probe.criterion)


def _merits(section: sections.Trigger) -> list[Merit]:
    probe, count = section.probe, _count(section.probe)
    merits = [
        Merit("spike alone at position 0", count.first_ratio, "%",
              note=f"of {probe.items:,} vocabulary items (above {number(count.threshold)})"),
        Merit("behind random items", count.later_ratio, "%", note="of them: the control"),
    ]  # fmt: skip
    if section.first_token_map is not None and section.first_token_map.blocks:
        last = section.first_token_map.blocks[-1]
        note = f"the first token's state before block {placed(last.block)}; later tokens {number(last.before_later)}"
        merits.append(Merit("|cos| with s*", last.before_first, note=note))
    if section.self_sinking:
        classes = {group.name: group for group in section.self_sinking[0].classes}
        own, other = classes["delimiter"].self_attention, classes["other"].self_attention
        note = f"in block {placed(section.self_sinking[0].block)}; other tokens {quantity(other.value)}"
        merits.append(Merit("delimiters' self-attention", own.value, low=own.low, high=own.high, note=note))
    return merits


def _attention(section: sections.Trigger) -> list[str]:
    """What leaving attention writes out does to items alone at position 0, as a sentence."""
    ablation = section.attention_ablation
    if ablation is None:
        return []
    if not ablation.spiking_share:
        return [f"None of {ablation.items:,} items alone at position 0 spikes, so leaving attention out says nothing."]
    every = ablation.rows[0]
    text = f"Of {ablation.items:,} items alone at position 0, {percent(ablation.spiking_share)} spike"
    text += f"; without any attention write before block {placed(ablation.block)} {percent(every.spiking_share)} do"
    if ablation.free_from == every.first_block:
        return [f"{text}: attention is not what makes them spike."]
    free = next((row for row in ablation.rows if row.first_block == ablation.free_from), None)
    if free is not None:
        text += f", without those from block {placed(free.first_block)} on {percent(free.spiking_share)}"
    alone = ablation.rows[-1]
    if (alone.first_block, alone.last_block) == (every.first_block, every.first_block):
        text += f", without block {placed(alone.first_block)} alone {percent(alone.spiking_share)}"
    return [f"{text}: attention is needed, " + ("but not from there on." if free else "to the last block before.")]


def _direction_by_kind(section: sections.Trigger) -> list[str]:
    """Which kind of block turns the first token to s*, as a sentence."""
    blocks = section.first_token_map.blocks if section.first_token_map is not None else []
    attention = [after - before for before, after in map(_ends, blocks) if before is not None and after is not None]
    between = [
        before - after
        for (earlier, (_, after)), (later, (before, _)) in pairwise((block, _ends(block)) for block in blocks)
        if before is not None and after is not None and later.block == earlier.block + 2
    ]
    if not between:
        return []
    return [
        f"From block {placed(blocks[0].block)} to {placed(blocks[-1].block)} attention blocks change the first "
        f"token's |cos| with s* by {sum(attention):+.3f} in all, FFN blocks by {sum(between):+.3f}."
    ]


def _ends(block: sections.FirstTokenBlock) -> tuple[float | None, float | None]:
    """|cos| with s* before and after the block; None for both where one is not known."""
    known = block.before_first is not None and block.after_first is not None
    return (block.before_first, block.after_first) if known else (None, None)


def _refusals(section: sections.Trigger) -> list[str]:
    reasons = (("The first token's way to s*", section.first_token_reason),
               ("Leaving attention out", section.attention_ablation_reason),
               ("Self-sinking of delimiters", section.self_sinking_reason))  # fmt: skip
    return [f"{what} does not apply: {reason}." for what, reason in reasons if reason]


def _self_sinking(section: sections.Trigger) -> Table:
    """First tokens, delimiters and others in the first attention blocks."""
    rows = [
        [
            placed(block.block), group.name, f"{group.tokens:,}", interval(group.self_attention),
            number(group.uniform), interval(group.norm_magnitude), interval(group.gamma_cosine),
        ]
        for block in (section.self_sinking or [])[:CLASSES]
        for group in block.classes
    ]  # fmt: skip
    return Table(
        "Self-sinking: who attends to itself in the first blocks",
        ("block", "tokens", "n", "self-attention", "uniform", "normed magnitude", "cos with γ"),
        rows, words=2, note="Means with 95 % bootstrap intervals over sequences.", brief=(),
    )  # fmt: skip


def _exceptions(probe: sections.VocabularyProbe) -> Table:
    """Vocabulary items that do not spike alone at position 0."""
    rows = [
        [shown(item.text), f"{item.token_id}", number(item.value), number(item.embedding_norm)]
        for item in probe.exceptions[:LISTED]
    ]
    some = f"; the first {len(rows)} are listed" if len(rows) < probe.exception_count else ""
    return Table(
        f"Items that do not spike alone at position 0: {probe.exception_count:,} of {probe.items:,}",
        ("item", "id", "largest magnitude", "embedding norm"), rows, most=6,
        note=f"Median embedding norm {number(probe.median_embedding_norm)}{some}.",
    )  # fmt: skip


def trigger_figures(record: Anatomy, section: sections.Trigger) -> list[Figure]:
    """The charts of the section."""
    figures = [_vocabulary(record, section.probe)] if "trigger.first" in record.arrays else []
    first = section.first_token_map
    return [*figures, _direction(record, first)] if first is not None and first.blocks else figures


def _vocabulary(record: Anatomy, probe: sections.VocabularyProbe) -> Figure:
    both = [np.maximum(record.arrays[f"trigger.{name}"].astype(float), 1e-6) for name in ("first", "later")]
    low, high = min(values.min() for values in both), max(values.max() for values in both)
    edges = np.geomspace(low, high * (1 + 1e-9), BINS + 1)
    rows: Rows = []
    for place, values in zip(PLACES, both, strict=True):
        counts, _ = np.histogram(values, edges)
        rows += [
            {"place": place, "low": float(edges[i]), "high": float(edges[i + 1]), "items": int(n)}
            for i, n in enumerate(counts) if n
        ]  # fmt: skip
    most = max(row["items"] for row in rows)
    magnitudes = alt.Scale(type="log", nice=False)
    counts = alt.Axis(values=[0, *[10**power for power in range(6) if 10**power <= most]], format=",d")
    bars = drawing().mark_bar(opacity=0.7).encode(
        alt.X("low:Q", title="largest magnitude of the item's state", scale=magnitudes, axis=magnitude_axis(edges)),
        alt.X2("high:Q"),
        alt.Y("items:Q", title="vocabulary items", stack=None, scale=alt.Scale(type="symlog", constant=1), axis=counts),
        alt.Y2Datum(0),
        alt.Color("place:N", title=None, scale=colours(PLACES, [ORANGE, BLUE])),
        tooltip=["place:N", alt.Tooltip("low:Q", format=".4~g"), alt.Tooltip("high:Q", format=".4~g"), "items:Q"],
    )  # fmt: skip
    count = _count(probe)
    rule = alt.Chart(inline([{"low": count.threshold}])).mark_rule(strokeDash=[4, 3]).encode(alt.X("low:Q"))
    text = f"{percent(count.first_ratio)} of {probe.items:,} items spike alone at position 0 and "
    text += f"{percent(count.later_ratio)} at a later position"
    return Figure(
        name="vocabulary_probe",
        title="The place or the token: what makes the spike?",
        chart=layered(bars, rule),
        rows=table(rows),
        caption=f"{text} (above {number(count.threshold)}, dashed; rule {count.criterion}); after block "
        f"{placed(probe.block)}, every item of the vocabulary.",
        alternative=f"Two histograms: {text}.",
    )


def _direction(record: Anatomy, first: sections.FirstTokenMap) -> Figure:
    rows: Rows = []
    for block in first.blocks:
        for who, value in zip(TOKENS, (block.after_first, block.after_later), strict=True):
            if value is not None:
                rows.append({"block": block.block, "who": who, "cosine": value})
    y = alt.Y("cosine:Q", title="|cos(h, s*)| after the block", scale=alt.Scale(domainMin=0))
    random = alt.Chart(inline([{"cosine": first.random_cosine}])).mark_rule(strokeDash=[2, 2])
    tips = ["block:Q", "who:N", alt.Tooltip("cosine:Q", format=".3f")]
    return Figure(
        name="first_token_direction",
        title="How the first token comes to point in the amplified direction",
        chart=lines(
            "who",
            TOKENS,
            block_axis("attention block"),
            y,
            tips,
            hues=[ORANGE, BLUE],
            size=24,
            over=[random.encode(alt.Y("cosine:Q"))],
        ),
        rows=table(rows),
        caption=f"Mean |cos| of the residual with s* of channel {first.channel} in block {placed(first.step_block)}: "
        f"{first.n_first} items alone at position 0, {first.n_later} ordinary later tokens; dashed: random directions "
        f"({number(first.random_cosine)}).",
        alternative="Line chart of the cosine with s* over the early attention blocks, first token against later ones.",
    )
