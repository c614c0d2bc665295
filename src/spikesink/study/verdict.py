"""Do spikes and sinks come apart? Rules written down before the runs they were for; docs/study.md states them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from spikesink.bootstrap import holm
from spikesink.records.study import PARTS, TITLES, CellRecord, Change, Effect, VariantRow, VariantVerdict
from spikesink.study import verdict_v1
from spikesink.study.claims import FunctionRules
from spikesink.study.comparison import Difference, LogitScale, LogScale, Scale, welch
from spikesink.study.verdict_v1 import BOTH_GO, DIVERGED, NEITHER, SINKS_GO, SPIKES_GO, UNDECIDED
from spikesink.zoo.spec import DecoderSpec

SINKS = ("sink_ratio", "first_token_importance")
GOES = {"falls": True, "stays": False, "rises": False}
NAMES = {
    (True, False): SPIKES_GO, (False, True): SINKS_GO, (True, True): BOTH_GO, (False, False): NEITHER,
    (True, None): "spikes go", (False, None): "spikes stay", (None, True): "sinks go", (None, False): "sinks stay",
    (None, None): UNDECIDED,
}  # fmt: skip
"""Verdict by whether spikes and sinks go; None where that is unclear, or the baseline has none."""


@dataclass(frozen=True)
class Rules:
    """Thresholds of the verdict; ratios are the variant's over the baseline's."""

    spike_fall: float = 1 / 3
    """A part of the spike falls where its interval lies below."""
    spike_stay: float = 1 / 2
    """It stays where its interval lies above."""
    spike_rise: float = 3.0
    part_least: float = 1.0
    """What a part counts from: it is a ratio to something smaller, so that none lies below 1."""
    part_floor: float = 0.01
    """What lies nearer to that counts as so far away."""
    sink_limit: float = 1 / 2
    """Sinks stay where the interval lies above, fall where it lies below: one limit, which side decides."""
    sink_floor: float = 0.01
    """A share below counts as this: as good as none."""
    cost: float = 1.05
    """No cost in perplexity: the interval lies below; a cost: it lies above."""
    baseline_sink_ratio_min: float = 0.05
    """A baseline below has no sinks that could fall or stay."""
    max_over_median_min: float = 20.0
    within_token_min: float = 11.0
    """A cell has a spike where it reaches both, `scan`'s criteria, and ..."""
    spike_tokens_max: float = 2.5
    """... at most so many spike tokens a sequence, as `scan` counts them ("about 2 / T")."""
    seeds_min: int = 3
    """Fewer finished seeds, of the variant or the baseline, decide nothing."""
    confidence: float = 0.95


RULES = {3: Rules(part_least=0.0, part_floor=LogScale.floor), 4: Rules()}
"""By version. 2 counted as spike tokens all that reach a tenth of the largest magnitude, 3 what `scan` does; 4 counts
the parts from 1. A study keeps the rules that it began with."""
VERSION = max(RULES)


@dataclass(frozen=True)
class _Comparison:
    """One metric of one variant before the correction for the number of variants."""

    metric: str
    difference: Difference
    scale: Scale
    baseline: float
    """The baseline's mean on the scale."""
    separate: bool
    falls: float
    stays: float
    rises: float
    """Limits of the ratio."""
    tested: bool = True
    two_sided: bool = False
    """It stays only where it has not risen beyond the limit either."""

    def p_falls(self) -> float:
        return self.difference.p_below(self.scale.limit(self.falls, self.baseline)) if self.tested else 1.0

    def p_stays(self) -> float:
        return self.difference.p_above(self.scale.limit(self.stays, self.baseline))

    def seeds_needed(self, confidence: float, falls_of: int, stays_of: int) -> int | None:
        """Seeds at which nine in ten studies would decide it, corrected for how many tests there are; None where more
        seeds decide nothing: between falling and staying, or a fall that is not tested."""
        falls, stays, rises = (self.scale.limit(ratio, self.baseline) for ratio in (self.falls, self.stays, self.rises))
        fallen = self.difference.value <= falls
        if not self.tested if fallen else self.difference.value < stays:
            return None
        limits = [falls, stays, *([rises] if self.two_sided else [])]
        return self.difference.seeds_needed(limits, 1 - (1 - confidence) / (falls_of if fallen else stays_of))


