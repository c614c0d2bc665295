"""The verdict on planted cases, what is never decided, and version 1 beside it."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from study_cases import GRID, base, record

from spikesink.records.study import TITLES
from spikesink.study import table, verdict, verdict_v1
from spikesink.train.recipe import load_recipe
from spikesink.zoo import DecoderSpec

SHAPES = ("spike_max_over_median", "within_token", "norm_ratio")


def decide(baseline, variant, *, lost=()):
    """Verdict of `dyt` against `plain` from lists of figures per seed."""
    records = [record("plain", seed, **figures) for seed, figures in enumerate(baseline)]
    records += [record("dyt", seed, **figures) for seed, figures in enumerate(variant)]
    records += [record("dyt", 90 + seed, status=status) for seed, status in enumerate(lost)]
    rows = table.rows(GRID, base(), records)
    (judged,) = verdict.verdicts(rows, "plain")
    return judged


def figures(shapes, sinks, *, importances=None, perplexities=None, **fixed):
    """One dict a seed; `shapes` are max / median, within-token ratio and norm ratio alike."""
    importances, perplexities = importances or sinks, perplexities or [4.0 + 0.001 * seed for seed in range(len(sinks))]
    return [
        {
            "spike": 10 * shape, "max_over_median": shape, **dict.fromkeys(SHAPES, shape), "sink_ratio": sink,
            "first_token_importance": importance, "perplexity": perplexity, "spike_token_share": 1 / 16,
            "sequence_tokens": 16, "uniform_importance": 0.0, **fixed,
        }
        for shape, sink, importance, perplexity in zip(shapes, sinks, importances, perplexities, strict=True)
    ]  # fmt: skip


LOW, HIGH, MANY = [10, 15, 12, 11], [0.48, 0.5, 0.44, 0.51], [100, 110, 130, 95]
NONE = [0.01, 0.05, 0.0, 0.02]
BASELINE = figures(MANY, [0.5, 0.45, 0.52, 0.47])


@pytest.mark.parametrize(
    ("shapes", "sinks", "expected"),
    [
        (LOW, HIGH, verdict.SPIKES_GO),
        (MANY, NONE, verdict.SINKS_GO),
        ([900, 800, 990, 850], NONE, verdict.SINKS_GO),
        (LOW, NONE, verdict.BOTH_GO),
        (MANY, HIGH, verdict.NEITHER),
        ([900, 800, 990, 850], HIGH, verdict.NEITHER),
        # Rising sinks stay: there is no upper end to that.
        (LOW, [0.95, 0.99, 0.97, 0.99], verdict.SPIKES_GO),
        # Between a third and a half: neither lost nor kept.
        ([46, 44, 45, 43], HIGH, "sinks stay"),
        ([46, 44, 45, 43], NONE, "sinks go"),
        # The mean falls, but the seeds disagree.
        ([100, 1, 1, 90], HIGH, "sinks stay"),
        (LOW, [0.9, 0.1, 0.0, 0.6], "spikes go"),
        (MANY, [0.9, 0.1, 0.0, 0.6], "spikes stay"),
        ([100, 1, 1, 90], [0.9, 0.1, 0.0, 0.6], verdict.UNDECIDED),
    ],
)
def test_planted(shapes, sinks, expected):
    assert decide(BASELINE, figures(shapes, sinks)).verdict == expected


def test_a_smaller_scale_is_no_smaller_spike():
    """A residual of a tenth at the same ratios: version 1 said that spikes go."""
    smaller = [{**one, "spike": one["spike"] / 10} for one in figures(MANY, HIGH)]
    judged = decide(BASELINE, smaller)
    assert (judged.verdict, judged.spikes, judged.version_1) == (verdict.NEITHER, "stays", verdict.SPIKES_GO)
    assert "no part of the spike moved" in judged.sentence


@pytest.mark.parametrize("part", [*SHAPES, "tokens_per_spike"])
def test_a_spike_goes_with_any_part_of_it(part):
    """In ten times the tokens as with a tenth of the magnitude."""
    measured, times = ("spike_token_share", 10) if part == "tokens_per_spike" else (part, 0.1)
    lost = [{**one, measured: times * one[measured]} for one in figures(MANY, HIGH)]
    judged = decide(BASELINE, lost)
    assert (judged.verdict, judged.spikes) == (verdict.SPIKES_GO, "falls")
    assert f"({TITLES[part]} falls; " in judged.sentence
    # A norm is none of the criteria; a tenth of what stands out within the token is 11 or more in two of four.
    left = {"norm_ratio": 4, "within_token": 2}.get(part, 0)
    assert judged.sentence.endswith(f"; {left} of 4 models have spikes by the definition), n = 4.")


def test_a_baseline_without_spikes_leaves_the_sinks():
    for broken in (
        {"spike_token_share": 3 / 16},
        {"spike_token_share": 0.0},
        {"within_token": 9.0},
        {"spike_max_over_median": 19.0},
    ):
        judged = decide([{**one, **broken} for one in BASELINE], figures(LOW, HIGH))
        assert (judged.verdict, judged.spikes, judged.sinks) == ("sinks stay", "not testable", "stays")
    assert decide(figures([5] * 4, HIGH), figures(LOW, NONE)).verdict == "sinks go"


def test_a_seed_where_nothing_spikes_has_no_number_of_spike_tokens():
    """So that they all stay cannot be said, and that one falls can."""
    nowhere = {"spike_token_share": 0.0}
    kept = [{**one, **(nowhere if seed == 2 else {})} for seed, one in enumerate(figures(MANY, HIGH))]
    assert decide(BASELINE, kept).spikes == "unclear"
    assert "tokens_per_spike" not in {effect.metric for effect in decide(BASELINE, kept).effects}
    assert decide(BASELINE, [{**one, **nowhere} for one in figures(LOW, HIGH)]).verdict == verdict.SPIKES_GO


def test_parts_count_from_1():
    """A norm ratio of 3 cannot fall to a third of itself: beyond 1, 2 falls to 0.15 to 0.35; version 3 asks for 1."""
    before = [{**one, "norm_ratio": 2.9 + 0.1 * seed} for seed, one in enumerate(BASELINE)]
    after = [{**one, "norm_ratio": 1.15 + 0.05 * seed} for seed, one in enumerate(figures(MANY, HIGH))]
    records = [record("plain", seed, **one) for seed, one in enumerate(before)]
    records += [record("dyt", seed, **one) for seed, one in enumerate(after)]
    rows = table.rows(GRID, base(), records)
    judged = {version: verdict.verdicts(rows, "plain", rules)[0] for version, rules in verdict.RULES.items()}
    effects = {version: {one.metric: one for one in it.effects} for version, it in judged.items()}
    means = {
        least: [np.mean([math.log(one["norm_ratio"] - least) for one in of]) for of in (before, after)]
        for least in (0, 1)
    }
    assert effects[3]["norm_ratio"].ratio == pytest.approx(math.exp(means[0][1] - means[0][0]), rel=1e-5)
    assert effects[4]["norm_ratio"].ratio == pytest.approx(math.exp(means[1][1] - means[1][0]), rel=1e-5)
    assert (judged[3].spikes, judged[4].spikes) == ("unclear", "falls")
    assert effects[4]["norm_ratio"].times.startswith("× 0.11 [")
    # None lies below 1; what reaches it counts as near it.
    flat = table.rows(
        GRID,
        base(),
        [*records[:4], *(record("dyt", seed, **{**one, "norm_ratio": 1.0}) for seed, one in enumerate(after))],
    )
    (effect,) = (one for one in verdict.verdicts(flat, "plain")[0].effects if one.metric == "norm_ratio")
    assert effect.ratio == pytest.approx(0.01 / math.exp(means[1][0]), rel=1e-5)


def test_sinks_are_ratio_and_importance_together():
    apart = decide(BASELINE, figures(LOW, HIGH, importances=NONE))
    assert (apart.verdict, apart.sinks) == ("spikes go", "unclear")


def test_importance_counts_from_uniform():
    """0.25 of 0.5 is half; of what lies above uniform attention at 0.24 it is nothing."""
    near = figures(LOW, [0.49, 0.46, 0.5, 0.48], importances=[0.25, 0.26, 0.25, 0.255])
    assert decide(BASELINE, near).sinks == "unclear"
    from_uniform = [[{**one, "uniform_importance": 0.24} for one in seeds] for seeds in (BASELINE, near)]
    (effect,) = (one for one in decide(*from_uniform).effects if one.metric == "first_token_importance")
    assert effect.change == "falls"


def test_a_fall_of_the_scale_needs_a_baseline_above_the_bound():
    """Normed writes of 2 x 2 blocks of 16 channels reach 8: a baseline of 20 is not well above, one of 1,100 is."""
    records = [record("plain", seed, spike=spike) for seed, spike in enumerate((20.0, 21.0, 22.0))]
    records += [record("dyt", seed, spike=1.0 + 0.01 * seed) for seed in range(3)]
    for bound, change in ((8.0, "unclear"), (None, "falls"), (7.0, "falls")):
        rows = [
            row.model_copy(update={"ceiling": bound if row.variant == "dyt" else None})
            for row in table.rows(GRID, base(), records)
        ]
        (judged,) = verdict.verdicts(rows, "plain")
        (effect,) = (one for one in judged.effects if one.metric == "spike")
        assert effect.change == change


def test_ceilings():
    spec = load_recipe("paper").model
    bounds = {
        kind: verdict.ceiling(DecoderSpec.parse({**spec.model_dump(mode="json"), "arrangement": kind}))
        for kind in ("pre", "sandwich", "sandwich_qk", "post")
    }
    assert bounds == {"pre": None, "sandwich": 512.0, "sandwich_qk": 512.0, "post": 64.0}


def test_several_variants_are_corrected_together():
    """A p of 0.02 decides alone, and not as one of five."""
    alone = table.rows(GRID, base(), _near_the_limit(["dyt"]))
    (judged,) = verdict.verdicts(alone, "plain")
    p_alone = next(one.p_falls for one in judged.effects if one.metric == "sink_ratio")
    both = verdict.verdicts(table.rows(GRID, base(), _near_the_limit(["dyt", "wide"])), "plain")
    p_both = [one.p_falls for each in both for one in each.effects if one.metric == "sink_ratio"]
    assert p_both == [pytest.approx(2 * p_alone)] * 2


def _near_the_limit(variants, sinks=(0.1, 0.2, 0.15, 0.12)):
    records = [record("plain", seed, **one) for seed, one in enumerate(BASELINE)]
    for variant in variants:
        records += [record(variant, seed, **one) for seed, one in enumerate(figures(LOW, sinks))]
    return records


def test_identical_variants_stay():
    """Of studies whose variant is the baseline, most say so at 8 seeds with the spread that nano has."""
    rng = np.random.default_rng(0)
    stays = 0
    for _ in range(60):
        logits = rng.normal(0.6, 0.5, (2, 8))
        shares = 1 / (1 + np.exp(-logits))
        cells = [figures(list(rng.lognormal(4, 0.2, 8)), list(one)) for one in shares]
        stays += decide(*cells).verdict == verdict.NEITHER
    assert stays >= 48


def test_too_few_seeds_decide_nothing():
    judged = decide(BASELINE, figures(LOW[:2], HIGH[:2]))
    assert judged.verdict == verdict.UNDECIDED
    assert "2 seeds" in judged.sentence


def test_a_baseline_without_sinks_decides_nothing():
    flat = figures(MANY, [0.04, 0.03, 0.05, 0.04])
    assert decide(flat, figures(LOW, [0.04, 0.03, 0.05, 0.04])).verdict == verdict.UNDECIDED


def test_divergence_is_a_result_and_lost_cells_are_counted():
    assert decide(BASELINE, [], lost=["diverged", "diverged"]).verdict == verdict.DIVERGED
    judged = decide(BASELINE, figures(LOW, HIGH), lost=["failed", "diverged"])
    assert judged.verdict == verdict.SPIKES_GO
    assert "1 diverged; 1 failed" in judged.sentence
    assert judged.cost == "unclear" and judged.halves == "spikes fall, sinks stay, cost unclear, 1 seed diverged"


def test_what_most_seeds_do_not_survive_decides_nothing():
    """Those that trained are a choice; a failure of the machine is none."""
    judged = decide(BASELINE, figures(LOW, HIGH), lost=["diverged"] * 4)
    assert judged.verdict == verdict.UNDECIDED and "4 of 8 seeds of dyt diverged" in judged.sentence
    assert decide(BASELINE, figures(LOW, HIGH), lost=["failed"] * 4).verdict == verdict.SPIKES_GO


@pytest.mark.parametrize(
    ("perplexities", "cost", "change"),
    [
        ([4.0, 4.02, 4.01, 4.0], "none", "stays"), ([5.0, 5.1, 4.9, 5.0], "some", "rises"),
        ([4.0, 5.0, 4.0, 4.6], "unclear", "unclear"), ([3.5, 3.4, 3.6, 3.5], "none", "falls"),
        ([4.2, 4.25, 4.15, 4.2], "unclear", "unclear"),
    ],
)  # fmt: skip
def test_cost(perplexities, cost, change):
    """The perplexity stays where it has neither fallen nor risen: above 1 / 1.05 and below 1.05."""
    judged = decide(BASELINE, figures(LOW, HIGH, perplexities=perplexities))
    (effect,) = (one for one in judged.effects if one.metric == "perplexity")
    assert (judged.cost, effect.change) == (cost, change)


def test_an_unclear_change_says_how_many_seeds_it_needs():
    """At that many, nine of ten studies with this spread decide; fewer do not. Simulated, for one variant."""
    shares = [one["sink_ratio"] for one in BASELINE], [0.6, 0.15, 0.5, 0.3]
    judged = decide(BASELINE, figures(MANY, shares[1]))
    (effect,) = (one for one in judged.effects if one.metric == "sink_ratio")
    assert effect.change == "unclear" and effect.seeds_needed
    assert effect.outcome == f"{effect.times} unclear, {effect.seeds_needed} seeds needed"
    logits = [[math.log(one / (1 - one)) for one in of] for of in shares]
    means, spread = [np.mean(of) for of in logits], np.sqrt(np.mean([np.var(of, ddof=1) for of in logits]))
    half = np.log((limit := 0.5 / (1 + np.exp(-means[0]))) / (1 - limit))
    rng = np.random.default_rng(0)
    decided = {}
    for seeds in (effect.seeds_needed // 2, effect.seeds_needed):
        draws = [rng.normal(mean, spread, (1000, seeds)) for mean in means]
        above = stats.ttest_ind(draws[1] - (half - means[0]), draws[0], axis=1, alternative="greater").pvalue
        decided[seeds] = np.mean(above <= 0.025)
    assert 0.88 <= decided[effect.seeds_needed] <= 0.95 and decided[effect.seeds_needed // 2] < 0.8


def test_no_number_of_seeds_decides_what_lies_between_the_limits():
    judged = decide(BASELINE, figures([46, 40, 55, 43], HIGH))
    (effect,) = (one for one in judged.effects if one.metric == "norm_ratio")
    assert (effect.change, effect.seeds_needed, 1 / 3 < effect.ratio < 1 / 2) == ("unclear", None, True)
    assert effect.outcome == f"{effect.times} unclear"


def test_more_variants_need_more_seeds():
    """Holm over the variants of a study."""
    needed = []
    for variants in (["dyt"], ["dyt", "wide"]):
        rows = table.rows(GRID, base(), _near_the_limit(variants, [0.6, 0.15, 0.5, 0.3]))
        (first, *_) = verdict.verdicts(rows, "plain")
        needed += [one.seeds_needed for one in first.effects if one.metric == "sink_ratio"]
    assert needed[0] < needed[1] < 2 * needed[0]


def test_version_1_against_every_resample():
    """27 x 27 equally likely resamples of three and three seeds, enumerated."""
    ours, theirs = [1.0, 2.0, 6.0], [10.0, 12.0, 20.0]
    means = [[np.mean(draw) for draw in itertools.product(values, repeat=3)] for values in (ours, theirs)]
    ratios = np.sort([one / other for one in means[0] for other in means[1]])
    effect = verdict_v1.effect("spike", ours, theirs, verdict_v1.FirstRules())
    assert effect.ratio == pytest.approx(3 / 14)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert abs(effect.low - low) <= 0.05 * low
    assert abs(effect.high - high) <= 0.05 * high
