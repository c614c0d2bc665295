"""What one or several studies say: the verdicts, the table beside the paper's, the charts."""

from collections import Counter
from collections.abc import Callable, Sequence

from spikesink.records.study import PARTS, TITLES, Spread, StudyRecord, VariantRow, VariantVerdict
from spikesink.report.conditions import condition_table, line
from spikesink.report.document import Document, Merit, Part, Statement, Table
from spikesink.report.format import NONE, counted, listed, number, percent
from spikesink.report.next_step import next_step
from spikesink.report.study_figures import PAPER, conditions, name_of, study_figures

FORMS: dict[str, Callable[[float], str]] = {
    "perplexity": lambda value: number(value, 4),
    "spike": lambda value: number(value, 4),
    "sink_ratio": percent,
    "virtual_mass": percent,
}
"""How a figure of the table is shown, if not to three digits."""


def study_document(studies: Sequence[StudyRecord]) -> Document:
    """Every study in its own sections."""
    titles = [f"{study.study} at {study.preset}" for study in studies]
    return Document(
        kind="study",
        title=listed(titles, 4),
        lead=" ".join(study.about for study in studies),
        statements=[statement for study in studies for statement in study_statements(study, len(studies) > 1)],
        merits=_merits(studies),
        sections=[section for study in studies for section in _sections(study, len(studies) > 1)],
        conditions=[(title, condition_table(study)) for title, study in zip(titles, studies, strict=True)],
        condition=line(studies[0]) if len(studies) == 1 else "",
        next=next_step(studies[0]) if len(studies) == 1 else None,
    )


def study_statements(study: StudyRecord, several: bool = False) -> list[Statement]:
    """Which variants got which verdict, and which claims are decided."""
    prefix = f"{study.study} at {study.preset}: " if several else ""
    counts = Counter(judged.verdict for judged in study.verdicts)
    statements = []
    for verdict in counts:
        names = [_effects_in_words(judged, study) for judged in study.verdicts if judged.verdict == verdict]
        text = f"{listed(names, 12)}; {counts[verdict]} of {counted(len(study.verdicts), 'variant')}, against "
        text += f"{study.baseline}."
        statements.append(
            Statement(f"{prefix}{verdict[0].upper()}{verdict[1:]}", text, measured=verdict != "undecided")
        )
    decided = [claim for claim in study.claims if claim.verdict in ("supported", "contradicted", "mixed")]
    statements += [
        Statement(f"{prefix}{claim.title} {claim.verdict}", f"{claim.text} {_plain(claim.evidence)}")
        for claim in decided
    ]
    few = min((len(row.seeds) for row in study.rows), default=0)
    if counts["undecided"] and few < study.rules.get("seeds_min", 0):
        text = f"{counted(few, 'seed')} of a variant finished; at least {study.rules['seeds_min']:g} decide."
        statements.append(Statement(f"{prefix}Seeds", text, measured=False))
    return statements or [
        Statement(f"{prefix}No verdict", "No variant has finished beside the baseline.", measured=False)
    ]


def _plain(text: str) -> str:
    """Without the marks that Markdown has for code."""
    return text.replace("`", "")


def _effects_in_words(judged: VariantVerdict, study: StudyRecord) -> str:
    """sandwich (norm ratio beyond 1 × 0.12 falls, sink ratio × 1.0 stays): what decided, or most nearly did."""
    effects = {effect.metric: effect for effect in judged.effects}
    parts = [name for name in PARTS if name in effects]
    lost = [name for name in parts if effects[name].change == "falls"]
    shown = [*(lost or parts or ["spike"])[:1], "sink_ratio"]
    said = [
        f"{study.effect_title(name)} {effects[name].times.partition(' [')[0]} {effects[name].change}"
        for name in shown
        if name in effects
    ]
    return f"{judged.variant} ({', '.join(said)})" if said else judged.variant