def verdicts(rows: list[VariantRow], baseline: str, rules: Rules = Rules()) -> list[VariantVerdict]:
    """One verdict for every variant but the baseline, corrected together for how many they are."""
    of_baseline = next(row for row in rows if row.variant == baseline)
    others = [row for row in rows if row.variant != baseline]
    effects = _effects({row.variant: _comparisons(row, of_baseline, rules) for row in others}, rules)
    return [_verdict(row, of_baseline, effects[row.variant], rules) for row in others]


def _comparisons(row: VariantRow, baseline: VariantRow, rules: Rules) -> list[_Comparison]:
    """The metrics that both rows have."""
    compared = []
    for metric in ("spike", *PARTS, *SINKS, "perplexity"):
        ours, theirs = _readings(row, metric), _readings(baseline, metric)
        if ours and theirs:
            compared.append(_comparison(metric, ours, theirs, row, baseline, rules))
    return compared


def _readings(row: VariantRow, metric: str) -> list[float]:
    """A value a seed; none where a seed has none, as tokens a spike token where nothing spikes."""
    if metric != "tokens_per_spike":
        return row.values.get(metric, [])
    shares = row.values.get("spike_token_share", [])
    return [1 / share for share in shares] if all(shares) else []


def _comparison(
    metric: str, ours: list[float], theirs: list[float], row: VariantRow, baseline: VariantRow, rules: Rules
) -> _Comparison:
    scale: Scale = LogScale()
    falls, stays, rises = rules.spike_fall, rules.spike_stay, rules.spike_rise
    if metric in PARTS:
        scale = LogScale(rules.part_floor, rules.part_least)
    if metric in SINKS:
        uniform = baseline.values.get("uniform_importance", [0.0])[0] if metric == "first_token_importance" else 0.0
        scale, falls, stays = LogitScale(rules.sink_floor, uniform), rules.sink_limit, rules.sink_limit
    if metric == "perplexity":
        falls, stays, rises = 1 / rules.cost, 1 / rules.cost, rules.cost
    # Bounded by construction, a fall says something only where the baseline stood well above the bound.
    high_enough = row.ceiling is None or float(np.mean(theirs)) * rules.spike_fall >= row.ceiling
    at = scale.to(theirs)
    return _Comparison(
        metric, welch(scale.to(ours), at), scale, float(np.mean(at)),
        max(ours) < min(theirs) or min(ours) > max(theirs), falls, stays, rises,
        tested=metric != "spike" or high_enough, two_sided=metric == "perplexity",
    )  # fmt: skip


def _effects(compared: dict[str, list[_Comparison]], rules: Rules) -> dict[str, dict[str, Effect]]:
    """By variant and metric. Any part that is lost takes the spike away, so all parts count together for a fall."""
    every = [(variant, one) for variant, comparisons in compared.items() for one in comparisons]
    falls: _Corrected = {}
    stays: _Corrected = {}
    for family in (PARTS, *((metric,) for metric in ("spike", *SINKS, "perplexity"))):
        falls |= _corrected(every, family, _Comparison.p_falls)
    for metric in {one.metric for _, one in every}:
        stays |= _corrected(every, (metric,), _Comparison.p_stays)
    return {
        variant: {
            one.metric: _effect(one, falls[variant, one.metric], stays[variant, one.metric], rules)
            for one in comparisons
        }
        for variant, comparisons in compared.items()
    }


_Corrected = dict[tuple[str, str], tuple[float, int]]
"""By variant and metric: a p after Holm, and of how many tests."""


