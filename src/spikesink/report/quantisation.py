"""What int8 costs, site by site and block by block, and what mends it."""

from typing import Any

import altair as alt

from spikesink.positions import placed
from spikesink.records.advice import unmeasured
from spikesink.records.deployment import Damage, Quantisation
from spikesink.records.interventions import Interventions
from spikesink.report.document import Part, Table
from spikesink.report.drawing import (
    BLUE,
    HEIGHT,
    ORANGE,
    Figure,
    Rows,
    colours,
    drawing,
    layered,
    table,
)
from spikesink.report.format import NONE, counted, listed, number, shown, signed
from spikesink.report.interventions import ANOTHER_PROCESSOR, cost_text

WORST = 5
"""Blocks that a terminal lists, the dearest first."""


def quantisation_part(record: Interventions) -> Part:
    """What int8 costs, where, and what mends it."""
    section = record.quantisation
    return Part(
        "quantisation",
        "Int8: what breaks, and what mends it",
        "With one scale a tensor, one spike sets the scale, and what is ordinary is rounded away.",
        figures=quantisation_figures(record),
        tables=[_site_table(section), _block_table(section), *_remedies(section), *_tokens(record)],
        note=" ".join(filter(None, [section.weights_note, *unmeasured(section.skipped), ANOTHER_PROCESSOR])),
    )


def _site_table(section: Quantisation) -> Table:
    rows = [
        [row.kind, f"int{row.bits}", row.granularity + (", static" if row.scales == "static" else ""), *_cost(row)]
        for row in section.sites
        if row.applicable
    ]
    columns = ("site", "type", "scale per", "perplexity", "cost in nats")
    return Table("Simulated quantisation, all blocks", columns, rows, words=3)


def _block_table(section: Quantisation) -> Table:
    rows = sorted((row for row in section.blocks if row.blocks), key=lambda row: -row.loss_difference_nats.value)
    return Table(
        f"{section.worst_kind}, int8 per tensor: one block alone",
        ("block", "perplexity", "cost in nats"),
        [[placed((row.blocks or [0])[0]), *_cost(row)] for row in rows],
        ["strong" if (row.blocks or [0])[0] in section.worst_blocks else "dim" for row in rows],
        most=WORST,
    )


def _remedies(section: Quantisation) -> list[Table]:
    rows = [[row.remedy or NONE, *_cost(row)] for row in section.remedies if row.applicable]
    return [Table("What mends it, in all blocks", ("remedy", "perplexity", "cost in nats"), rows)] if rows else []


def _cost(row: Damage) -> tuple[str, str]:
    return number(row.perplexity.value), cost_text(row.loss_difference_nats)


def _tokens(record: Interventions) -> list[Table]:
    """Tokens to keep in high precision, as rules."""
    rows = [[_rule(rule), f"{rule['spikes']:,}", f"{rule['of']:,}"] for rule in record.recommendation.tokens]
    return [Table("Tokens that spike, as rules", ("token", "spikes", "of"), rows)] if rows else []


def _rule(rule: dict[str, Any]) -> str:
    if "position" in rule:
        return f"position {rule['position']}"
    return f"{shown(str(rule['text']))} (id {rule['token_id']}), later"


def quantisation_figures(record: Interventions) -> list[Figure]:
    """The charts of the section."""
    section = record.quantisation
    return [*([_sites(record)] if section.sites else []), *([_blocks(record)] if section.blocks else [])]


def _damage(row: Damage) -> dict[str, Any]:
    cost = row.loss_difference_nats
    return {"cost": cost.value, "low": cost.low, "high": cost.high, "perplexity": row.perplexity.value}


def _tips(*names: str) -> list[str | alt.Tooltip]:
    return [*[f"{name}:N" for name in names], *[alt.Tooltip(f"{n}:Q", format="+.4~g") for n in ("cost", "low", "high")],
            alt.Tooltip("perplexity:Q", format=",.5~g")]  # fmt: skip


def _sites(record: Interventions) -> Figure:
    section = record.quantisation
    rows: Rows = []
    for row in [row for row in section.sites if row.applicable] + [row for row in section.remedies if row.applicable]:
        static = ", static" if row.scales == "static" else ""
        label = f"{row.kind} int{row.bits}, per {row.granularity}{static}"
        kind = "as it is"
        if row.remedy:
            label, kind = f"{row.kind} int{row.bits} + {row.remedy}", "with a remedy"
        rows.append({"configuration": label, "kind": kind, **_damage(row)})
    order = [row["configuration"] for row in rows]
    kinds = ("as it is", "with a remedy")
    y = alt.Y("configuration:N", title=None, sort=order)
    base = drawing().encode(y, alt.Color("kind:N", title=None, scale=colours(kinds, [BLUE, ORANGE])))
    x = alt.X("cost:Q", title="cost in nats", scale=alt.Scale(type="symlog", constant=0.01, nice=False),
              axis=alt.Axis(values=[-0.1, -0.01, 0, 0.01, 0.1, 1, 10], format="~g"))  # fmt: skip
    bars = base.mark_bar(opacity=0.75, height=10).encode(x, tooltip=_tips("configuration", "kind"))
    ranges = drawing().mark_rule(strokeWidth=2).encode(y, alt.X("low:Q"), alt.X2("high:Q"))
    n = record.provenance.settings["evaluated_sequences"]
    worst = max(rows, key=lambda row: row["cost"])
    return Figure(
        name="quantisation_sites",
        wide=True,
        title="What quantisation costs, and what mends it",
        chart=layered(bars, ranges, height=max(140, 19 * len(rows))),
        rows=table(rows),
        caption="Simulated quantisation in all blocks: mean loss less that of the unquantised model, symmetric "
        f"logarithmic, 95 % interval over {counted(n, 'sequence')}.",
        alternative=f"Bars of {len(rows)} configurations; the dearest is {worst['configuration']} with "
        f"{signed(worst['cost'])} nats.",
    )


def _blocks(record: Interventions) -> Figure:
    section = record.quantisation
    rows = [
        {"block": (row.blocks or [0])[0], **_damage(row),
         "kind": "worst" if (row.blocks or [0])[0] in section.worst_blocks else "other"}
        for row in section.blocks
    ]  # fmt: skip
    base = drawing().encode(
        alt.X("block:Q", title="block quantised alone", axis=alt.Axis(grid=False, tickMinStep=1)),
        alt.Color("kind:N", title=None, scale=colours(("worst", "other"), [ORANGE, BLUE])),
    )
    ranges = base.mark_rule(strokeWidth=2).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    points = base.mark_point(filled=True, size=50, opacity=1).encode(
        alt.Y("cost:Q", title="cost in nats"),
        alt.Shape("kind:N", title=None, scale=alt.Scale(domain=["worst", "other"], range=["diamond", "circle"])),
        tooltip=_tips("block", "kind"),
    )
    worst = listed([placed(block) for block in sorted(section.worst_blocks)]) or "none"
    return Figure(
        name="quantisation_blocks",
        title=f"Which blocks of {section.worst_kind} break int8",
        chart=layered(ranges, points, height=HEIGHT - 60),
        rows=table(rows),
        caption=f"Int8 with one scale per tensor at the input of {section.worst_kind}, one block at a time; marked "
        f"blocks do a notable share of the damage: {worst}. 95 % intervals over sequences.",
        alternative=f"Cost of quantising one block at a time; blocks that stand out: {worst}.",
    )
