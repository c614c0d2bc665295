"""Do spikes and sinks come apart? Rules that were written down before the runs; docs/study.md states them.

A variant's mean is compared with the baseline's, as a ratio with a bootstrap interval over seeds.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from spikesink.records.study import CellRecord, ClaimVerdict, Effect, VariantRow, VariantVerdict

RESAMPLES = 10_000


@dataclass(frozen=True)
class Rules:
    """Thresholds of the verdict."""

    fall_factor: float = 3.0
    """Falls: the whole interval of the ratio lies below 1 / fall_factor, and no seed lies among the baseline's."""
    band_factor: float = 2.0
    """Stays: the whole interval lies between 1 / band_factor and band_factor."""
    seeds_min: int = 3
    """Fewer finished seeds, of the variant or the baseline, decide nothing."""
    baseline_sink_ratio_min: float = 0.05
    """A baseline below has no sinks that could fall or stay."""
    perplexity_factor: float = 1.05
    """No cost: the whole interval of the perplexity ratio lies below."""
    confidence: float = 0.95


SPIKES_GO, SINKS_GO, BOTH_GO = "spikes go, sinks stay", "sinks go, spikes stay", "both go"
NEITHER, UNDECIDED, DIVERGED = "neither goes", "undecided", "diverged"


def effect(metric: str, values: list[float], baseline: list[float], rules: Rules) -> Effect:
    """The variant's mean over the baseline's, with a percentile bootstrap interval over seeds of both.

    Raises ValueError where a list is empty or the baseline's mean is not positive.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if not len(ours) or not len(theirs) or theirs.mean() <= 0:
        raise ValueError(f"no ratio of {values} to {baseline}")
    rng = np.random.default_rng(0)
    means = [data[rng.integers(len(data), size=(RESAMPLES, len(data)))].mean(1) for data in (ours, theirs)]
    # A resample of zeros alone says: any ratio.
    ratios = np.divide(means[0], means[1], out=np.full(RESAMPLES, np.inf), where=means[1] > 0)
    tail = (1 - rules.confidence) / 2
    # Order statistics: interpolating between infinities would give NaN.
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    separate = bool(ours.max() < theirs.min() or ours.min() > theirs.max())
    ratio, bounds = float(ours.mean() / theirs.mean()), (float(low), min(float(high), float(np.finfo(np.float32).max)))
    return Effect(
        metric=metric, ratio=ratio, low=bounds[0], high=bounds[1], separate=separate,
        change=_change(*bounds, separate=separate, rules=rules),
    )  # fmt: skip


def _change(low: float, high: float, *, separate: bool, rules: Rules) -> Literal["falls", "stays", "rises", "unclear"]:
    if high < 1 / rules.fall_factor and separate:
        return "falls"
    if low > rules.fall_factor and separate:
        return "rises"
    return "stays" if low >= 1 / rules.band_factor and high <= rules.band_factor else "unclear"


def verdicts(rows: list[VariantRow], baseline: str, rules: Rules = Rules()) -> list[VariantVerdict]:
    """One verdict for every variant but the baseline."""
    of_baseline = next(row for row in rows if row.variant == baseline)
    return [_verdict(row, of_baseline, rules) for row in rows if row.variant != baseline]


def _verdict(row: VariantRow, baseline: VariantRow, rules: Rules) -> VariantVerdict:
    if row.diverged and not row.seeds:
        sentence = f"{row.variant} does not train: all {row.diverged} seeds diverged."
        return VariantVerdict(variant=row.variant, verdict=DIVERGED, sentence=sentence, effects=[])
    effects = [
        effect(metric, row.values[metric], baseline.values[metric], rules)
        for metric in ("spike", "max_over_median", "sink_ratio", "first_token_importance", "perplexity")
        if row.values.get(metric) and baseline.values.get(metric) and np.mean(baseline.values[metric]) > 0
    ]
    verdict, why = _decide(row, baseline, {found.metric: found for found in effects}, rules)
    return VariantVerdict(
        variant=row.variant, verdict=verdict, sentence=_sentence(row, verdict, why, effects), effects=effects
    )


def _decide(row: VariantRow, baseline: VariantRow, effects: dict[str, Effect], rules: Rules) -> tuple[str, str]:
    """(Verdict, why it is undecided)."""
    seeds = min(len(row.seeds), len(baseline.seeds))
    if seeds < rules.seeds_min:
        return UNDECIDED, f"{seeds} seed{'' if seeds == 1 else 's'}, at least {rules.seeds_min} decide"
    if not _has_sinks(baseline, rules):
        return UNDECIDED, "the baseline has no sinks that could fall or stay"
    spikes, sinks = effects["spike"].change, _sinks_change(effects)
    known = {("falls", "stays"): SPIKES_GO, ("stays", "falls"): SINKS_GO, ("falls", "falls"): BOTH_GO}
    known |= {("rises", "falls"): SINKS_GO, ("falls", "rises"): SPIKES_GO}
    if "unclear" in (spikes, sinks):
        unclear = [name for name, change in (("spikes", spikes), ("sinks", sinks)) if change == "unclear"]
        return UNDECIDED, f"the interval of the {' and the '.join(unclear)} lies across a limit"
    return known.get((spikes, sinks), NEITHER), ""


def _sinks_change(effects: dict[str, Effect]) -> str:
    """By the sink ratio; where its interval is too wide, by the first token's importance, which may only say stays."""
    ratio = effects["sink_ratio"].change
    if ratio == "unclear" and effects["first_token_importance"].change == "stays":
        return "stays"
    return ratio