def _corrected(
    every: list[tuple[str, _Comparison]], family: tuple[str, ...], p: Callable[[_Comparison], float]
) -> _Corrected:
    """The p of the comparisons by a metric of the family, corrected for each other."""
    inside = [(variant, one) for variant, one in every if one.metric in family]
    ps = holm([p(one) for _, one in inside])
    return {(variant, one.metric): (value, len(ps)) for (variant, one), value in zip(inside, ps, strict=True)}


def _effect(one: _Comparison, falls: tuple[float, int], stays: tuple[float, int], rules: Rules) -> Effect:
    (p_falls, falls_of), (p_stays, stays_of) = falls, stays
    low, high = one.difference.interval(rules.confidence)
    return Effect(
        metric=one.metric,
        ratio=one.scale.ratio(one.difference.value, one.baseline),
        low=one.scale.ratio(low, one.baseline),
        high=one.scale.ratio(high, one.baseline),
        separate=one.separate,
        change=_change(one, p_falls, p_stays, rules),
        size=one.difference.size(),
        p_falls=p_falls,
        p_stays=p_stays,
        seeds_needed=one.seeds_needed(rules.confidence, falls_of, stays_of),
    )


def _change(one: _Comparison, p_falls: float, p_stays: float, rules: Rules) -> Change:
    """Rising is staying; that it rose is said where the interval clears the limit for it."""
    alpha = (1 - rules.confidence) / 2
    if p_falls <= alpha:
        return "falls"
    if p_stays > alpha:
        return "unclear"
    upper = one.scale.limit(one.rises, one.baseline)
    if isinstance(one.scale, LogScale) and one.difference.p_above(upper) <= alpha:
        return "rises"
    return "unclear" if one.two_sided and one.difference.p_below(upper) > alpha else "stays"


def spikes_change(effects: dict[str, Effect]) -> Change:
    """Lost where a part of what makes a spike is lost; kept where all are; by magnitude where no part is known."""
    parts = [effects[name].change for name in PARTS if name in effects]
    if not parts:
        return effects["spike"].change if "spike" in effects else "unclear"
    if "falls" in parts:
        return "falls"
    if "unclear" in parts or len(parts) < len(PARTS):
        return "unclear"
    return "rises" if effects["spike_max_over_median"].change == "rises" else "stays"


def sinks_change(effects: dict[str, Effect]) -> Change:
    """Sink ratio and first-token importance together: what only one of them says is unclear."""
    changes = {effects[name].change for name in SINKS if name in effects}
    if changes == {"falls"}:
        return "falls"
    return "stays" if changes and changes <= {"stays", "rises"} else "unclear"


def _cost(effects: dict[str, Effect], rules: Rules) -> str:
    effect = effects.get("perplexity")
    if effect is None:
        return "unclear"
    return "none" if effect.high < rules.cost else "some" if effect.low > rules.cost else "unclear"


def spiking(row: VariantRow, rules: Rules = Rules()) -> list[bool]:
    """Of every seed, whether it has what the definition asks for; by `scan`'s verdict where the parts were not kept."""
    values = row.values
    if not all(values.get(name) for name in ("spike_max_over_median", "within_token", "sequence_tokens")):
        return list(map(bool, values.get("has_spikes", [])))
    return [
        extreme >= rules.max_over_median_min
        and within >= rules.within_token_min
        and 0 < share * length <= rules.spike_tokens_max
        for extreme, within, share, length in zip(
            values["spike_max_over_median"], values["within_token"], values["spike_token_share"],
            values["sequence_tokens"], strict=True,
        )
    ]  # fmt: skip


def has_spikes(row: VariantRow, rules: Rules = Rules()) -> bool:
    """Whether most seeds have spikes."""
    seeds = spiking(row, rules)
    return sum(seeds) > len(seeds) / 2


