"""Records as data frames, two records held against each other, charts one by one."""

from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from spikesink import records
from spikesink.errors import InputError
from spikesink.records import base
from spikesink.records.base import Frozen, JsonRecord, Record, Section, data_frame
from spikesink.records.interventions import Interventions
from spikesink.records.study import CellRecord, StudyRecord
from spikesink.records.survey import ModelRows, SurveyRecord
from spikesink.records.training import GraftRecord


class Row(Frozen):
    head: int
    span: dict[str, float]


class Part(Section):
    median: float
    rows: tuple[Row, ...] = ()
    others: tuple[Row, ...] = ()


class Result(JsonRecord):
    command = "nothing"
    parts: list[int]
    value: float
    timing: dict[str, float] | None = None


ROWS = [Row(head=head, span={"low": head / 2, "high": head * 2}) for head in (3, 5)]


def test_rows_become_a_frame_with_dotted_columns():
    frame = Part(median=0.25, rows=tuple(ROWS)).to_dataframe()
    assert frame.to_dict("records") == [
        {"head": 3, "span.low": 1.5, "span.high": 6.0},
        {"head": 5, "span.low": 2.5, "span.high": 10.0},
    ]


def test_a_list_of_nothing_is_a_frame_of_nothing():
    assert len(Part(median=0.25).to_dataframe("rows")) == 0


def test_values_alone_are_one_row():
    assert ROWS[1].to_dataframe().to_dict("records") == [{"head": 5, "span.low": 2.5, "span.high": 10.0}]


def test_of_several_lists_one_is_named():
    part = Part(median=0.25, rows=tuple(ROWS), others=tuple(ROWS[:1]))
    assert len(part.to_dataframe("others")) == 1
    with pytest.raises(InputError, match="several lists of rows here: rows, others"):
        part.to_dataframe()
    with pytest.raises(InputError, match="No rows called 'row'; did you mean 'rows'"):
        part.to_dataframe("row")


class Whole(Part):
    main = "others"


def test_where_none_is_named_the_main_list_is_meant():
    whole = Whole(median=0.25, rows=tuple(ROWS), others=tuple(ROWS[1:]))
    assert whole.to_dataframe()["head"].tolist() == [5] and len(whole.to_dataframe("rows")) == 2


@pytest.mark.parametrize(
    "kind", [records.Anatomy, Interventions, records.TrainingRun, records.VerificationRecord, GraftRecord, CellRecord,
             StudyRecord, ModelRows, SurveyRecord]
)  # fmt: skip
def test_every_record_is_a_frame_without_a_name(kind: type[Record | JsonRecord]):
    types = {name: field.annotation for name, field in kind.model_fields.items()}
    inner = {name: get_args(of)[0] for name, of in types.items() if get_origin(of) is list}
    lists = [name for name, of in inner.items() if isinstance(of, type) and issubclass(of, BaseModel)]
    assert len(lists) < 2 or kind.main in lists


def test_polars_takes_what_differs_from_row_to_row(monkeypatch):
    pytest.importorskip("polars", reason="polars is an alternative to pandas")
    monkeypatch.setattr(base, "find_spec", lambda name: name == "polars" or None)
    rows = [{"count": 1, "error": None}] * 150 + [{"count": 1.5, "error": "why", "more": [2]}]
    assert data_frame(rows).row(150) == (1.5, "why", [2])


def test_differences_name_the_place_and_leave_timing_out():
    one = Result(parts=[1, 2, 3], value=0.5, timing={"total_s": 1.0})
    other = Result(parts=[1, 7], value=0.75, timing={"total_s": 2.0})
    rows = one.diff(other).astype(object).where(lambda frame: frame.notna(), None).to_dict("records")
    assert rows == [
        {"where": "parts.1", "one": 2, "other": 7, "difference": 5},
        {"where": "parts.2", "one": 3, "other": None, "difference": None},
        {"where": "value", "one": 0.5, "other": 0.75, "difference": 0.25},
    ]
    assert one.diff(one).empty
    with pytest.raises(InputError, match="Got Result and Row; expected two records of the same kind"):
        one.diff(ROWS[0])
