"""The five properties of massive activations with their verdicts, and whether spike tokens are sink tokens."""

from spikesink.records import Anatomy
from spikesink.records.sections import properties as sections
from spikesink.records.sections.heads import SinkTokenRule
from spikesink.report.document import Part, Table
from spikesink.report.format import counted, interval, number, percent

VERDICTS = {True: "holds", False: "does not hold", None: "not applicable"}
COLOURS = {"holds": "yes", "does not hold": "no"}


def properties_part(record: Anatomy, section: sections.Properties) -> Part:
    """What the properties' section of the record says."""
    tables = [_properties(section)]
    if section.overlap is not None:
        tables.append(_overlap(section))
    if section.overlap_curve:
        tables.append(_curve(section.overlap_curve, section.sink_tokens))
    reason = section.overlap_reason
    return Part(
        "properties",
        "The five properties",
        "Whether what was found is what the literature calls massive activations.",
        tables=tables,
        note=f"Whether spike tokens are sink tokens does not apply: {reason}." if reason else "",
    )


def _properties(section: sections.Properties) -> Table:
    rows = [
        [
            f"({item.name}) {item.description}",
            (item.answer or VERDICTS[item.holds]) + (f": {item.reason}" if item.reason else ""),
            number(item.value), interval(item.interval), _limit(item), number(item.control), f"{item.n:,}",
        ]
        for item in section.properties
    ]  # fmt: skip
    return Table(
        "The five properties of massive activations",
        ("property", "verdict", "value", "over sequences", "threshold", "control", "n"),
        rows,
        [COLOURS.get(item.answer or VERDICTS[item.holds], "dim") for item in section.properties],
        words=2,
        note="Control: the same number where it should not hold, other tokens or random channels. Borderline: a limit "
        "a quarter stricter or laxer (in brackets) turns the verdict, or the interval over sequences has it inside.",
        brief=("property", "verdict", "value", "threshold"),
    )


def _limit(item: sections.Property) -> str:
    if item.sensitivity is None:
        return number(item.threshold)
    return f"{number(item.threshold)} ({number(item.sensitivity[0])}, {number(item.sensitivity[1])})"


def _curve(curve: list[sections.OverlapAtShare], rule: SinkTokenRule | None) -> Table:
    """The overlap by the share of heads that makes a sink token."""
    used = f" Used elsewhere: {counted(rule.heads_min, 'head')}" if rule is not None else ""
    reason = ", 1 % of all: one odd head makes no sink token, and any share beyond is a choice, hence this table."
    rows = [
        [f"{row.heads_min:,}", percent(row.heads_share) if row.heads_share else "one head", f"{row.sinks:,}",
         number(row.jaccard), percent(row.recall), f"{row.later_sinks:,}", number(row.later_jaccard)]
        for row in curve
    ]  # fmt: skip
    return Table(
        "How that depends on the heads that make a sink token",
        ("heads at least", "share", "sink tokens", "Jaccard", "of them spike", "sinks later", "Jaccard later"),
        rows,
        note="Later: without the first token of each sequence." + (used and used + reason),
        brief=(),
    )


def _overlap(section: sections.Properties) -> Table:
    overlaps = [("all tokens", section.overlap), ("without first tokens", section.overlap_later)]
    rows = [
        [label, f"{o.n:,}", f"{o.spikes:,}", f"{o.sinks:,}", f"{o.both:,}", number(o.jaccard), number(o.chance_jaccard),
         number(o.p_value)]
        for label, o in overlaps
        if o is not None
    ]  # fmt: skip
    return Table(
        "Are spike tokens sink tokens?",
        ("", "tokens", "spike", "sink", "both", "Jaccard", "by chance", "p"),
        rows,
        note="Tokens of the first half of each sequence; by chance: random sets of as many sink tokens.",
    )
