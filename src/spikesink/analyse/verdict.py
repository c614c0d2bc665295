"""The verdict of a double dissociation, from stated rules; whatever they do not settle is undecided."""

from dataclasses import asdict, dataclass

from spikesink.records.interventions import Answer, Dissociation, Estimate, InterventionRow

RULES_IN_WORDS = (
    "A row removes spikes if the largest magnitude between the step-up and the step-down block falls to "
    "spike_removed_max of the baseline's; it removes sinks if the sink ratio falls to sinks_removed_max.",
    "The other quantity is left if the lower end of its interval is at least left_min of the baseline's; it fell if "
    "the upper end is at most fell_max and every control of that row leaves it.",
    "Sinks do not need spikes if any row that removes spikes leaves sinks; they need them if in every such row they "
    "fell; otherwise, and where no row removes its target, undecided. The same the other way round.",
    "One constant suffices if freezing costs at most free_max nats (upper end) while zeroing costs at least costly_min "
    "(lower end), and a random constant of the same norm costs more than the learned one.",
)


@dataclass(frozen=True)
class Thresholds:
    """Every threshold; shares are of the baseline's value."""

    spike_removed_max: float = 0.1
    sinks_removed_max: float = 0.33
    left_min: float = 0.8
    fell_max: float = 0.5
    free_max: float = 0.03
    """Nats; 3 % of perplexity."""
    costly_min: float = 0.1


def dissociation(
    rows: list[InterventionRow], *, has_spikes: bool, has_sinks: bool, thresholds: Thresholds | None = None
) -> Dissociation:
    """The verdict on a table of rows."""
    thresholds = thresholds or Thresholds()
    missing = [name for name, there in (("spikes", has_spikes), ("sinks", has_sinks)) if not there]
    reason = f"the model has no {' and no '.join(missing)}" if missing else None
    sinks = _needs(rows, "spikes", "Do sinks need spikes?", thresholds, reason)
    spikes = _needs(rows, "sinks", "Do spikes need sinks?", thresholds, reason)
    verdict = _combined(sinks.answer, spikes.answer)
    return Dissociation(
        verdict=verdict,
        sentence=_sentence(verdict, sinks, spikes),
        sinks_need_spikes=sinks,
        spikes_need_sinks=spikes,
        constant_suffices=_constant(rows, thresholds, has_spikes),
        rules={**asdict(thresholds), "in_words": list(RULES_IN_WORDS)},
    )


def _needs(
    rows: list[InterventionRow], removed: str, question: str, thresholds: Thresholds, missing: str | None
) -> Answer:
    """Whether the other quantity needs what rows with this target remove."""
    if missing:
        return Answer(question=question, answer="not applicable", evidence=[], reason=missing)
    real = [row for row in rows if row.target == removed and row.control_of is None and row.applicable]
    removing = [row for row in real if _removes(row, thresholds)]
    if not removing:
        reason = f"no intervention removed the {removed}" if real else f"no intervention on {removed} was run"
        return Answer(question=question, answer="undecided", evidence=[row.name for row in real], reason=reason)
    other = "sinks" if removed == "spikes" else "spikes"
    left = [row.name for row in removing if _kept(row).low >= thresholds.left_min]
    if left:
        return Answer(question=question, answer="no", evidence=left, reason=f"with the {removed} gone, {other} stay")
    fell = [
        row.name
        for row in removing
        if _kept(row).high <= thresholds.fell_max and _controls_leave(row, rows, thresholds)
    ]
    if len(fell) == len(removing):
        return Answer(question=question, answer="yes", evidence=fell, reason=f"with the {removed}, {other} go")
    open_rows = [row for row in removing if row.name not in fell]
    shares = ", ".join(f"{row.name} {_kept(row).low:.0%} to {_kept(row).high:.0%}" for row in open_rows)
    return Answer(
        question=question,
        answer="undecided",
        evidence=[row.name for row in open_rows],
        reason=f"with the {removed} gone, {other} are between staying and going, or a control moves them too: {shares}",
    )


def _removes(row: InterventionRow, thresholds: Thresholds) -> bool:
    assert row.plateau_kept is not None and row.sink_ratio_kept is not None
    if row.target == "sinks":
        return row.sink_ratio_kept.value <= thresholds.sinks_removed_max
    return row.plateau_kept.value <= thresholds.spike_removed_max


def _kept(row: InterventionRow) -> Estimate:
    """What is left of the quantity that the row does not aim at."""
    kept = row.sink_ratio_kept if row.target == "spikes" else row.plateau_kept
    assert kept is not None
    return kept


def _controls_leave(row: InterventionRow, rows: list[InterventionRow], thresholds: Thresholds) -> bool:
    controls = [other for other in rows if other.control_of == row.name and other.applicable]
    return all(_kept(control).value >= thresholds.left_min for control in controls)


def _combined(sinks_need_spikes: str, spikes_need_sinks: str) -> str:
    return {
        ("no", "no"): "dissociated",
        ("yes", "yes"): "coupled",
        ("yes", "no"): "sinks need spikes",
        ("no", "yes"): "spikes need sinks",
        ("not applicable", "not applicable"): "not applicable",
    }.get((sinks_need_spikes, spikes_need_sinks), "undecided")


def _sentence(verdict: str, sinks: Answer, spikes: Answer) -> str:
    if verdict == "not applicable":
        return f"There is nothing to dissociate: {sinks.reason}."
    start = {
        "dissociated": "Each can be removed and leaves the other",
        "coupled": "Neither stays without the other",
        "sinks need spikes": "Sinks go with the spikes, spikes stay without sinks",
        "spikes need sinks": "Spikes go with the sinks, sinks stay without spikes",
        "undecided": "The rules do not settle it",
    }[verdict]
    parts = "; ".join(f"{answer.question} {answer.answer} ({answer.reason})" for answer in (sinks, spikes))
    return f"{start}. {parts}."


def _constant(rows: list[InterventionRow], thresholds: Thresholds, has_spikes: bool) -> Answer:
    """Whether one constant vector can stand in for every spike token's state."""
    question = "Does one constant vector do in place of a spike token?"
    if not has_spikes:
        return Answer(question=question, answer="not applicable", evidence=[], reason="the model has no spikes")
    by_name = {row.name: row.loss_difference_nats for row in rows if row.applicable}
    names = ("freeze_spikes", "zero_spikes", "freeze_spikes/random_constant")
    frozen, zeroed, random = (by_name.get(name) for name in names)
    if frozen is None or zeroed is None or random is None:
        return Answer(
            question=question, answer="undecided", evidence=[], reason="freeze_spikes and zero_spikes were not both run"
        )
    costs = f"freezing costs {frozen.value:.3g} nats, zeroing {zeroed.value:.3g}, a random constant {random.value:.3g}"
    if frozen.high <= thresholds.free_max and zeroed.low >= thresholds.costly_min and random.low > frozen.high:
        answer = "yes"
    elif frozen.low > thresholds.costly_min:
        answer = "no"
    else:
        answer = "undecided"
    return Answer(question=question, answer=answer, evidence=list(names), reason=costs)
