"""Records in a notebook: the answer and a picture, hostile text as text, and nothing that runs."""

import base64
import re

import altair as alt
import pytest
from made import HOSTILE, anatomy, interventions, study, training

from spikesink.errors import InputError


def pictures(html):
    return [base64.b64decode(picture).decode() for picture in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]


def test_each_record_draws_its_key_chart():
    cases = (
        (anatomy(), 2, "▲2"),
        (interventions(), 1, "zero spikes"),
        (training(), 3, "step"),
        (study(), 1, "sandwich"),
    )
    for record, n, word in cases:
        html = record._repr_html_()
        assert len(pictures(html)) == n and all(picture.startswith("<svg") for picture in pictures(html))
        assert word in "".join(pictures(html))


def test_the_answer_stands_above():
    html = anatomy()._repr_html_()
    assert "The largest magnitude is 500 in channel 5" in html and "Not measured" not in html


def test_hostile_text_stays_text():
    html = anatomy(name=HOSTILE, text=HOSTILE)._repr_html_() + training(name=HOSTILE)._repr_html_()
    assert "<img src=x" not in html and "</script" not in html and "&lt;/script&gt;" in html
    assert all("<img" not in picture for picture in pictures(html))


def test_one_chart_is_taken_by_its_name_with_its_data():
    record = anatomy()
    chart = record.chart("lifecycle_residual")
    assert isinstance(chart, alt.Chart | alt.LayerChart) and "▲2" in str(chart.to_dict())
    assert record.chart("lifecycle").to_dict() == chart.to_dict()
    with pytest.raises(InputError, match="No chart called 'lifecicle'; did you mean 'lifecycle"):
        record.chart("lifecicle")


def test_a_section_draws_itself():
    html = anatomy().sinks._repr_html_()
    assert "<table>" in html and "sink rate" in html
