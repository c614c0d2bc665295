"""How many first tokens a KV cache must keep."""

import altair as alt

from spikesink.records.deployment import REASSIGNED, TRUE, KeptSinks
from spikesink.records.interventions import Interventions
from spikesink.report.conditions import name
from spikesink.report.document import Part, Table
from spikesink.report.drawing import HEIGHT, Figure, Rows, lines, log_scale, table
from spikesink.report.format import NONE, number
from spikesink.report.interventions import cost_text


def kv_cache_part(record: Interventions) -> Part:
    """What a streaming cache of few tokens costs."""
    section = record.kv_cache
    return Part(
        "kv-cache",
        "KV cache: how many first tokens to keep",
        "A cache that forgets the first tokens loses the keys that heads sink on.",
        figures=[_cache(record)] if section.table else [],
        tables=[_table(record)] if section.table else [],
        note=" ".join(filter(None, [section.note, _refused(section.reassigned_reason)])),
        label="KV cache",
    )


def _table(record: Interventions) -> Table:
    section = record.kv_cache
    rows = [
        [
            "full" if row.window is None else f"{row.window}", _kept(row), row.positions, number(row.perplexity.value),
            NONE if row.window is None else cost_text(row.loss_difference_nats),
        ]
        for row in section.table
    ]  # fmt: skip
    styles = [
        "dim" if row.first else "strong" if row.keep == section.keep and row.window and row.positions == TRUE else ""
        for row in section.table
    ]
    title = f"Streaming KV cache, {section.sequences} × {section.tokens} tokens"
    return Table(
        title, ("cache", "kept", "positions", "perplexity", "cost in nats"), rows, styles, words=3,
        note="Positions: those in the text, or reassigned by the place in the cache, as StreamingLLM and llama.cpp's "
        "context shift do; the same where no first token is kept.",
    )  # fmt: skip


def _refused(reason: str | None) -> str | None:
    return f"Reassigned positions do not apply: {reason}." if reason else None


def _kept(row: KeptSinks) -> str:
    if row.keep is None:
        return NONE
    return f"{row.keep}, not the first" if row.first else f"{row.keep}"


def _cache(record: Interventions) -> Figure:
    section = record.kv_cache
    rows: Rows = [
        {
            "window": row.window, "kept": row.keep,
            "line": f"window {row.window}" + (", not the first" if row.first else "")
            + (", reassigned" if row.positions == REASSIGNED else ""),
            "perplexity": row.perplexity.value, "low": row.perplexity.low, "high": row.perplexity.high,
        }
        for row in section.table
        if row.window is not None
    ]  # fmt: skip
    names = list(dict.fromkeys(row["line"] for row in rows))
    x = alt.X("kept:Q", title="tokens kept", axis=alt.Axis(tickMinStep=1, grid=False))
    y = alt.Y("perplexity:Q", title="perplexity", scale=log_scale(row["perplexity"] for row in rows))
    tips = ["line:N", "kept:Q", alt.Tooltip("perplexity:Q", format=".4~g"), alt.Tooltip("low:Q", format=".4~g"),
            alt.Tooltip("high:Q", format=".4~g")]  # fmt: skip
    full = next((row.perplexity.value for row in section.table if row.window is None), None)
    source = (record.provenance.settings.get("cache_tokens") or {}).get("source")
    of = f" of {source}" if source else ""
    kept = "none tried is enough" if section.keep is None else f"keep {section.keep}"
    return Figure(
        name="kv_cache",
        title="How many first tokens a KV cache must keep",
        chart=lines("line", names, x, y, tips, size=45, height=HEIGHT - 40),
        rows=table(rows),
        caption=f"Perplexity with a streaming cache of so many tokens, so many of them the first ones; full attention: "
        f"{number(full)}. Rule: {kept}, the fewest within {section.tolerance_nats:g} nats of the best at the largest "
        f"window.",
        conditions=f"{section.sequences} × {section.tokens} tokens{of}; {name(record.provenance.model)}.",
        alternative=f"Perplexity by kept tokens and window; {kept}; full attention has {number(full)}.",
    )
