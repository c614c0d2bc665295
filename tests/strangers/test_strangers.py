"""Every causal-LM architecture of the installed transformers is verified or refused, and none is lost again.

The whole survey is `make families`; here a sample of it runs, and the generated files are held to what they say.
"""

import pytest
import survey
import transformers
from families_table import RESULTS, TABLE, counts_line, lost_families, page, read_results
from shrink import NotBuiltError, build, causal_types
from survey import try_family

EVERY = 7
"""One family in so many is tried again."""
ROWS = read_results().get(transformers.__version__, [])


def test_every_architecture_was_tried():
    assert RESULTS.exists(), "run make families"
    tried = [row["model_type"] for row in ROWS]
    assert tried == causal_types(), "transformers has other architectures now: run make families"
    print(counts_line(ROWS))


@pytest.mark.parametrize("rows", read_results().values(), ids=read_results())
def test_none_is_wrong_in_silence(rows):
    assert [row["model_type"] for row in rows if row["status"] == "wrong"] == []
    for row in rows:
        assert row["status"] in ("verified", "refused", "not built")
        assert (row["reason"] is None) == (row["status"] == "verified")
        if row["status"] == "verified":
            assert "perplexity" in row["naive"] and "residuals" in row["naive"], row["model_type"]
            assert row["anatomy"][0].isdigit(), row["anatomy"]


def test_the_page_is_what_the_results_say():
    assert TABLE.read_text() == page(read_results())


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["status"] == "verified"][::EVERY], ids=lambda r: r["model_type"]
)
def test_what_was_verified_still_is(row):
    now = try_family(row["model_type"], anatomy=False)
    assert now["status"] == "verified", now["reason"]
    assert now["naive"] == row["naive"]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["status"] == "refused"][::EVERY], ids=lambda r: r["model_type"]
)
def test_what_was_refused_is_refused_with_its_reason(row):
    """One that is verified now is good news, and for `make families` to write down."""
    now = try_family(row["model_type"], anatomy=False)
    assert now["status"] == "refused"
    assert now["reason"].split(";")[0][:60] == row["reason"].split(";")[0][:60]


def test_a_family_that_is_lost_is_named():
    before = [{"model_type": name, "status": "verified"} for name in ("a", "b", "c")]
    now = [{"model_type": "a", "status": "verified"}, {"model_type": "b", "status": "refused"}]
    assert lost_families(before, now) == ["b", "c"]
    assert lost_families(now, before) == []


def test_the_survey_can_find_something_wrong(monkeypatch):
    """The controls: a naive reference that says something else, and a crash where a refusal was due."""
    honest = survey.sink_numbers
    monkeypatch.setattr(survey, "sink_numbers", lambda *given: {n: v + 0.1 for n, v in honest(*given).items()})
    row = try_family("llama", anatomy=False)
    assert row["status"] == "wrong"
    assert "sink ratio sun2026" in row["reason"]

    def crash(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(survey, "access", crash)
    (row,) = survey.survey(["llama"], shown=lambda _row: None)
    assert row["status"] == "wrong"
    assert "ZeroDivisionError at test_strangers.py" in row["reason"]


def test_a_process_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(survey, "try_family", lambda *_args, **_options: __import__("os")._exit(7))
    (row,) = survey.survey(["llama"], shown=lambda _row: None)
    assert row["status"] == "not built"
    assert "its process died" in row["reason"]


def test_what_cannot_be_built_says_why():
    with pytest.raises(NotBuiltError, match=r"\w+Error: "):
        build("reformer")
