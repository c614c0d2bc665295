"""What a folder's sweeps of strengths say: how much of its spikes or sinks a finished model needs for the other."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spikesink.records.interventions import Dose, InterventionRow, Interventions, silent
from spikesink.report.dose import dominance_figure, dose_figure
from spikesink.report.drawing import Figure
from spikesink.report.evidence import OWN, ROUTES, Evidence, Finding, Line, combined, source
from spikesink.report.format import counted, listed, number, percent, signed


@dataclass(frozen=True)
class Sweep:
    """One sweep of a model: name of the run, its record, and the sweep in it."""

    name: str
    record: Interventions
    dose: Dose

    @property
    def seed(self) -> str:
        """Of a cell of a study, in whose seed the names of the model and of the run end; else empty."""
        seed = str(self.record.provenance.model.get("name", "")).rpartition("-")[2]
        return seed if seed.isdigit() and self.name.endswith(f"-{seed}") else ""

    @property
    def study(self) -> str:
        return self.name.removesuffix(f"-{self.seed}") if self.seed else self.name

    @property
    def silent(self) -> str | None:
        """Why it says nothing about the quantity that it does not aim at."""
        return silent(self.dose.levels)

    @property
    def judged_rows(self) -> list[InterventionRow]:
        """The row at the strength at which the claim is judged, and its controls; empty where it was not tried."""
        return [row for row in self.dose.levels if row.strength == CLAIMS[self.dose.target].level and row.applicable]

    @property
    def verdict(self) -> str:
        """Whether the other quantity stays at that strength or has fallen there; undecided where masked sinks do not
        go; empty where it cannot say."""
        level, dose, rows = CLAIMS[self.dose.target].level, self.dose, self.judged_rows
        if self.silent:
            return ""
        if rows and dose.target == "sinks":
            left = rows[0].sink_ratio_kept.value if rows[0].sink_ratio_kept else 1.0
            if left > self.record.dissociation.rules["sinks_removed_max"]:
                return "undecided"
        if dose.stays_to is not None and dose.stays_to >= level:
            return "supported"
        return "contradicted" if dose.falls_from is not None and dose.falls_from <= level else "undecided"


@dataclass(frozen=True)
class SweepClaim:
    """Our own claim about the quantity that a sweep does not aim at, at one strength."""

    other: str
    text: str
    level: float
    """The strength at which the claim is judged."""
    at: str
    """That strength in words."""
    change: str
    """What would change a verdict that is decided and not mixed; `mixed`: one that is."""
    mixed: str
    paper: str
    figures: Callable[[Sequence[Sweep]], list[Figure]]


def _drawn(sweeps: Sequence[Sweep]) -> list[Figure]:
    return [dose_figure(sweeps[0].dose)]


def _dominance(sweeps: Sequence[Sweep]) -> Figure:
    return dominance_figure([(sweep.name, sweep.dose) for sweep in sweeps if not sweep.silent])


CLAIMS = {
    "spikes": SweepClaim(
        "sinks", "In a finished pre-norm model sinks need a direction that dominates, not a massive size: a tenfold "
        "smaller spike leaves them.", 10, "with a spike divided by 10",
        "Another model or text whose sinks fall at a spike divided by ten or less.",
        "Sweeps of spikes that stand out alike: a tenth of one that stands out little lies among other tokens.",
        "It reports that both meet in pre-norm models; it has no sweep of the spike's size.",
        lambda sweeps: [*_drawn(sweeps), _dominance(sweeps)],
    ),
    "sinks": SweepClaim(
        "spikes", "In a finished pre-norm model spikes do not need sinks: with every sink masked they stay.", 1,
        "with every sink masked", "Another model whose spikes fall where its sinks are masked.",
        "A model in which both can be seen: sinks that go where they are masked, and one spike token a sequence.",
        "It reports that both meet in pre-norm models; it has no sweep of the sinks' strength.", _drawn,
    ),
}  # fmt: skip
"""By what a sweep aims at."""


def sweep_findings(evidence: Evidence) -> list[Finding]:
    """A finding for each quantity that was swept, with a line for every sweep."""
    return [_finding(CLAIMS[target], sweeps) for target in CLAIMS if (sweeps := _sweeps(evidence, target))]


def sweep_lines(evidence: Evidence, targets: Sequence[str]) -> list[Line]:
    """How the sweeps come out, a line for each quantity: no verdict on what training without it would give."""
    lines = []
    for target in targets:
        sweeps, claim = [sweep for sweep in _sweeps(evidence, target) if not sweep.silent], CLAIMS[target]
        if sweeps:
            n = counted(len(sweeps), "sweep")
            found = Counter(sweep.verdict for sweep in sweeps)
            says = (
                f"{claim.at.capitalize()} {claim.other} stay in {found['supported']} of {n} and have fallen in "
                f"{found['contradicted']}; the finding on it has each."
            )
            lines.append(Line(ROUTES[0], _names(sweeps), n, says, ""))
    return lines


def _sweeps(evidence: Evidence, target: str) -> list[Sweep]:
    every = [Sweep(name, record, dose) for name, record in evidence.doses.items() for dose in record.dose]
    return [sweep for sweep in every if sweep.dose.target == target and sweep.dose.applicable]


def _finding(claim: SweepClaim, sweeps: Sequence[Sweep]) -> Finding:
    """A line for the models of a study that come out alike, and for every other sweep."""
    alike: dict[tuple[str, str, str], list[Sweep]] = {}
    for sweep in sweeps:
        study = sweep.study if sweep.silent or sweep.judged_rows else sweep.name
        alike.setdefault((study, sweep.verdict, sweep.silent or ""), []).append(sweep)
    lines = [_line(claim, group) for group in alike.values()]
    verdict = combined(lines)
    change = claim.change if verdict == "supported" else claim.mixed
    return Finding(OWN, claim.text, verdict, lines, change, claim.paper, claim.figures(sweeps))


def _line(claim: SweepClaim, sweeps: Sequence[Sweep]) -> Line:
    """What a sweep says, without the limits, which docs/interventions.md states; or several of them together."""
    first = sweeps[0]
    n = counted(first.record.provenance.settings["evaluated_sequences"], "sequence")
    alone = len(sweeps) == 1
    of = source(first.name, first.record) if alone else source(_names(sweeps), first.record, first.seed)
    if first.silent:
        return Line(ROUTES[0], of, f"0 of {counted(len(sweeps), 'sweep')}", first.dose.sentence, first.verdict)
    says = first.dose.sentence.partition(" (Stay")[0] if alone else _together(claim, sweeps)
    return Line(ROUTES[0], of, n, says, first.verdict, len(sweeps))


def _together(claim: SweepClaim, sweeps: Sequence[Sweep]) -> str:
    """What is left at the strength at which the claim is judged, over several models."""
    rows = [row for sweep in sweeps for row in sweep.judged_rows]
    real, controls = ([row for row in rows if (row.control_of is None) is kind] for kind in (True, False))
    left = [row.other_kept for row in real if row.other_kept]
    sinks = [row.sink_ratio_kept.value for row in real if row.target == "sinks" and row.sink_ratio_kept]
    norms = [row.norm_ratio.value for row in real if row.norm_ratio]
    costs = [row.loss_difference_nats.value for row in real if row.loss_difference_nats]
    beside = min((row.other_kept.value for row in controls if row.other_kept), default=None)
    return (
        f"{claim.at.capitalize()}, {_range([each.value for each in left], percent)} of the {claim.other} are left "
        f"(intervals from {percent(min(each.low for each in left))} to {percent(max(each.high for each in left))})"
        + (f" and {_range(sinks, percent)} of the sinks" if sinks else "")
        + f", norm ratio {_range(norms, number)}, at {_range(costs, signed)} nats. "
        f"Controls of the same strength leave {percent(beside)} or more."
    )


def _range(values: Sequence[float], shown: Callable[[float], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _names(sweeps: Sequence[Sweep]) -> str:
    """The runs, those of a study together with their seeds."""
    seeds: dict[str, list[str]] = {}
    for sweep in sorted(sweeps, key=lambda sweep: int(sweep.seed or 0)):
        seeds.setdefault(sweep.study, []).append(sweep.seed)
    return listed([f"{study} ({', '.join(of)})" if all(of) else study for study, of in seeds.items()], 3)
