"""What a folder of records says about each claim of the study: one verdict, three routes of evidence, contradictions
first."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from spikesink import bootstrap
from spikesink.records import Anatomy
from spikesink.records.intervals import Estimate
from spikesink.records.sections.heads import Heads
from spikesink.records.study import (
    SIDES,
    ClaimVerdict,
    PaperResult,
    StudyRecord,
    VariantRow,
    VariantVerdict,
    local_sided,
)
from spikesink.report.document import Document, Part, Statement, Table
from spikesink.report.drawing import Figure
from spikesink.report.evidence import HEADS, OWN, ROUTES, Evidence, Finding, Line, combined, read_evidence, source
from spikesink.report.format import counted, interval, number, percent
from spikesink.report.graft import graft_figures
from spikesink.report.study_figures import study_figures
from spikesink.report.sweeps import sweep_findings, sweep_lines

ORDER = ("contradicted", "mixed", "supported", "undecided", "not tested")


@dataclass(frozen=True)
class PaperClaim:
    """One of the paper's claims in our words, what the paper reports, and what each route can show about it."""

    claim: int
    part: str | None
    text: str
    paper: str
    finished: str
    """What can be seen in a finished model."""

    def is_judged(self, judged: ClaimVerdict) -> bool:
        """Whether a study's verdict is on this claim."""
        return (judged.claim, judged.part) == (self.claim, self.part)


CLAIMS = (
    PaperClaim(
        1, None, "Spikes and sinks meet because of the pre-norm design, not by necessity.",
        "A norm on the writes lowers the spike and leaves the sinks.",
        "A finished model cannot say what training another would give; it says what its own sinks need.",
    ),
    PaperClaim(
        2, None, "Spikes act globally: near-constant vectors, the same for every prompt.",
        "Spike tokens' states after the norm are nearly parallel, whatever the prompt.",
        "One constant in place of every spike token's state, against zero and a random constant.",
    ),
    PaperClaim(
        3, None, "Sinks act locally: they turn heads down and keep them short-sighted.",
        "Sink heads write less where the sink takes more, and look near with what is left.",
        "`spikesink scan --measure heads` says where heads write less, and how near they look beside the sink.",
    ),
    PaperClaim(
        4, "spikes", "Spikes can be suppressed alone at no cost in perplexity.",
        "Sandwich norms lower the spike, and the perplexity does not rise.",
        "Weakening a finished spike has a cost that training would heal; the sweep gives it.",
    ),
    PaperClaim(
        4, "sinks", "Sinks can be suppressed alone at no cost in perplexity.",
        "Without short contexts in the loss the sinks go and the spike grows; gates take both.",
        "Weakening finished sinks has a cost that training would heal; the sweep gives it.",
    ),
)  # fmt: skip


def findings(evidence: Evidence) -> list[Finding]:
    """Contradictions first; then what is decided, then the rest; the evidence of each in the same order."""
    made = [*(_finding(claim, evidence) for claim in CLAIMS), *_own(evidence), *sweep_findings(evidence)]
    for one in made:
        one.lines.sort(key=lambda line: ORDER.index(line.verdict or ORDER[-1]))
    return sorted(made, key=lambda one: ORDER.index(one.verdict))


def _finding(claim: PaperClaim, evidence: Evidence) -> Finding:
    lines = _finished(claim, evidence)
    trained = _trained(evidence, claim.is_judged)
    lines += trained or [Line(ROUTES[2], "–", "0 seeds", "No study in this folder speaks for it.", "")]
    verdict = combined(lines)
    part = f" ({claim.part})" if claim.part else ""
    return Finding(
        f"Claim {claim.claim}{part}", claim.text, verdict, lines, _change(claim.finished, verdict),
        f"{claim.paper} {_paper(evidence, claim.is_judged)}".strip(), _figures(claim, evidence),
    )  # fmt: skip


def _finished(claim: PaperClaim, evidence: Evidence) -> list[Line]:
    """Route 1: it answers claims 2 and 3 by rules of its own; of the others it shows what a finished model needs."""
    lines = [_local(name, record) for name, record in evidence.heads.items()] if claim.claim == 3 else []
    for name, record in evidence.doses.items():
        n = counted(record.provenance.settings["evaluated_sequences"], "sequence")
        answer = record.dissociation.constant_suffices
        if claim.claim == 2 and answer.evidence:
            verdict = {"yes": "supported", "no": "contradicted"}.get(answer.answer, "undecided")
            lines.append(Line(ROUTES[0], source(name, record), n, f"{answer.question} {answer.reason}.", verdict))
    swept = {(1, None): ("spikes", "sinks"), (4, "spikes"): ("spikes",), (4, "sinks"): ("sinks",)}
    lines += sweep_lines(evidence, swept.get((claim.claim, claim.part), ()))
    return lines or [Line(ROUTES[0], "–", "0", f"Nothing in this folder. {claim.finished}", "")]


