"""The verdict of a double dissociation, from stated rules; what they settle by a hair only is undecided."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from spikesink.records.intervals import Estimate, to_three_digits
from spikesink.records.interventions import UNREAD, Answer, Dissociation, InterventionRow

VARIED = {
    "tokens_removed_max": (0.05, 0.2),
    "spike_removed_max": (0.15, 0.35),
    "sinks_removed_max": (0.25, 0.4),
    "left_min": (0.7, 0.9),
    "fell_max": (0.4, 0.6),
}
"""What each threshold is lowered and raised to, to see whether the answer stays."""


ONE_CONTEXT = (
    "{:.0%} of the spike tokens found are one token behind the same ones, whose state is one whatever the model; "
    "sequences without BOS, or texts that begin differently, would ask it"
)


@dataclass(frozen=True)
class Thresholds:
    """Every threshold; shares are of the baseline's value."""

    tokens_removed_max: float = 0.1
    spike_removed_max: float = 0.25
    """Of the size and of the norm ratio between the step blocks."""
    sinks_removed_max: float = 0.33
    left_min: float = 0.8
    fell_max: float = 0.5
    free_max: float = 0.03
    """Nats; 3 % of perplexity."""
    costly_min: float = 0.1
    same_context_max: float = 0.5
    """Of the spike tokens, that are one token behind the same ones."""


def rules_in_words(rules: Thresholds) -> list[str]:
    """What decides, with its numbers."""
    return [
        f"A row removes spikes if at most {rules.tokens_removed_max:.0%} of the spike tokens are left and, between the "
        f"step-up and the step-down block, both the largest magnitude and its ratio to the median fall to at most "
        f"{rules.spike_removed_max:.0%} of the baseline's; it removes sinks if the sink ratio falls to at most "
        f"{rules.sinks_removed_max:.0%}.",
        f"The other quantity is left if the lower end of its interval is at least {rules.left_min:.0%} of the "
        f"baseline's; it fell if the upper end is at most {rules.fell_max:.0%} and every control of that row was run "
        "and leaves it. Sinks are counted in the blocks behind the edit; spikes only count in rows that edit sinks "
        "from the first block on, and need as many spike tokens left as size.",
        "Sinks do not need spikes if any row that removes spikes leaves sinks; they need them if in every such row "
        "they fell; otherwise, and where no row removes its target, undecided. The same the other way round.",
        "An answer that changes when one row is left out, or one of these limits lies elsewhere ("
        + ", ".join(f"{getattr(rules, name):.0%}: {low:.0%} to {high:.0%}" for name, (low, high) in VARIED.items())
        + "), is undecided.",
        f"One constant suffices if freezing costs at most {rules.free_max:g} nats (upper end) while zeroing costs at "
        f"least {rules.costly_min:g} (lower end), and a random constant of the same norm costs more than the learned "
        f"one. It is not asked where more than {rules.same_context_max:.0%} of the spike tokens found are the same "
        "token behind the same ones, as BOS is: its state is one constant whatever the model; nor where the "
        "spikes are complete only behind the last attention block.",
    ]


def dissociation(
    rows: list[InterventionRow],
    *,
    has_spikes: bool,
    has_sinks: bool,
    same_context: float | None = None,
    attention_behind: int | None = None,
    thresholds: Thresholds | None = None,
) -> Dissociation:
    """The verdict on a table of rows. same_context, attention_behind: as in `Targets`; None where it is not known."""
    thresholds = thresholds or Thresholds()
    missing = [name for name, there in (("spikes", has_spikes), ("sinks", has_sinks)) if not there]
    reason = f"the model has no {' and no '.join(missing)}" if missing else None
    sinks = _answer(rows, "spikes", "Do sinks need spikes?", thresholds, reason)
    spikes = _answer(rows, "sinks", "Do spikes need sinks?", thresholds, reason)
    verdict = _combined(sinks.answer, spikes.answer)
    return Dissociation(
        verdict=verdict,
        sentence=_sentence(verdict, sinks, spikes),
        sinks_need_spikes=sinks,
        spikes_need_sinks=spikes,
        constant_suffices=_constant(rows, thresholds, has_spikes, same_context, attention_behind),
        rules={**asdict(thresholds), "in_words": rules_in_words(thresholds)},
    )


def _answer(
    rows: list[InterventionRow], removed: str, question: str, thresholds: Thresholds, missing: str | None
) -> Answer:
    """Whether the other quantity needs what is removed; undecided where a small change of the rules says otherwise."""
    if missing:
        return Answer(question=question, answer="not applicable", evidence=[], reason=missing)
    answer = _needs(rows, removed, question, thresholds)
    others = {
        name: other
        for name, changed, kept in _variations(rows, removed, thresholds)
        if (other := _needs(kept, removed, question, changed).answer) != answer.answer
    }
    if not others or answer.answer == "undecided":
        return answer.model_copy(update={"sensitivity": others})
    flips = ", ".join(f"{other} with {name}" for name, other in others.items())
    reason = f"the rules alone say {answer.answer} ({answer.reason}), but {flips}"
    return answer.model_copy(update={"answer": "undecided", "reason": reason, "sensitivity": others})


def _variations(
    rows: list[InterventionRow], removed: str, thresholds: Thresholds
) -> Iterator[tuple[str, Thresholds, list[InterventionRow]]]:
    """Every threshold lower and higher, then every row on what is removed left out."""
    for name, values in VARIED.items():
        for value in values:
            yield f"{name} {value:g}", replace(thresholds, **{name: value}), rows
    for row in rows:
        if row.target == removed and row.control_of is None and row.applicable and row.cannot_answer is None:
            yield f"{row.name} left out", thresholds, [other for other in rows if other is not row]


