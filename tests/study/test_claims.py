"""The paper's tables in, the paper's conclusions out; and that a contradiction is a decided opposite, nothing less."""

import json
from pathlib import Path

import pytest
from study_cases import GRID

from spikesink.errors import InputError
from spikesink.records.study import VariantRow, VariantVerdict
from spikesink.study.claims import Claim, claims
from spikesink.study.grid import Grid, load_grid, variant_recipe
from spikesink.study.verdict import ceiling, verdicts
from spikesink.train.recipe import load_recipe

PAPER = json.loads((Path(__file__).parent / "paper_tables.json").read_text())["studies"]
SEEDS = [0, 1, 2]


def paper_rows(study):
    """The paper's figures as three equal seeds of its own preset."""
    _, grid = load_grid(study)
    base = load_recipe("paper")
    return grid, [
        VariantRow(
            variant=variant, summary="", changes=[], seeds=SEEDS, diverged=0, failed=0, parameters=None, tokens=1,
            measured={}, paper=None, ceiling=ceiling(variant_recipe(base, grid.variants[variant]).model),
            values={
                "perplexity": [perplexity] * 3, "sink_ratio": [sinks / 100] * 3, "spike": [spike] * 3,
                "has_spikes": [1.0] * 3,
            },
        )
        for variant, (perplexity, sinks, spike) in PAPER[study].items()
    ]  # fmt: skip


@pytest.mark.parametrize("study", PAPER)
def test_the_grid_has_the_papers_figures(study):
    _, grid = load_grid(study)
    of_grid = {
        name: [variant.paper.perplexity, round(100 * variant.paper.sink_ratio, 6), variant.paper.spike]
        for name, variant in grid.variants.items()
        if variant.paper
    }
    assert of_grid == PAPER[study]


CONCLUSIONS = {
    "normalisation": {"Claim 1": "supported", "Claim 4 (spikes)": "supported", "sinks stay.": "supported"},
    "context": {
        "Claim 4 (sinks)": "supported",
        "sinks go, and spikes do not": "supported",
        "loss sinks go.": "supported",
    },
    "gating": {"take the sinks' place, per head": "supported", "do not take the sinks' place": "supported"},
    "heads": {"Narrow heads do not sink": "supported", "With fewer heads": "supported"},
    "optimisation": {"Without weight decay": "supported"},
    "ffn": {"Sinks need no gated": "supported", "Spikes need no gate": "supported"},
}


@pytest.mark.parametrize("study", PAPER)
def test_the_papers_conclusions(study):
    grid, rows = paper_rows(study)
    judged = claims(grid.claims, verdicts(rows, grid.baseline))
    expected = CONCLUSIONS[study]
    for claim in judged:
        known = [verdict for start, verdict in expected.items() if claim.title == start or start in claim.text]
        assert claim.verdict == (known[0] if known else "not tested"), claim
    assert sum(claim.verdict == "supported" for claim in judged) == len(expected)


def test_the_papers_variants():
    grid, rows = paper_rows("normalisation")
    assert {row.variant: row.verdict for row in verdicts(rows, grid.baseline)} == {
        "sandwich": "spikes go, sinks stay", "sandwich_qk": "spikes go, sinks stay",
        "dynamic_tanh": "spikes go, sinks stay",
    }  # fmt: skip
    grid, rows = paper_rows("gating")
    row = {row.variant: row.verdict for row in verdicts(rows, grid.baseline)}
    assert (row["conditional_channel"], row["conditional_head"]) == ("both go", "both go")


def said(variant, spikes, sinks, cost="none"):
    return VariantVerdict(
        variant=variant, verdict="", sentence="", effects=[], spikes=spikes, sinks=sinks, cost=cost
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([said("a", "falls", "stays"), said("b", "unclear", "stays")], "supported"),
        ([said("a", "stays", "stays"), said("b", "unclear", "stays")], "contradicted"),
        ([said("a", "falls", "falls")], "contradicted"),
        # Decoupled the other way: neither what is claimed nor its opposite.
        ([said("a", "stays", "falls")], "undecided"),
        ([said("a", "not testable", "stays"), said("b", "falls", "unclear")], "undecided"),
        ([said("a", "falls", "stays"), said("b", "stays", "stays")], "mixed"),
        ([said("pre", "falls", "stays")], "not tested"),
    ],
)
def test_claim_1(row, expected):
    (claim, *_) = claims([Claim.parse({"claim": 1, "speak": ["a", "b"]})], row)
    assert claim.verdict == expected


def test_who_says_what_of_a_claim():
    """Variants that show the same stand together; names are kept beside the words."""
    row = [said("a", "falls", "stays"), said("b", "falls", "stays"), said("c", "falls", "rises", "some"),
           said("d", "stays", "stays"), said("e", "unclear", "stays"), said("other", "falls", "stays")]  # fmt: skip
    (claim, *_) = claims([Claim.parse({"claim": 1, "speak": list("abcdef")})], row)
    assert claim.speak == {"a": "for", "b": "for", "c": "for", "d": "against", "e": "nothing"}
    assert claim.evidence == (
        "For: a, b (spikes fall, sinks stay, no cost). For: c (spikes fall, sinks rise, a cost in perplexity). "
        "Against: d (spikes stay, sinks stay, no cost). Decides nothing: e."
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([said("a", "falls", "stays", "none"), said("b", "falls", "stays", "some")], "supported"),
        ([said("a", "falls", "stays", "unclear"), said("b", "falls", "stays", "some")], "undecided"),
        ([said("a", "falls", "stays", "some"), said("b", "falls", "falls", "none")], "contradicted"),
        # That it can be done is not contradicted by one that did not run.
        ([said("a", "falls", "stays", "some")], "undecided"),
    ],
)
def test_that_it_can_be_done(row, expected):
    (claim,) = (
        claim
        for claim in claims([Claim.parse({"claim": 4, "part": "spikes", "speak": ["a", "b"]})], row)
        if claim.title == "Claim 4 (spikes)"
    )
    assert claim.verdict == expected


def test_speakers_must_exist():
    content = GRID.model_dump(mode="json") | {"claims": [{"claim": 1, "speak": ["plain"]}]}
    with pytest.raises(InputError, match="'plain' speaks for a claim"):
        Grid.parse(content)
