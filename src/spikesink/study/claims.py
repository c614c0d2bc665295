"""What a study says about the paper's claims: who can speak for one, the pattern expected, and its decided opposite.

Sun et al. 2026; section 0 of the study's plan. "Contradicted" needs an opposite that was decided, never a lack of
support; an unclear cost speaks neither way.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from spikesink.records.study import ClaimVerdict, VariantVerdict
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
    meeting = [row for row in speaking if _shows(row, claim.expect)]
    opposing = [row for row in speaking if _opposes(row, claim)]
    verdict = _from_counts(claim, len(speaking), len(meeting), len(opposing))
    evidence = [f"For: {_briefly(row)}." for row in meeting] + [f"Against: {_briefly(row)}." for row in opposing]
    silent = [row.variant for row in speaking if row not in meeting and row not in opposing]
    if silent:
        evidence.append(f"Decides nothing: {', '.join(silent)}.")
    return ClaimVerdict(
        claim=claim.claim, part=claim.part, text=claim.text, verdict=verdict,
        evidence=" ".join(evidence) or f"None of {', '.join(claim.speak)} has finished.",
    )  # fmt: skip


def _from_counts(
    claim: Claim, speaking: int, meeting: int, opposing: int
) -> Literal["supported", "contradicted", "mixed", "undecided", "not tested"]:
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


def _briefly(change: VariantVerdict) -> str:
    cost = {"none": "no cost", "some": "a cost in perplexity"}.get(change.cost or "", "cost unclear")
    return f"{change.variant} (spikes {change.spikes}, sinks {change.sinks}, {cost})"