def _has_sinks(baseline: VariantRow, rules: Rules) -> bool:
    return float(np.mean(baseline.values["sink_ratio"])) >= rules.baseline_sink_ratio_min


def _sentence(row: VariantRow, verdict: str, why: str, effects: list[Effect]) -> str:
    parts = [f"{_title(found)} x {found.ratio:.2g} [{found.low:.2g}, {_high(found)}]" for found in effects]
    lost = f"; {row.diverged} diverged" if row.diverged else ""
    lost += f"; {row.failed} failed" if row.failed else ""
    reason = f" ({why})" if why else ""
    return f"{row.variant}: {verdict}{reason}, n = {len(row.seeds)}{lost}: {', '.join(parts) or 'nothing measured'}."


def _title(found: Effect) -> str:
    return found.metric.replace("max_over_median", "max / median").replace("_", " ")


def _high(found: Effect) -> str:
    return f"{found.high:.2g}" if found.high < 1e30 else "unbounded"


def claims(found: list[VariantVerdict], rules: Rules = Rules()) -> list[ClaimVerdict]:
    """What the study says about the paper's claims. Spec of the study, section 0."""
    decided = [verdict for verdict in found if verdict.verdict not in (UNDECIDED, DIVERGED)]
    apart = [verdict for verdict in decided if verdict.verdict in (SPIKES_GO, SINKS_GO)]
    free = [verdict for verdict in apart if _is_free(verdict, rules)]
    return [
        ClaimVerdict(
            claim=1, text="Spikes and sinks meet because of the pre-norm design, not by necessity.",
            verdict=_supported(apart, decided), evidence=_named(apart, decided, "comes apart"),
        ),
        ClaimVerdict(
            claim=2, text="Spikes act globally: near-constant vectors, the same for every prompt.",
            verdict="not tested", evidence="An intervention tests this: `spikesink intervene` on a cell's model.",
        ),
        ClaimVerdict(
            claim=3, text="Sinks act locally: they turn heads down and keep them short-sighted.",
            verdict="not tested", evidence="`spikesink scan --measure heads` and `spikesink intervene` test this.",
        ),
        ClaimVerdict(
            claim=4, text="Each can be suppressed alone at no cost in perplexity.",
            verdict=_supported(free, apart),
            evidence=_named(free, apart, f"comes apart within {rules.perplexity_factor - 1:.0%} of the perplexity"),
        ),
    ]  # fmt: skip


def _is_free(verdict: VariantVerdict, rules: Rules) -> bool:
    return any(found.metric == "perplexity" and found.high < rules.perplexity_factor for found in verdict.effects)


def _supported(
    supporting: list[VariantVerdict], decided: list[VariantVerdict]
) -> Literal["supported", "contradicted", "undecided"]:
    if supporting:
        return "supported"
    return "contradicted" if decided else "undecided"


def _named(supporting: list[VariantVerdict], decided: list[VariantVerdict], what: str) -> str:
    if supporting:
        return "; ".join(verdict.sentence for verdict in supporting)
    if not decided:
        return "No variant decided it."
    return f"None of {', '.join(verdict.variant for verdict in decided)} {what}."


def rules_as_numbers(rules: Rules = Rules()) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(rules).items()}


def errors(records: list[CellRecord]) -> list[str]:
    """One line for every cell without a result."""
    return [
        f"{record.variant}, seed {record.seed}: {record.status}: {record.error}"
        for record in records
        if record.status != "finished"
    ]
