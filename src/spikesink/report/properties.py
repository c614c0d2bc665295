"""The five properties of massive activations with their verdicts, and whether spike tokens are sink tokens."""

from spikesink.records import Anatomy
from spikesink.records import anatomy as sections
from spikesink.report.document import Section, Table
from spikesink.report.format import number

VERDICTS = {True: "holds", False: "does not hold", None: "not applicable"}


def properties_part(record: Anatomy, section: sections.Properties) -> Section:
    """What the properties' section of the record says."""
    tables = [_properties(section)]
    if section.overlap is not None:
        tables.append(_overlap(section))
    reason = section.overlap_reason
    return Section(
        "properties",
        "The five properties",
        "Whether what was found is what the literature calls massive activations.",
        tables=tables,
        note=f"Whether spike tokens are sink tokens does not apply: {reason}." if reason else "",
    )


def _properties(section: sections.Properties) -> Table:
    rows = [
        [
            f"({item.name}) {item.description}", VERDICTS[item.holds] + (f": {item.reason}" if item.reason else ""),
            number(item.value), number(item.threshold), number(item.control), f"{item.n:,}",
        ]
        for item in section.properties
    ]  # fmt: skip
    return Table(
        "The five properties of massive activations",
        ("property", "verdict", "value", "threshold", "control", "n"),
        rows,
        [{True: "yes", False: "no", None: "dim"}[item.holds] for item in section.properties],
        words=2,
        note="Control: the same number where it should not hold, other tokens or random channels.",
        brief=("property", "verdict", "value", "threshold"),
    )


def _overlap(section: sections.Properties) -> Table:
    found = [("all tokens", section.overlap), ("without first tokens", section.overlap_later)]
    rows = [
        [label, f"{o.n:,}", f"{o.spikes:,}", f"{o.sinks:,}", f"{o.both:,}", number(o.jaccard), number(o.chance_jaccard),
         number(o.p_value)]
        for label, o in found
        if o is not None
    ]  # fmt: skip
    return Table(
        "Are spike tokens sink tokens?",
        ("", "tokens", "spike", "sink", "both", "Jaccard", "by chance", "p"),
        rows,
        note="Tokens of the first half of each sequence; by chance: random sets of as many sink tokens.",
    )
