"""What a study says about the paper's claims: who can speak for one, the pattern expected, and its decided opposite.

Sun et al. 2026; section 0 of the study's plan. "Contradicted" needs an opposite that was decided, never a lack of
support; an unclear cost speaks neither way. Claims 2 and 3 are judged by what cells measured of their own models, under
rules of 26 November 2026, when two cells had been looked at; docs/study.md states them.
"""

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from spikesink.records.intervals import to_three_digits
from spikesink.records.interventions import UNREAD
from spikesink.records.study import SIDES, CellFunction, CellRecord, ClaimVerdict, Side, VariantVerdict, local_sided
from spikesink.zoo.choice import Choice

Quantity = Literal["spikes", "sinks", "cost"]
Expected = Literal["fall", "stay", "rise", "none"]
OPPOSITES = {"fall": ("stays", "rises"), "stay": ("falls",), "rise": ("falls",), "none": ("some",)}
MEETS = {"fall": ("falls",), "stay": ("stays", "rises"), "rise": ("rises",), "none": ("none",)}


class Claim(Choice):
    """A claim as a pattern of change, and the variants of a grid that can speak for it."""

    claim: Literal[1, 2, 3, 4] | None = None
    part: str | None = None
    text: str
    speak: list[str] = Field(min_length=1)
    expect: dict[Quantity, Expected] = Field(min_length=1)
    against: list[dict[Quantity, Expected]] = Field(default_factory=list)
    """Patterns that contradict; nothing: any quantity that does the opposite of what is expected of it."""
    one_is_enough: bool = False
    """The claim says that it can be done: one variant supports it, and only all that speak can contradict it."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        """The paper's own claims are spelled once, here; a grid names who speaks."""
        if not isinstance(content, dict):
            return content
        return {**MAIN.get((content.get("claim"), content.get("part")), {}), **content}


MAIN: dict[tuple[Any, Any], dict[str, Any]] = {
    (1, None): {
        "text": "Spikes and sinks meet because of the pre-norm design, not by necessity.",
        "expect": {"spikes": "fall", "sinks": "stay"},
        "against": [{"spikes": "stay", "sinks": "stay"}, {"spikes": "fall", "sinks": "fall"}],
    },
    (4, "spikes"): {
        "text": "Spikes can be suppressed alone at no cost in perplexity.",
        "expect": {"spikes": "fall", "sinks": "stay", "cost": "none"},
        "one_is_enough": True,
    },
    (4, "sinks"): {
        "text": "Sinks can be suppressed alone at no cost in perplexity.",
        "expect": {"sinks": "fall", "spikes": "stay", "cost": "none"},
        "one_is_enough": True,
    },
}
ELSEWHERE: dict[tuple[int, str | None], tuple[str, str]] = {
    (2, None): (
        "Spikes act globally: near-constant vectors, the same for every prompt.",
        "An intervention tests this: `spikesink intervene` on a cell's model.",
    ),
    (3, None): (
        "Sinks act locally: they turn heads down and keep them short-sighted.",
        "`spikesink scan --measure heads` and `spikesink intervene` test this.",
    ),
}


def claims(tested: list[Claim], verdicts: list[VariantVerdict]) -> list[ClaimVerdict]:
    """The paper's claims in their order, then what this study alone is about."""
    own = {(claim.claim, claim.part): claim for claim in tested if claim.claim is not None}
    answers = []
    asked: tuple[tuple[int, str | None], ...] = ((1, None), (2, None), (3, None), (4, "spikes"), (4, "sinks"))
    for key in asked:
        if key in own:
            answers.append(_judged(own[key], verdicts))
        else:
            unspoken = (str(MAIN.get(key, {}).get("text")), "No variant of this study speaks for it.")
            text, why = ELSEWHERE.get(key, unspoken)
            answers.append(ClaimVerdict(claim=key[0], part=key[1], text=text, verdict="not tested", evidence=why))
    return answers + [_judged(claim, verdicts) for claim in tested if claim.claim is None]