def _merits(studies: Sequence[StudyRecord]) -> list[Merit]:
    rows = [row for study in studies for row in study.rows]
    finished = sum(len(row.seeds) for row in rows)
    lost = sum(row.diverged + row.failed for row in rows)
    return [
        Merit("variants", f"{len(rows)}", note="with the baseline"),
        Merit("runs finished", f"{finished}", note=f"{lost} diverged or failed"),
        Merit("tokens seen", float(sum(row.tokens * len(row.seeds) for row in rows)), note="in all runs"),
    ]


def _sections(study: StudyRecord, several: bool) -> list[Part]:
    title = f"{study.study} at {study.preset}" if several else ""

    def section(name: str, heading: str, intro: str, **parts: object) -> Part:
        whole = f"{title}: {heading[0].lower()}{heading[1:]}" if title else heading
        return Part(name_of(study, f"section_{name}"), whole, intro, label=heading, **parts)  # type: ignore[arg-type]

    rules = f"By rules of version {study.rules_version}, which a study keeps; docs/study.md says what was known then."
    figures = study_figures(study)
    curves = [figure for figure in figures if "_curve_" in figure.name]
    shown = [figure for figure in figures if figure not in curves]
    return [
        part
        for part in (
            section("table", "The table, beside the paper's", study.about, tables=[_table(study), *_lines(study)]),
            section("charts", "Where the variants stand", "", figures=shown),
            section("verdicts", "Verdicts", rules, tables=_verdicts(study)),
            section("curves", "Learning curves", "", figures=curves),
        )
        if not part.empty
    ]


def _table(study: StudyRecord) -> Table:
    columns, names = ["variant"], study.columns
    for name in names:
        columns += [TITLES[name], "paper"] if name in PAPER else [TITLES[name]]
    return Table(
        "Mean ± standard deviation (seeds)", columns, [_row(row, names) for row in study.rows],
        ["strong" if row.variant == study.baseline else "" for row in study.rows],
        note=f"Paper: 7B parameters, 100B tokens, one run. Bold: the baseline. {conditions(study)}",
    )  # fmt: skip


def _row(row: VariantRow, names: Sequence[str]) -> list[str]:
    """Each figure of ours, and behind it the paper's where it has one."""
    cells = [row.variant + row.lost]
    for name in names:
        show = FORMS.get(name, number)
        cells.append(_spread(row.measured.get(name), show))
        if name in PAPER:
            cells.append(show(getattr(row.paper, name)) if row.paper else NONE)
    return cells


def _spread(spread: Spread | None, show: Callable[[float], str]) -> str:
    if spread is None:
        return NONE
    sd = "" if spread.sd is None else f" ± {percent(spread.sd) if show is percent else number(spread.sd, 2)}"
    return f"{show(spread.mean)}{sd} ({spread.n})"


def _lines(study: StudyRecord) -> list[Table]:
    """What has no figures, and why."""
    tables = []
    if study.errors:
        tables.append(Table("Runs without a result", ("what happened",), [[line] for line in study.errors]))
    if study.left_out:
        rows = [[variant, reason] for variant, reason in study.left_out.items()]
        tables.append(Table("Left out: they cannot be made of this recipe", ("variant", "reason"), rows))
    return tables


def _verdicts(study: StudyRecord) -> list[Table]:
    metrics = study.compared
    rows = [[judged.variant, judged.verdict, *judged.outcomes(metrics, NONE)] for judged in study.verdicts]
    changes = [[row.variant, _plain(row.summary), "; ".join(row.changes) or "as the preset"] for row in study.rows]
    rules = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in study.rules.items())
    claims = [[f"{claim.title}: {claim.text}", claim.verdict, _plain(claim.evidence)] for claim in study.claims]
    tables = []
    if rows:
        header = ("variant", "verdict", *map(study.effect_title, metrics))
        title = "Variant over baseline, with its 95 % interval over seeds"
        tables.append(Table(title, header, rows, words=len(header), note=f"{study.bounds}Rules: {rules}."))
    if claims:
        tables.append(Table("The paper's claims", ("claim", "verdict", "evidence"), claims, words=3))
    return [*tables, Table("What each variant changes", ("variant", "what", "change"), changes, words=3)]
