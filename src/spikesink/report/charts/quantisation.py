"""What int8 and a short KV cache cost, and what mends it."""

from typing import Any

import altair as alt

from spikesink.records.interventions import Damage, Interventions
from spikesink.report.charts.base import (
    BLUE,
    HEIGHT,
    ORANGE,
    Figure,
    Rows,
    colours,
    dashes,
    drawing,
    layered,
    line_legend,
    log_scale,
    table,
)
from spikesink.report.conditions import conditions, name
from spikesink.report.words import counted, listed, number


def quantisation_figures(record: Interventions) -> list[Figure]:
    found = record.quantisation
    figures = []
    if found.applicable and found.sites:
        figures.append(_sites(record))
    if found.applicable and found.blocks:
        figures.append(_blocks(record))
    return figures


def cache_figures(record: Interventions) -> list[Figure]:
    return [_cache(record)] if record.kv_cache.applicable and record.kv_cache.table else []


def _damage(row: Damage) -> dict[str, Any]:
    cost = row.loss_difference_nats
    return {"cost": cost.value, "low": cost.low, "high": cost.high, "perplexity": row.perplexity.value}


def _tips(*names: str) -> list[str | alt.Tooltip]:
    return [*[f"{name}:N" for name in names], *[alt.Tooltip(f"{n}:Q", format="+.4~g") for n in ("cost", "low", "high")],
            alt.Tooltip("perplexity:Q", format=",.5~g")]  # fmt: skip


def _sites(record: Interventions) -> Figure:
    found = record.quantisation
    rows: Rows = []
    for row in [row for row in found.sites if row.applicable] + [row for row in found.remedies if row.applicable]:
        static = ", static scale" if row.scales == "static" else ""
        label = f"{row.kind} int{row.bits}, per {row.granularity}{static}"
        kind = "as it is"
        if row.remedy:
            label, kind = f"{row.kind} int{row.bits} + {row.remedy}", "with a remedy"
        rows.append({"configuration": label, "kind": kind, **_damage(row)})
    order = [row["configuration"] for row in rows]
    kinds = ("as it is", "with a remedy")
    y = alt.Y("configuration:N", title=None, sort=order)
    base = drawing().encode(y, alt.Color("kind:N", title=None, scale=colours(kinds, [BLUE, ORANGE])))
    x = alt.X("cost:Q", title="cost in nats (symmetric log)", scale=alt.Scale(type="symlog", constant=0.01, nice=False),
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
        caption="Simulated quantisation in all blocks: mean loss less that of the unquantised model, 95 % interval "
        f"over {counted(n, 'sequence')}. {found.weights_note or ''} {conditions(record)}",
        alternative=f"Bars of {len(rows)} configurations; the dearest is {worst['configuration']} with "
        f"{worst['cost']:+.2f} nats.",
    )


def _blocks(record: Interventions) -> Figure:
    found = record.quantisation
    rows = [
        {"block": (row.blocks or [0])[0], "kind": "worst" if (row.blocks or [0])[0] in found.worst_blocks else "other",
         **_damage(row)}
        for row in found.blocks
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
    worst = listed(sorted(found.worst_blocks)) or "none"
    return Figure(
        name="quantisation_blocks",
        title=f"Which blocks of {found.worst_kind} break int8",
        chart=layered(ranges, points, height=HEIGHT - 60),
        rows=table(rows),
        caption=f"Int8 with one scale per tensor at the input of {found.worst_kind}, one block at a time; marked "
        f"blocks do a notable share of the damage: {worst}. 95 % intervals over sequences. {conditions(record)}",
        alternative=f"Cost of quantising one block at a time; blocks that stand out: {worst}.",
    )


def _cache(record: Interventions) -> Figure:
    found = record.kv_cache
    rows: Rows = [
        {
            "window": row.window, "kept": row.keep,
            "line": f"window {row.window}" + (", not the first" if row.first else ""),
            "perplexity": row.perplexity.value, "low": row.perplexity.low, "high": row.perplexity.high,
        }
        for row in found.table
        if row.window is not None
    ]  # fmt: skip
    lines = list(dict.fromkeys(row["line"] for row in rows))
    base = drawing().encode(
        alt.X("kept:Q", title="tokens kept", axis=alt.Axis(tickMinStep=1, grid=False)),
        alt.Y("perplexity:Q", title="perplexity", scale=log_scale(row["perplexity"] for row in rows)),
        alt.Color("line:N", title=None, scale=colours(lines), legend=line_legend()),
    )
    tips = ["line:N", "kept:Q", alt.Tooltip("perplexity:Q", format=".4~g"), alt.Tooltip("low:Q", format=".4~g"),
            alt.Tooltip("high:Q", format=".4~g")]  # fmt: skip
    full = next((row.perplexity.value for row in found.table if row.window is None), None)
    source = (record.provenance.settings.get("cache_tokens") or {}).get("source")
    of = f" of {source}" if source else ""
    kept = "none tried is enough" if found.keep is None else f"keep {found.keep}"
    return Figure(
        name="kv_cache",
        title="How many first tokens a KV cache must keep",
        chart=layered(
            base.mark_line(strokeWidth=2).encode(alt.StrokeDash("line:N", title=None, scale=dashes(lines))),
            base.mark_point(filled=True, size=45, opacity=1).encode(tooltip=tips),
            height=HEIGHT - 40,
        ),
        rows=table(rows),
        caption=f"Perplexity with a streaming cache of so many tokens, so many of them the first ones; full attention: "
        f"{number(full)}. Rule: {kept}, the fewest within {found.tolerance_nats:g} nats of the best at the largest "
        f"window. "
        f"{found.sequences} × {found.tokens} tokens{of}; {name(record.provenance.model)}.",
        alternative=f"Perplexity by kept tokens and window; {kept}; full attention has {number(full)}.",
    )