def _judged(claim: Claim, verdicts: list[VariantVerdict]) -> ClaimVerdict:
    speaking = [row for row in verdicts if row.variant in claim.speak]
    sides: dict[str, Side] = {row.variant: _side(row, claim) for row in speaking}
    evidence = []
    for which, title in SIDES.items():
        by_halves: dict[str, list[str]] = {}
        for row in speaking:
            if sides[row.variant] == which:
                by_halves.setdefault("" if which == "nothing" else f" ({row.halves})", []).append(row.variant)
        evidence += [f"{title}: {', '.join(variants)}{halves}." for halves, variants in by_halves.items()]
    return ClaimVerdict(
        claim=claim.claim, part=claim.part, text=claim.text, speak=sides,
        verdict=_from_sides(claim, Counter(sides.values())),
        evidence=" ".join(evidence) or f"None of {', '.join(claim.speak)} has finished.",
    )  # fmt: skip


def _side(row: VariantVerdict, claim: Claim) -> Side:
    """What is expected of spikes says nothing where the baseline has none."""
    if "spikes" in claim.expect and row.spikes == "not testable":
        return "nothing"
    return "for" if _shows(row, claim.expect) else "against" if _opposes(row, claim) else "nothing"


def _from_sides(
    claim: Claim, counts: Counter[Side]
) -> Literal["supported", "contradicted", "mixed", "undecided", "not tested"]:
    speaking, meeting, opposing = counts.total(), counts["for"], counts["against"]
    if not speaking:
        return "not tested"
    if claim.one_is_enough:
        return "supported" if meeting else "contradicted" if opposing == speaking == len(claim.speak) else "undecided"
    if meeting and opposing:
        return "mixed"
    return "supported" if meeting else "contradicted" if opposing else "undecided"


def _opposes(change: VariantVerdict, claim: Claim) -> bool:
    if claim.against:
        return any(_shows(change, pattern) for pattern in claim.against)
    return any(getattr(change, quantity) in OPPOSITES[expected] for quantity, expected in claim.expect.items())


def _shows(change: VariantVerdict, pattern: dict[Quantity, Expected]) -> bool:
    return all(getattr(change, quantity) in MEETS[expected] for quantity, expected in pattern.items())


@dataclass(frozen=True)
class FunctionRules:
    """Thresholds of claims 2 and 3; costs in nats are those of the verdict of `intervene`."""

    free_max: float = 0.03
    """One constant is free where its interval lies below."""
    costly_min: float = 0.1
    """A cost where the interval lies above."""
    same_context_max: float = 0.5
    """A model of whose spike tokens more are one token behind the same ones is not asked."""
    function_seeds_min: int = 3
    function_confidence: float = 0.95


@dataclass(frozen=True)
class SeedInterval:
    """Mean over seeds with Student's t."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{to_three_digits(self.mean)} [{to_three_digits(self.low)}, {to_three_digits(self.high)}]"


def judged(
    claims: list[ClaimVerdict], baseline: list[CellRecord], rules: FunctionRules, *, spikes: bool = True
) -> list[ClaimVerdict]:
    """The claims of a study with 2 and 3 judged by its baseline's cells, where these have measured them."""
    cells = [cell.function for cell in baseline if cell.function is not None]
    if not cells:
        return claims
    own = {2: _constant(cells, rules), 3: _local(cells, rules)}
    if not spikes:
        own[2] = ("not tested", f"The baseline has no spikes by the definition. {own[2][1]}", None)
    return [
        claim.model_copy(update=dict(zip(("verdict", "evidence", "n"), own[claim.claim], strict=True)))
        if claim.claim in own
        else claim
        for claim in claims
    ]


