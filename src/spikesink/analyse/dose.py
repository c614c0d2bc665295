"""The sweep of strengths: how far can one of spikes and sinks be weakened before the other falls, and at what cost?"""

from collections.abc import Callable, Sequence
from itertools import takewhile

from spikesink.analyse.dissociation import control_row, intervention_row, level_row
from spikesink.analyse.evaluation import Evaluation, Evaluator
from spikesink.analyse.verdict import Thresholds, kept, not_fallen, removes, stays
from spikesink.errors import InputError, did_you_mean
from spikesink.intervene import INTERVENTIONS, Intervention
from spikesink.records.intervals import Estimate
from spikesink.records.interventions import Dose, InterventionRow, silent

STAGE = "dose"
DEFAULT = ("shrink_spikes", "mask_sinks_everywhere")
"""One on spikes; one on sinks that acts before spikes are written."""
Sweep = tuple[Intervention, tuple[float, ...]]


def parse_dose(asked: Sequence[str]) -> list[Sweep]:
    """Each of `default`, NAME or NAME=LEVELS with commas, as interventions and their levels, weakest first.

    Raises InputError for an intervention that is unknown or has no strength, and for levels that mean nothing.
    """
    known = [name for name, made in INTERVENTIONS.items() if made.strength is not None]
    chosen: dict[str, tuple[float, ...]] = {}
    for one in asked:
        name, _, levels = (part.strip() for part in one.partition("="))
        for named in DEFAULT if name == "default" else (name.replace("-", "_"),):
            if named not in known:
                of = "an intervention without a strength" if named in INTERVENTIONS else "no intervention"
                raise InputError(f"--dose: '{named}' is {of}{did_you_mean(named, ['default', *known])}")
            chosen[named] = _levels(INTERVENTIONS[named], levels)
    return [(INTERVENTIONS[name], levels) for name, levels in chosen.items()]


def _levels(made: Intervention, text: str) -> tuple[float, ...]:
    strength = made.strength
    assert strength is not None
    if not text:
        return strength.levels
    try:
        levels = sorted({float(level) for level in text.split(",")})
    except ValueError:
        raise InputError(f"--dose {made.name}={text}: expected numbers with commas.") from None
    for level in levels:
        made.check_strength(level)
    return tuple(levels)


def doses(evaluator: Evaluator, sweeps: Sequence[Sweep]) -> list[Dose]:
    """Every intervention at each of its levels, with one draw of each control; the baseline is measured once."""
    if not sweeps:
        return []
    baseline = evaluator.baseline()
    step = evaluator.steps(STAGE, sum(len(levels) * (1 + len(made.controls)) for made, levels in sweeps))
    swept = []
    targets = evaluator.targets
    missing = [name for name, there in (("spikes", targets.has_spikes), ("sinks", targets.has_sinks)) if not there]
    for made, levels in sweeps:
        if missing:
            swept.append(_refused(made, [], f"the model has no {' and no '.join(missing)}"))
            continue
        rows: list[InterventionRow] = []
        for level in levels:
            rows += _level(evaluator, made, level, baseline, step)
        swept.append(judged(made, rows))
    return swept


def _level(
    evaluator: Evaluator, made: Intervention, level: float, baseline: Evaluation, step: Callable[[], None]
) -> list[InterventionRow]:
    assert made.strength is not None
    if level == made.strength.nothing:
        return [level_row(evaluator, made, baseline, level)]
    controls = [control_row(evaluator, made, control, baseline, 1, step, level) for control in made.controls]
    return [intervention_row(evaluator, made, baseline, step, level), *controls]


