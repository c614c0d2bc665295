"""The table of a study, mean ± sd (n) with the paper's numbers beside it, as markdown, CSV and LaTeX."""

import csv
import io
import math
import statistics
from collections.abc import Iterable

from spikesink.records.study import TITLES, CellRecord, ClaimVerdict, Measured, Spread, StudyRecord, VariantRow
from spikesink.study.grid import Grid, variant_changes, variant_recipe
from spikesink.study.verdict import ceiling
from spikesink.train.recipe import Recipe

PERCENT = ("sink_ratio", "virtual_mass")
PAPER = ("perplexity", "sink_ratio", "spike")


def rows(grid: Grid, base: Recipe, records: list[CellRecord]) -> list[VariantRow]:
    """A row for each variant that has a record, in the grid's order."""
    present = [name for name in grid.variants if any(record.variant == name for record in records)]
    return [_row(grid, base, name, [record for record in records if record.variant == name]) for name in present]


def _row(grid: Grid, base: Recipe, name: str, records: list[CellRecord]) -> VariantRow:
    done = sorted((record for record in records if record.measured is not None), key=lambda record: record.seed)
    values = {
        field: [float(getattr(record.measured, field)) for record in done]
        for field in Measured.model_fields
        if done and all(getattr(record.measured, field) is not None for record in done)
    }
    return VariantRow(
        variant=name,
        summary=grid.variants[name].summary,
        changes=variant_changes(base, grid.variants[name]),
        seeds=[record.seed for record in done],
        diverged=sum(record.status == "diverged" for record in records),
        failed=sum(record.status == "failed" for record in records),
        parameters=done[0].parameters if done else None,
        tokens=records[0].tokens,
        measured={field: spread(readings) for field, readings in values.items()},
        values=values,
        paper=grid.variants[name].paper,
        ceiling=ceiling(variant_recipe(base, grid.variants[name]).model),
    )


def spread(values: list[float]) -> Spread:
    """Mean and sample standard deviation (n - 1)."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=sd, n=len(values))


def cell_text(name: str, spread: Spread | None) -> str:
    """`mean ± sd (n)`, the sd with the mean's digits; a dash where nothing finished."""
    if spread is None:
        return "-"
    factor, unit = (100, " %") if name in PERCENT else (1, "")
    mean = factor * spread.mean
    decimals = 1 if unit else _decimals(mean)
    sd = "" if spread.sd is None else f" ± {factor * spread.sd:,.{decimals}f}"
    return f"{mean:,.{decimals}f}{sd}{unit} ({spread.n})"


def paper_text(name: str, value: float) -> str:
    """A figure of the paper with the digits that it has there."""
    return f"{100 * value:.10g} %" if name in PERCENT else f"{value:,.10g}"


def _decimals(value: float) -> int:
    """So many that four digits are shown, of small ones no more than three decimals."""
    return min(3, max(0, 3 - math.floor(math.log10(abs(value))))) if value else 3


def texts(study: StudyRecord) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text: measured, then the paper's."""
    columns = study.columns
    header = ["variant", *(TITLES[name] for name in columns), *(f"paper: {TITLES[name]}" for name in PAPER)]
    body = []
    for row in study.rows:
        measured = [cell_text(name, row.measured.get(name)) for name in columns]
        paper = [paper_text(name, getattr(row.paper, name)) if row.paper else "-" for name in PAPER]
        body.append([row.variant + row.lost, *measured, *paper])
    return header, body


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """A line for each variant that was not run, by name, with the reason."""
    return [f"left out: {variant}: {reason}" for variant, reason in left_out.items()]


def table_markdown(study: StudyRecord) -> str:
    """The table alone as markdown."""
    note = "Mean ± standard deviation (n seeds); paper: 7B parameters, 100B tokens, one run."
    return f"{_table(*texts(study))}\n\n{note}\n"


def _changes(study: StudyRecord) -> str:
    """Every variant against the baseline: each change with its interval, and what it is called."""
    metrics = study.compared
    header = [f"over {study.baseline}", *map(study.effect_title, metrics)]
    body = [[judged.variant, *judged.outcomes(metrics, "-")] for judged in study.verdicts]
    return f"{_table(header, body)}\n\n{study.bounds}".rstrip()


def markdown(study: StudyRecord) -> str:
    """The table, the verdicts and the claims as markdown."""
    parts = [
        table_markdown(study).rstrip(),
        _list(verdict.sentence for verdict in study.verdicts),
        _changes(study) if study.compared else "",
        _list(_claims(study.claims)),
        _list(study.errors),
        _list(left_out_lines(study.left_out)),
    ]
    return "\n\n".join([f"# {study.study} at {study.preset}", study.about, *filter(None, parts)]) + "\n"


def _claims(claims: list[ClaimVerdict]) -> list[str]:
    """A line for each claim, of those that were not tested one for each reason."""
    untested: dict[str, list[str]] = {}
    for claim in claims:
        if claim.verdict == "not tested":
            name = claim.title if claim.claim is not None else claim.text.rstrip(".")
            untested.setdefault(claim.evidence, []).append(name)
    tested = [claim for claim in claims if claim.verdict != "not tested"]
    return [
        *(f"{claim.title}: {claim.text} **{claim.verdict}**. {claim.evidence}" for claim in tested),
        *(f"**Not tested**: {', '.join(names)}. {why}" for why, names in untested.items()),
    ]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body))


def comma_separated(study: StudyRecord) -> str:
    """One line a seed, all figures, for those who compute on."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "seed", "parameters", "tokens", *Measured.model_fields])
    for row in study.rows:
        for index, seed in enumerate(row.seeds):
            row_values = [row.values[name][index] if name in row.values else "" for name in Measured.model_fields]
            writer.writerow([row.variant, seed, row.parameters, row.tokens, *row_values])
    return text.getvalue()


def latex(study: StudyRecord) -> str:
    """A `tabular` with booktabs rules."""
    header, body = texts(study)
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in (header, *body)]
    columns = "l" + "r" * (len(header) - 1)
    rules = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*rules, r"\end{tabular}"]) + "\n"


TEX = str.maketrans(
    {**{sign: f"\\{sign}" for sign in "%_&#${}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
     "^": r"\textasciicircum{}", "±": r"$\pm$"}
)  # fmt: skip


def _tex(text: str) -> str:
    return text.translate(TEX)