def _local(name: str, record: Anatomy) -> Line:
    """Claim 3 in a finished model: a head writes less where its sink takes more, and looks near beside it.

    Near is nearer than uniform attention, as in the studies, and not the farther within a layer, the more a head's sink
    takes: heads without a sink are the control.
    """
    n = counted(record.provenance.tokens["sequences"], "sequence")
    section = record.further(HEADS)
    if not isinstance(section, Heads):
        return Line(ROUTES[0], source(name, record), n, getattr(section, "reason", "Its heads were not traced."), "")
    write = next((row.mean for row in section.modulation or [] if row.other == "write"), None)
    further = next((row.within_layers for row in section.correlations if row.other == "distance"), None)
    reach = _reach(record, section)
    if write is None or further is None or reach is None:
        return Line(ROUTES[0], source(name, record), n, "Too few heads have a sink to compare them.", "")
    says = (
        f"Within heads, sink mass and norm of the write correlate at {interval(write)}, over {write.n} heads. With the "
        f"sink taken out, sink heads look {interval(reach)} as far as uniform attention does (over layers); within "
        f"layers, sink mass and that distance have rank correlation {interval(further)} over heads."
    )
    return Line(ROUTES[0], source(name, record), n, says, local_sided(write, reach, further))


def _reach(record: Anatomy, section: Heads) -> Estimate | None:
    """Distance of sink heads with the sink taken out over that of uniform attention: mean and interval over layers."""
    layers: dict[int, list[float]] = {}
    for head in section.heads:
        if head.distance is not None and head.sink_mass >= record.sinks.importance_min:
            layers.setdefault(head.block, []).append(head.distance / section.uniform_distance[head.block])
    means = [float(np.mean(ratios)) for ratios in layers.values()]
    return bootstrap.estimate(bootstrap.mean, means) if means else None


def _trained(evidence: Evidence, wanted: Callable[[ClaimVerdict], bool]) -> list[Line]:
    """Routes 2 and 3: what the rules of the studies say, with the effects of who speaks for the claim.

    What a baseline's own models say is one piece of evidence, in however many studies they are the baseline.
    """
    lines: list[Line] = []
    told: list[tuple[VariantRow, Line]] = []
    # Whose models are among another's comes behind it.
    baselines = [next(row for row in study.rows if row.variant == study.baseline) for study in evidence.studies]
    studies = zip(evidence.studies, baselines, strict=True)
    for study, baseline in sorted(studies, key=lambda each: (each[0].pretrained is None, -len(each[1].seeds))):
        for judged in _tested(study, wanted):
            told_of = (each for each in told if judged.by_baseline and _among(baseline, each[0]))
            if before := next(told_of, None):
                row, line = before
                few = f"{len(baseline.seeds)} of " if len(baseline.seeds) < len(row.seeds) else ""
                line.source += f"; {study.study} at {study.preset}, {few}the same models"
                continue
            asked = [len(row.seeds) for row in ([baseline] if judged.by_baseline else study.rows)]
            seeds = sorted({*asked} if judged.n is None else {judged.n})
            n = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0], "seed")
            route = ROUTES[2 if study.pretrained is None else 1]
            source = f"{study.study} at {study.preset}"
            lines.append(Line(route, source, n, _says(judged, study), judged.verdict))
            told.append((baseline, lines[-1]))
    return lines


def _among(part: VariantRow, whole: VariantRow) -> bool:
    """Whether the models of one row are among those of another, by seed and every figure."""
    if not set(part.seeds) <= set(whole.seeds):
        return False
    places, names = [whole.seeds.index(seed) for seed in part.seeds], part.values.keys() & whole.values.keys()
    return bool(names) and all(part.values[name] == [whole.values[name][place] for place in places] for name in names)


def _tested(study: StudyRecord, wanted: Callable[[ClaimVerdict], bool]) -> list[ClaimVerdict]:
    """What the study says of a claim; nothing where it did not test it."""
    return [judged for judged in study.claims if wanted(judged) and judged.verdict != "not tested"]


def _own(evidence: Evidence) -> list[Finding]:
    """What the studies ask beside the paper's claims, once for every sentence."""
    asked = [judged for study in evidence.studies for judged in study.claims if judged.claim is None]
    made = []
    for text in dict.fromkeys(judged.text for judged in asked if judged.verdict != "not tested"):
        asks = partial(_asks, text)
        lines = _trained(evidence, asks)
        verdict = combined(lines)
        paper = _paper(evidence, asks) or "It has no such run."
        made.append(Finding(OWN, text, verdict, lines, _change("", verdict), paper))
    return made


def _asks(text: str, judged: ClaimVerdict) -> bool:
    return judged.text == text


def _paper(evidence: Evidence, wanted: Callable[[ClaimVerdict], bool]) -> str:
    """What the paper's tables have of the variants that speak, each table with its baseline; empty for none."""
    tables: dict[int, dict[str, PaperResult]] = {}
    for study in evidence.studies:
        papers = {row.variant: row.paper for row in study.rows if row.paper is not None}
        for judged in _tested(study, wanted):
            for one in _named(judged, study):
                if one.variant in papers and study.baseline in papers:
                    paper = papers[one.variant]
                    tables.setdefault(paper.table, {study.baseline: papers[study.baseline]})[one.variant] = paper
    return " ".join(
        f"Its table {table}, at 7B parameters (sink ratio, spike, perplexity): {'; '.join(map(_cells, rows.items()))}."
        for table, rows in tables.items()
    )