def _verdict(row: VariantRow, baseline: VariantRow, effects: dict[str, Effect], rules: Rules) -> VariantVerdict:
    before = verdict_v1.verdict(row, baseline)
    if row.diverged and not row.seeds:
        sentence = f"{row.variant} does not train: all {row.diverged} seeds diverged."
        return VariantVerdict(
            variant=row.variant, verdict=DIVERGED, sentence=sentence, effects=[], version_1=before,
            diverged=row.diverged,
        )  # fmt: skip
    why = _nothing_to_decide(row, baseline, rules)
    spikes = "not testable" if not has_spikes(baseline, rules) else "unclear" if why else spikes_change(effects)
    sinks: Change = "unclear" if why else sinks_change(effects)
    verdict, unclear = _named(spikes, sinks)
    still = spiking(row, rules)
    left = f"; {sum(still)} of {len(still)} models have spikes by the definition" if spikes == "falls" and still else ""
    return VariantVerdict.model_validate(
        {
            "variant": row.variant, "verdict": verdict, "effects": list(effects.values()), "version_1": before,
            "spikes": spikes, "sinks": sinks, "cost": "unclear" if why or row.diverged else _cost(effects, rules),
            "sentence": _sentence(row, verdict, why or (unclear or _moved(effects)) + left), "diverged": row.diverged,
        }
    )  # fmt: skip


def _nothing_to_decide(row: VariantRow, baseline: VariantRow, rules: Rules) -> str:
    seeds = min(len(row.seeds), len(baseline.seeds))
    if seeds < rules.seeds_min:
        return f"{seeds} seed{'' if seeds == 1 else 's'}, at least {rules.seeds_min} decide"
    lost = next((one for one in (row, baseline) if one.diverged >= len(one.seeds)), None)
    if lost is not None:
        return f"{lost.diverged} of {lost.diverged + len(lost.seeds)} seeds of {lost.variant} diverged"
    if float(np.mean(baseline.values["sink_ratio"])) < rules.baseline_sink_ratio_min:
        return "the baseline has no sinks that could fall or stay"
    return ""


def _named(spikes: str, sinks: Change) -> tuple[str, str]:
    """(Verdict, what is not decided about it)."""
    unclear = [name for name, change in (("spikes", spikes), ("sinks", sinks)) if change == "unclear"]
    missing = ["the baseline has no spikes that could go"] if spikes == "not testable" else []
    missing += [f"the {' and the '.join(unclear)} are unclear"] if unclear else []
    return NAMES[GOES.get(spikes), GOES.get(sinks)], "; ".join(missing)


def _moved(effects: dict[str, Effect]) -> str:
    """Which parts of the spike moved."""
    if not any(name in effects for name in PARTS):
        return "by absolute magnitude alone"
    known = [name for name in PARTS if name in effects]
    moved = [f"{TITLES[name]} {effects[name].change}" for name in known if effects[name].change in ("falls", "rises")]
    return ", ".join(moved) or "no part of the spike moved"


def _sentence(row: VariantRow, verdict: str, why: str) -> str:
    lost = f"; {row.diverged} diverged" if row.diverged else ""
    lost += f"; {row.failed} failed" if row.failed else ""
    return f"{row.variant}: {verdict} ({why}), n = {len(row.seeds)}{lost}."


def rules_as_numbers(rules: Rules | FunctionRules = Rules()) -> dict[str, float]:
    """The thresholds as they stand in a record."""
    return {name: float(value) for name, value in asdict(rules).items()}


def errors(records: list[CellRecord]) -> list[str]:
    """One line for every cell without a result."""
    return [
        f"{record.variant}, seed {record.seed}: {record.status}: {record.error}"
        for record in records
        if record.status != "finished"
    ]


def ceiling(spec: DecoderSpec) -> float | None:
    """Magnitude that a residual of this decoder reaches with independent writes and gain 1; None without a bound.

    sqrt(2 L d) where a norm stands on every write (a sum of 2 L vectors of length sqrt(d)), sqrt(d) where the residual
    itself is normed.
    """
    if not spec.arrangement.output_norm or spec.norm.kind not in ("rmsnorm", "layernorm"):
        return None
    writes = 1 if spec.arrangement.kind == "post" else 2 * spec.n_layers
    return math.sqrt(writes * spec.d_model)