def judged(made: Intervention, rows: list[InterventionRow]) -> Dose:
    """A sweep by its levels: where the other quantity stays and where it has fallen, by the table's own rules."""
    assert made.strength is not None
    rules = Thresholds()
    real = [row for row in rows if row.control_of is None]
    refused = next((row.reason for row in real if not row.applicable), None)
    if refused is not None:
        return _refused(made, rows, refused)
    unsaid = silent(rows)
    staying, fallen = [], []
    if unsaid is None:
        staying = list(takewhile(lambda row: stays(row, rules), real))
        fallen = list(takewhile(lambda row: not_fallen(row, rows, rules) is None, reversed(real)))
    last, first = (each[-1] if each else None for each in (staying, fallen))
    return Dose(
        name=made.name,
        target=made.edits,
        strength=made.strength.meaning,
        levels=rows,
        stays_to=last.strength if last else None,
        falls_from=first.strength if first else None,
        sentence=f"It does not say up to where the {_other(made)} stay: {unsaid}."
        if unsaid
        else _sentence(made, rows, last, first, rules),
    )


def _refused(made: Intervention, rows: list[InterventionRow], reason: str) -> Dose:
    assert made.strength is not None
    return Dose(
        name=made.name, target=made.edits, strength=made.strength.meaning, levels=rows,
        sentence=f"It does not apply: {reason}.", applicable=False, reason=reason,
    )  # fmt: skip


def _other(made: Intervention) -> str:
    return "sinks" if made.edits == "spikes" else "spikes"


def _sentence(
    made: Intervention,
    rows: list[InterventionRow],
    last_left: InterventionRow | None,
    falls: InterventionRow | None,
    rules: Thresholds,
) -> str:
    """What the sweep says, with intervals, costs and controls."""
    assert made.strength is not None
    other = _other(made)
    real = [row for row in rows if row.control_of is None]
    weakest = next((row for row in real if row.strength != made.strength.nothing), real[0])
    first = f"the weakest, {_named(made, weakest)}: {_numbers(weakest, other)}"
    staying = f"At no level tried do the {other} stay ({first})"
    if last_left is not None and last_left.strength != made.strength.nothing:
        staying = f"Up to {_named(made, last_left)} the {other} stay: {_numbers(last_left, other)}"
    falling = f"they fall at no level tried (the last, {_named(made, real[-1])}: {_numbers(real[-1], other)})"
    if falls is not None:
        falling = f"they have fallen from {_named(made, falls)} on: {_numbers(falls, other)}"
    elif last_left is real[-1]:
        falling = "that is the last level tried"
    elif why := not_fallen(real[-1], rows, rules):
        falling = f"at the last level tried, {_named(made, real[-1])}, they fall{why}: {_numbers(real[-1], other)}"
    if made.edits == "sinks" and not any(removes(row, rules) for row in real):
        left = min(row.sink_ratio_kept.value for row in real if row.sink_ratio_kept)
        falling += f"; but no level removes the sinks, of which {left:.0%} or more are left: others take their place"
    controls = [row for row in rows if row.control_of is not None and row.applicable]
    least = min((kept(row) for row in controls), key=lambda share: share.low, default=None)
    beside = "" if least is None else f" Controls of the same strength leave {_share(least)} or more."
    limits = f" (Stay: at least {rules.left_min:.0%} left, lower end; fall: at most {rules.fell_max:.0%}, upper end.)"
    return f"{staying}; {falling}.{beside}{limits}"


def _named(made: Intervention, row: InterventionRow) -> str:
    assert made.strength is not None and row.strength is not None
    return f"{row.strength:.0%} taken away" if made.strength.most <= 1 else f"a divisor of {row.strength:g}"


def _numbers(row: InterventionRow, other: str) -> str:
    cost, norm = row.loss_difference_nats, row.norm_ratio
    price = f", at {cost.value:+.3g} [{cost.low:+.3g}, {cost.high:+.3g}] nats" if cost else ""
    ratio = f", norm ratio {norm.value:.3g}" if norm else ""
    sinks = f", sink ratio {row.sink_ratio.value:.1%}" if row.sink_ratio else ""
    return f"{_share(kept(row))} of the {other} left{sinks}{ratio}{price}"


def _share(share: Estimate) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