def _needs(rows: list[InterventionRow], removed: str, question: str, thresholds: Thresholds) -> Answer:
    """What the rules say of these rows."""
    real = [row for row in rows if row.target == removed and row.control_of is None and row.applicable]
    asked = [row for row in real if row.cannot_answer is None]
    removing = [row for row in asked if removes(row, thresholds)]
    other = "sinks" if removed == "spikes" else "spikes"
    if not removing:
        evidence, reason = [row.name for row in asked or real], _none_removed(real, asked, removed)
        return Answer(question=question, answer="undecided", evidence=evidence, reason=reason)
    left = [row for row in removing if stays(row, thresholds)]
    why = {row.name: not_fallen(row, rows, thresholds) for row in removing if row not in left}
    unfallen = {name: text for name, text in why.items() if text is not None}
    if left:
        answer, decided, reason = "no", left, f"with the {removed} gone, {other} stay"
    elif not unfallen:
        answer, decided, reason = "yes", removing, f"with the {removed}, {other} go"
    else:
        answer, decided = "undecided", [row for row in removing if row.name in unfallen]
        reason = f"with the {removed} gone, {other} are between staying and going, or a control moves them too"
        if any(unfallen.values()):
            reason = f"with the {removed} gone, {other} go or are between, and controls do not show that this is why"
    numbers = "; ".join(_numbers(row, other) + unfallen.get(row.name, "") for row in decided)
    return Answer(
        question=question, answer=answer, evidence=[row.name for row in decided], reason=f"{reason}: {numbers}"
    )


def _none_removed(real: list[InterventionRow], asked: list[InterventionRow], removed: str) -> str:
    """Why no row answers; where the spikes are then, since they may have moved with the sinks."""
    if not real:
        return f"no intervention on {removed} was run"
    if not asked:
        return f"no row can answer; as for {real[0].name}, {real[0].cannot_answer}"
    text = f"no intervention removed the {removed}"
    if removed == "spikes":
        return text
    places = []
    for row in asked:
        spiking = [f"{position}" for position, share in row.spike_positions.items() if share > 0.5]
        where = f"spikes at position {' and '.join(spiking)}" if spiking else "no position spikes in most sequences"
        assert row.sink_ratio_kept is not None
        places.append(f"{row.name} leaves {row.sink_ratio_kept.value:.0%} of the sink ratio, {where}{_price(row)}")
    return f"{text}; edited from the first block on: {'; '.join(places)}"


def _numbers(row: InterventionRow, other: str) -> str:
    left = kept(row)
    whole = row.sink_ratio_kept
    both = f", in all blocks {whole.value:.0%}" if other == "sinks" and whole else ""
    return f"{row.name} leaves {left.value:.0%} [{left.low:.0%}, {left.high:.0%}] of the {other}{both}{_price(row)}"


def _price(row: InterventionRow) -> str:
    cost = row.loss_difference_nats
    return f", at {to_three_digits(cost.value)} nats" if cost else ""


def removes(row: InterventionRow, thresholds: Thresholds) -> bool:
    """Whether a row removes what it aims at."""
    assert row.plateau_kept is not None and row.sink_ratio_kept is not None
    if row.target == "sinks":
        return row.sink_ratio_kept.value <= thresholds.sinks_removed_max
    tokens = row.spike_tokens_kept.value if row.spike_tokens_kept else 0.0
    ratio = row.plateau_ratio_kept.value if row.plateau_ratio_kept else row.plateau_kept.value
    sizes = max(row.plateau_kept.value, ratio)
    return tokens <= thresholds.tokens_removed_max and sizes <= thresholds.spike_removed_max


def kept(row: InterventionRow) -> Estimate:
    """What is left of the quantity that a row, which can answer, does not aim at."""
    assert row.other_kept is not None
    return row.other_kept


def stays(row: InterventionRow, thresholds: Thresholds) -> bool:
    """Whether the quantity that the row does not aim at is left."""
    return kept(row).low >= thresholds.left_min


def not_fallen(row: InterventionRow, rows: list[InterventionRow], thresholds: Thresholds) -> str | None:
    """Why that quantity has not fallen, or not by this: empty where too much is left, else what its controls of the
    same strength say; None where it fell and they leave it."""
    if kept(row).high > thresholds.fell_max:
        return ""
    controls = [other for other in rows if other.control_of == row.name and other.strength == row.strength]
    if not controls:
        return ", but no control was run"
    for control in controls:
        if not control.applicable:
            return f", but {control.name} was not run ({control.reason})"
        if kept(control).value < thresholds.left_min:
            return f", but {control.name} leaves {kept(control).value:.0%}"
    return None


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


def _constant(
    rows: list[InterventionRow],
    thresholds: Thresholds,
    has_spikes: bool,
    same_context: float | None,
    attention_behind: int | None,
) -> Answer:
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
    numbers = [to_three_digits(row.value) for row in (frozen, zeroed, random)]
    costs = f"freezing costs {numbers[0]} nats, zeroing {numbers[1]}, a random constant {numbers[2]}"
    why = UNREAD if attention_behind == 0 else None
    if why is None and same_context is not None and same_context > thresholds.same_context_max:
        why = ONE_CONTEXT.format(same_context)
    if why is not None:
        return Answer(question=question, answer="not applicable", evidence=[], reason=f"{why} ({costs})")
    if frozen.high <= thresholds.free_max and zeroed.low >= thresholds.costly_min and random.low > frozen.high:
        answer = "yes"
    elif frozen.low > thresholds.costly_min:
        answer = "no"
    else:
        answer = "undecided"
    return Answer(question=question, answer=answer, evidence=list(names), reason=costs)
