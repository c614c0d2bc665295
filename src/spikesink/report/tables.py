"""Tables of the page: plain cells, so that the template alone decides how they look."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spikesink.records import Anatomy, NotApplicable
from spikesink.records import anatomy as sections
from spikesink.records.interventions import Estimate, InterventionRow, Interventions
from spikesink.report.words import interval, number, percent, signed


@dataclass(frozen=True)
class Table:
    """Rows under column names; `styles` gives a row's class, numbers stand on the right."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]
    styles: list[str] = field(default_factory=list)
    words: int = 1
    """Leading columns that hold words, not numbers."""
    note: str = ""

    def style(self, index: int) -> str:
        return self.styles[index] if index < len(self.styles) else ""


def properties_table(record: Anatomy) -> Table | str | None:
    """The five properties; a reason where they do not apply, None where they were not measured."""
    section = (record.model_extra or {}).get("properties")
    if isinstance(section, NotApplicable):
        return section.reason or "does not apply"
    if not isinstance(section, sections.Properties):
        return None
    verdicts = {True: "holds", False: "does not hold", None: "not applicable"}
    rows = [
        [
            f"({item.name}) {item.description}", verdicts[item.holds] + (f": {item.reason}" if item.reason else ""),
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
    )


def overlap_table(record: Anatomy) -> Table | None:
    """Whether spike tokens are sink tokens, with and without first tokens."""
    section = (record.model_extra or {}).get("properties")
    if not isinstance(section, sections.Properties) or section.overlap is None:
        return None
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


def steps_table(record: Anatomy) -> Table | None:
    """The rank-one form of step FFNs against their true output."""
    section = (record.model_extra or {}).get("amplifier")
    if not isinstance(section, sections.Amplifier) or not section.steps:
        return None
    rows = [
        [
            f"{step.block}", f"{step.channel}", number(step.eigenvalue), number(step.next_eigenvalue),
            percent(step.share_of_spectrum), number(step.alignment_spike), number(step.alignment_other),
            number(step.rank_one_spike.ratio), number(step.rank_one_spike.r2), number(step.quadratic_spike.ratio),
        ]
        for step in section.steps
    ]  # fmt: skip
    columns = ("block", "channel", "λ*", "next", "share of S²", "|cos|, spikes", "others", "rank 1 / true", "R²",
               "quadratic / true")  # fmt: skip
    n = section.steps[0].rank_one_spike.n
    return Table(
        "One direction predicts what the step FFNs write", columns, rows,
        note=f"λ*‖h̃‖²cos²(s*, h̃) against the true output, at {n} spike tokens. {section.erratum}",
    )  # fmt: skip


def self_sinking_table(record: Anatomy) -> Table | None:
    """First tokens, delimiters and others in the first attention blocks."""
    section = (record.model_extra or {}).get("trigger")
    if not isinstance(section, sections.Trigger) or not section.self_sinking:
        return None
    rows = [
        [
            f"{block.block}", found.name, f"{found.tokens:,}", _interval(found.self_attention), number(found.uniform),
            _interval(found.norm_magnitude), _interval(found.gamma_cosine),
        ]
        for block in section.self_sinking[:3]
        for found in block.classes
    ]  # fmt: skip
    return Table(
        "Self-sinking: who attends to itself in the first blocks",
        ("block", "tokens", "n", "self-attention", "uniform", "normed magnitude", "cos with γ"),
        rows, words=2, note="Means with 95 % bootstrap intervals over sequences.",
    )  # fmt: skip


def _interval(found: sections.Interval) -> str:
    return interval(found.value, found.low, found.high)


def exceptions_table(record: Anatomy) -> Table | None:
    """Vocabulary items that do not spike alone at position 0."""
    section = (record.model_extra or {}).get("trigger")
    if not isinstance(section, sections.Trigger) or not section.probe.exceptions:
        return None
    probe = section.probe
    rows = [
        [shown(item.text), f"{item.token_id}", number(item.value), number(item.embedding_norm)]
        for item in probe.exceptions[:20]
    ]
    return Table(
        f"Items that do not spike alone at position 0: {probe.exception_count:,} of {probe.items:,}",
        ("item", "id", "largest magnitude", "embedding norm"), rows,
        note=f"Median embedding norm {number(probe.median_embedding_norm)}; the first {len(rows)} are listed.",
    )  # fmt: skip


def shown(text: str) -> str:
    """A token as text in which blanks at its ends and control characters can be seen."""
    visible = printable(text)
    return visible.replace(" ", "␣") if visible != visible.strip() else visible


def printable(text: str) -> str:
    """Text on one line, with control characters written out."""
    plain = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in plain)


def interventions_table(record: Interventions) -> Table:
    """Every intervention with its controls below it; those that do not apply, with the reason."""
    columns = ("intervention", "perplexity", "cost in nats", "sink ratio", "sinks left", "plateau left", "spike tokens")
    rows, styles = [], []
    for row in record.interventions:
        label = row.name.split("/")[1].replace("_", " ") if row.control_of else row.name
        styles.append("control" if row.control_of else "strong" if row.name == "baseline" else "")
        if not row.applicable:
            rows.append([f"{label}: does not apply, {row.reason}", *["–"] * 6])
            continue
        rows.append([label, *_numbers(row)])
    settings = record.provenance.settings
    return Table(
        "Remove one, keep the rest", columns, rows, styles,
        note=f"Cost: mean loss less the baseline's on the same tokens, with its 95 % bootstrap interval over "
        f"{settings['evaluated_sequences']} sequences. Indented: random controls of the same size, {settings['draws']} "
        f"draws. Plateau: largest magnitude between the step blocks.",
    )  # fmt: skip


def _numbers(row: InterventionRow) -> list[str]:
    cost = "–" if row.name == "baseline" or row.loss_difference_nats is None else _estimate(row.loss_difference_nats)
    return [
        number(row.perplexity.value if row.perplexity else None),
        cost,
        *[percent(value.value if value else None) for value in (row.sink_ratio, row.sink_ratio_kept, row.plateau_kept)],
        number(row.spike_tokens),
    ]


def _estimate(found: Estimate) -> str:
    return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def answers_table(record: Interventions) -> Table:
    """The questions of the double dissociation, with what decided."""
    found = record.dissociation
    answers = (found.sinks_need_spikes, found.spikes_need_sinks, found.constant_suffices)
    return Table(
        f"Verdict: {found.verdict}",
        ("question", "answer", "because"),
        [[item.question, item.answer, item.reason] for item in answers],
        words=3,
        note=" ".join(found.rules.get("in_words", [])),
    )


def spiking_tokens_table(record: Interventions) -> Table | None:
    """Tokens to keep in high precision, as rules."""
    if not record.recommendation.tokens:
        return None
    rows = [[_rule(rule), f"{rule['spikes']:,}", f"{rule['of']:,}"] for rule in record.recommendation.tokens]
    return Table("Tokens that spike, as rules", ("token", "spikes", "of"), rows)


def _rule(rule: dict[str, Any]) -> str:
    if "position" in rule:
        return f"position {rule['position']}"
    return f"{shown(str(rule['text']))} (id {rule['token_id']}), later"


def provenance_table(provenance: dict[str, Any]) -> Table:
    """Every condition, one a row, nested names joined by dots."""
    return Table("Conditions", ("condition", "value"), [[key, value] for key, value in _flat(provenance)], words=2)


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(content, dict):
        return [
            pair for key, value in content.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, ", ".join(map(str, content)) if isinstance(content, list) else str(content))]