def _cells(row: tuple[str, PaperResult]) -> str:
    name, paper = row
    return f"{name} {percent(paper.sink_ratio)}, {number(paper.spike)}, {number(paper.perplexity)}"


def _named(judged: ClaimVerdict, study: StudyRecord) -> list[VariantVerdict]:
    """The variants that speak for the claim; records from before 28 November 2026 name them in the evidence alone."""
    names = judged.speak or {word.strip(".,:()") for word in judged.evidence.split()}
    return [one for one in study.verdicts if one.variant in names]


def _says(judged: ClaimVerdict, study: StudyRecord) -> str:
    """The evidence, with the intervals of every variant that speaks."""
    said = []
    for which, title in SIDES.items():
        shown = [
            f"{one.variant} ({'; '.join([one.verdict if which == 'nothing' else one.halves, *_effects(one, study)])})"
            for one in _named(judged, study)
            if judged.speak.get(one.variant) == which
        ]
        said += [f"{title}: {', '.join(shown)}."] if shown else []
    return " ".join(said) or judged.evidence


def _effects(judged: VariantVerdict, study: StudyRecord) -> list[str]:
    """Three of its intervals; none with a single seed."""
    return [
        f"{study.effect_title(effect.metric)} {effect.times}"
        for effect in judged.effects
        if effect.metric in ("norm_ratio", "sink_ratio", "perplexity") and effect.size is not None
    ]


def _change(finished: str, verdict: str) -> str:
    """What would change the verdict; finished: what can be seen in a finished model."""
    if verdict == "not tested":
        return f"Any run that speaks for it. {finished}"
    if verdict == "undecided":
        return "More seeds of the variants that speak for it; longer healing; a size that grows spikes and sinks."
    return "A variant with at least three seeds that shows the decided opposite; a larger size; another text."


def _figures(claim: PaperClaim, evidence: Evidence) -> list[Figure]:
    """A picture of each route where models were trained; the sweeps' are in the findings on them."""
    if claim.claim in (2, 3):
        return []
    scratch = [study for study in evidence.studies if study.pretrained is None and _tested(study, claim.is_judged)]
    telling = max(scratch, key=_tells, default=None)
    shown = study_figures(telling)[:1] if telling is not None else []
    healed = [graft for graft in evidence.grafts.values() if "healed" in graft.points]
    fewest = min(healed, key=lambda graft: graft.points["healed"].sink_ratio, default=None)
    grafts = [figure for figure in graft_figures(fewest) if "sink" in figure.name] if fewest is not None else []
    return [*(grafts[:1] if claim.claim == 1 else []), *shown]


def _tells(study: StudyRecord) -> tuple[bool, int]:
    """Whether the baseline has spikes that could go, with seeds that decide; and the runs."""
    fewest = min((len(row.seeds) for row in study.rows), default=0)
    spiking = all(one.spikes not in (None, "not testable") for one in study.verdicts)
    return spiking and fewest >= study.rules.get("seeds_min", 0), sum(len(row.seeds) for row in study.rows)


def findings_document(folder: Path) -> Document:
    """Of a folder of studies, grafts and sweeps."""
    evidence = read_evidence(folder)
    every = findings(evidence)
    # A baseline that several studies share was trained once; a graft is counted as one.
    runs = {
        figures
        for study in evidence.studies
        for row in study.rows
        if study.pretrained is None and row.seeds
        for figures in zip(row.values["perplexity"], row.values["spike"], strict=True)
    }
    shown: set[str] = set()
    return Document(
        kind="findings",
        title="What is decided about spikes and sinks",
        lead=f"{counted(len(runs), 'training run')} under rules that count, {counted(len(evidence.grafts), 'graft')}, "
        f"{counted(len(evidence.doses), 'sweep')} of a finished model. {evidence.without}".strip(),
        statements=[
            Statement(f"{one.title}: {one.verdict}", one.text, measured=one.verdict not in ("undecided", "not tested"))
            for one in every
        ],
        sections=[_section(index, one, shown) for index, one in enumerate(every)],
        command=f"spikesink report {folder.name}",
    )


def _section(index: int, finding: Finding, shown: set[str]) -> Part:
    figures = [figure for figure in finding.figures if figure.name not in shown]
    shown.update(figure.name for figure in figures)
    return Part(
        f"finding-{index + 1}",
        finding.heading,
        finding.intro,
        figures=figures,
        tables=[
            Table(
                "Evidence", ("route", "of", "n", "what it says", "verdict"),
                [[line.route, line.source, line.size, line.says.replace("`", ""), line.verdict or "–"]
                 for line in finding.lines],
                note=f"The paper: {finding.paper}",
                words=5,
            )
        ],
        note=f"What would change it: {finding.change}".replace("`", ""),
        label=finding.title,
    )  # fmt: skip
