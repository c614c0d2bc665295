"""What a folder's sweeps of strengths say: how much of its spikes or sinks a finished model needs for the other."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spikesink.records.interventions import Dose, Interventions
from spikesink.report.dose import dominance_figure, dose_figure
from spikesink.report.drawing import Figure
from spikesink.report.evidence import OWN, ROUTES, Evidence, Finding, Line, combined, source
from spikesink.report.format import counted, listed

Sweep = tuple[str, Interventions, Dose]
"""Name of the run, its record, and the sweep."""


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
    return [dose_figure(sweeps[0][2])]


CLAIMS = {
    "spikes": SweepClaim(
        "sinks", "In a finished pre-norm model sinks need a direction that dominates, not a massive size: a tenfold "
        "smaller spike leaves them.", 10, "with a spike divided by 10",
        "Another model or text whose sinks fall at a spike divided by ten or less.",
        "Sweeps of spikes that stand out alike: a tenth of one that stands out little lies among other tokens.",
        "It reports that both meet in pre-norm models; it has no sweep of the spike's size.",
        lambda sweeps: [*_drawn(sweeps), dominance_figure([(name, dose) for name, _, dose in sweeps])],
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
        sweeps, claim = _sweeps(evidence, target), CLAIMS[target]
        if sweeps:
            n = counted(len(sweeps), "sweep")
            found = Counter(_judged(claim, *sweep[1:]) for sweep in sweeps)
            says = (
                f"{claim.at.capitalize()} {claim.other} stay in {found['supported']} of {n} and have fallen in "
                f"{found['contradicted']}; the finding on it has each."
            )
            lines.append(Line(ROUTES[0], listed([name for name, *_ in sweeps], 2), n, says, ""))
    return lines


def _shortly(dose: Dose) -> str:
    """What a sweep says, without the limits, which docs/interventions.md states."""
    return dose.sentence.partition(" (Stay")[0]


def _sweeps(evidence: Evidence, target: str) -> list[Sweep]:
    every = [(name, record, dose) for name, record in evidence.doses.items() for dose in record.dose]
    return [sweep for sweep in every if sweep[2].target == target and sweep[2].applicable]


def _finding(claim: SweepClaim, sweeps: Sequence[Sweep]) -> Finding:
    lines = [
        Line(
            ROUTES[0], source(name, record), counted(record.provenance.settings["evaluated_sequences"], "sequence"),
            _shortly(dose), _judged(claim, record, dose),
        )
        for name, record, dose in sweeps
    ]  # fmt: skip
    verdict = combined(lines)
    change = claim.change if verdict == "supported" else claim.mixed
    return Finding(OWN, claim.text, verdict, lines, change, claim.paper, claim.figures(sweeps))


def _judged(claim: SweepClaim, record: Interventions, dose: Dose) -> str:
    """Whether the other quantity stays at that strength or has fallen there; undecided where masked sinks do not go."""
    row = next((row for row in dose.levels if row.control_of is None and row.strength == claim.level), None)
    if row is not None and dose.target == "sinks":
        left = row.sink_ratio_kept.value if row.sink_ratio_kept else 1.0
        if left > record.dissociation.rules["sinks_removed_max"]:
            return "undecided"
    if dose.stays_to is not None and dose.stays_to >= claim.level:
        return "supported"
    return "contradicted" if dose.falls_from is not None and dose.falls_from <= claim.level else "undecided"