def over_seeds(cells: list[CellFunction], name: str, rules: FunctionRules) -> SeedInterval | None:
    """None where fewer cells have it than decide."""
    # Here, since a list of studies reads their claims too.
    from scipy import stats

    values = [value for cell in cells if (value := getattr(cell, name)) is not None]
    if len(values) < rules.function_seeds_min:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + rules.function_confidence) / 2, len(values) - 1)) * error
    low, high = mean - half, mean + half
    if name in CORRELATIONS:
        low, high = max(low, -1.0), min(high, 1.0)
    return SeedInterval(mean, low, high, len(values))


CORRELATIONS = ("write_with_mass", "distance_with_mass")
"""Their mean lies between -1 and 1, and the interval of it no farther."""
COSTS = ("freeze_nats", "zero_nats", "random_constant_nats")


def _constant(cells: list[CellFunction], rules: FunctionRules) -> tuple[Any, str, int | None]:
    """One constant must be free, no state at all costly, and another constant of its size worse."""
    every = [over_seeds(cells, name, rules) for name in COSTS]
    if None in every:
        return "not tested", _too_few({cell.spikes_missing for cell in cells}, rules), None
    why = [_not_asked(cell, rules) for cell in cells]
    asked = [cell for cell, reason in zip(cells, why, strict=True) if reason is None]
    freeze, zero, random = (over_seeds(asked, name, rules) for name in COSTS)
    if freeze is None or zero is None or random is None:
        reasons = "; ".join(f"in {n} {reason}" for reason, n in Counter(filter(None, why)).items())
        few = f"Fewer than {rules.function_seeds_min} of {len(cells)} models can be asked: {reasons}."
        return "not tested", f"{few} {_in_words(*every)}", None
    evidence = _in_words(freeze, zero, random)
    if freeze.high <= rules.free_max and zero.low >= rules.costly_min and random.low > freeze.high:
        return "supported", evidence, freeze.n
    # Not needed at all, or not replaceable: either way no constant that the model lives on.
    against = zero.high < rules.free_max or freeze.low > rules.costly_min
    return ("contradicted" if against else "undecided"), evidence, freeze.n


def _too_few(missing: set[str | None], rules: FunctionRules) -> str:
    reasons = "; ".join(sorted(filter(None, missing)))
    return f"Fewer than {rules.function_seeds_min} models have it ({reasons or 'seeds'})."


def _not_asked(cell: CellFunction, rules: FunctionRules) -> str | None:
    """Why the model says nothing about a constant in place of its spikes; None where it does."""
    if cell.attention_behind == 0:
        return UNREAD
    if cell.same_context is not None and cell.same_context > rules.same_context_max:
        return "most spike tokens are one token behind the same ones (BOS), whose state is one constant in any model"
    unknown = cell.attention_behind is None or cell.same_context is None
    return "it is not known whether either is so" if unknown else None


def _in_words(freeze: SeedInterval | None, zero: SeedInterval | None, random: SeedInterval | None) -> str:
    n = f" (n = {freeze.n})" if freeze else ""
    return (
        f"In place of every spike token's state one constant costs {freeze} nats, zero {zero} and a random constant "
        f"{random}{n}."
    )


def _local(cells: list[CellFunction], rules: FunctionRules) -> tuple[Any, str, int | None]:
    """Where the sink takes more a head writes less, and what sink heads look at besides lies nearer than by chance, and
    not the farther, the more a head's sink takes."""
    write, reach = (over_seeds(cells, name, rules) for name in ("write_with_mass", "sink_head_distance"))
    if write is None or reach is None:
        return "not tested", _too_few({cell.sinks_missing for cell in cells}, rules), None
    evidence = (
        f"Within heads, sink mass and norm of the write correlate at {write}. With the sink taken out, sink heads look "
        f"{str(reach).replace('+', '')} as far as uniform attention does"
    )
    further = over_seeds(cells, "distance_with_mass", rules)
    if further is None:
        return "undecided", f"{evidence} (n = {write.n}); heads without a sink were not compared.", write.n
    evidence += f"; within layers, sink mass and that distance have rank correlation {further} (n = {write.n})."
    return local_sided(write, reach, further), evidence, write.n
