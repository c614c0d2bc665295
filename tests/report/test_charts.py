"""Charts: their rows are the record's numbers, every field they draw is in their rows, and Vega-Lite takes them."""

import json
import re

import altair as alt
import numpy as np
import pytest
from made import anatomy, interventions, study, training

from spikesink.report.build import record_document
from spikesink.report.compare import compare_figures, steps_of
from spikesink.report.drawing import PALETTE, ROWS, colours, dashes
from spikesink.report.format import number
from spikesink.report.page import TEMPLATES
from spikesink.report.sinks import importance_rows
from spikesink.report.study_figures import study_figures
from spikesink.report.training import training_figures
from spikesink.report.write import drawn

SIZES = {f"{family}_x{size}": (size * 300.0, 0.1 * size) for family in ("pre", "post") for size in (1, 2, 4)}


def figures_of(record):
    return record_document(record).figures()


def every_figure():
    named = [("checkpoint-100", anatomy()), ("checkpoint-200", anatomy(layers=4, spikes=False))]
    return [
        *figures_of(anatomy()),
        *figures_of(interventions()),
        *training_figures([("a", training())]),
        *training_figures([("a", training()), ("b", training(end=1.2))]),
        *compare_figures(named, steps_of([name for name, _ in named])),
        *study_figures(study()),
        *study_figures(study("sizes", SIZES, {name: 1000 * int(name[-1]) for name in SIZES})),
    ]


FIGURES = every_figure()


def by_name(figures):
    return {figure.name: figure for figure in figures}


def drawn_fields(part, own=False):
    """Fields of the encodings of layers that have no data of their own."""
    if isinstance(part, list):
        return {field for item in part for field in drawn_fields(item)}
    if not isinstance(part, dict) or part.get("data", {"name": ROWS}) != {"name": ROWS}:
        return set()
    here = {part["field"]} if "field" in part and "type" in part else set()
    return here | {field for key, item in part.items() if key != "params" for field in drawn_fields(item)}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_chart_is_whole(figure):
    alt.Chart.from_dict(figure.with_rows())  # validated against the schema of Vega-Lite
    assert figure.rows, "a chart without data is none"
    columns = {name for row in figure.rows for name in row}
    missing = drawn_fields(figure.spec()) - columns
    assert not missing, f"drawn but not in the data: {missing}"
    assert figure.caption.endswith(".") and figure.alternative.endswith(".") and figure.title
    assert "tokens" in figure.conditions or "made up" in figure.conditions, "a chart says under which conditions"
    assert ROWS not in figure.spec().get("datasets", {}), "the rows stand beside the specification"


ONCE = list({figure.name: figure for figure in FIGURES if "sizes" not in figure.name}.values())


@pytest.mark.parametrize("figure", ONCE, ids=lambda figure: figure.name)
def test_a_chart_draws_its_rows(figure):
    """Marks as the picture has them: every layer that has data of its own, and one or more for the rows."""
    marks = re.findall(r'class="mark-\w+ role-mark[^>]*>(.*?)</g>', drawn(figure, "svg").decode())
    names = json.dumps(figure.with_rows()).count('"data": {"name": "rows"}')
    assert names >= 1 and sum(any(tag in mark for tag in ("<path", "<text", "<line")) for mark in marks) >= names
    assert "undefined" not in "".join(marks) and "NaN" not in "".join(marks)


def test_all_measures_have_their_charts():
    names = {figure.name for figure in FIGURES}
    assert names >= {
        "lifecycle_residual",
        "lifecycle_write",
        "lifecycle_shares",
        "sink_map",
        "head_importance",
        "amplifier_norms",
        "amplifier_spectra",
        "norm_cosine",
        "norm_energy",
        "norm_persistence",
        "vocabulary_probe",
        "first_token_direction",
        "plane_sink_head",
        "plane_other_head",
        "logit_gap",
        "key_ranks",
        "sink_distance",
        "sink_writes",
        "interventions_cost",
        "interventions_plane",
        "quantisation_sites",
        "quantisation_blocks",
        "kv_cache",
        "training_loss",
        "training_sink_ratio",
        "compare_lifecycle",
        "compare_sinks",
        "compare_plane",
        "compare_steps",
    }


def test_the_rows_are_the_records_numbers():
    record = anatomy(layers=3)
    figures = by_name(figures_of(record))
    largest = {
        row["block"]: row["magnitude"] for row in figures["lifecycle_residual"].rows if row["which"] == "largest"
    }
    assert largest == {1: 3.0, 2: 500.0, 3: 500.0, 4: 500.0, 5: 500.0, 6: 3.0}
    second = {row["block"]: row["magnitude"] for row in figures["lifecycle_write"].rows if row["which"] == "second"}
    assert second == {1: 0.5, 2: 240.0, 3: 0.5, 4: 0.5, 5: 0.5, 6: 240.0}
    sinks = {(row["block"], row["head"]): row["sink"] for row in figures["sink_map"].rows}
    assert sinks == {(block, head): "yes" if head else "no" for block in (1, 3, 5) for head in (0, 1)}
    outlier = next(row for row in figures["amplifier_norms"].rows if row["block"] == 2)
    assert (outlier["largest"], outlier["channel"]) == (40.0, 5)
    probe = figures["vocabulary_probe"].rows
    assert sum(row["items"] for row in probe if row["place"].startswith("alone")) == 50
    assert sum(row["items"] for row in probe if row["place"].startswith("later")) == 50


def test_a_study_has_every_seed_its_means_and_the_papers_numbers():
    figures = by_name(study_figures(study()))
    plane = figures["study_made_nano_plane"].rows
    assert [(row["variant"], row["seed"]) for row in plane][:4] == [
        ("baseline", 0),
        ("baseline", 1),
        ("baseline", 2),
        ("sandwich", 0),
    ]
    assert [row["sink_ratio"] for row in plane[:3]] == pytest.approx([0.4, 0.44, 0.48])
    paper = figures["study_made_nano_paper_spike"].rows
    ours = next(row for row in paper if row["variant"] == "gate")
    assert (ours["value"], ours["low"], ours["high"]) == pytest.approx((935.0, 850.0, 1020.0))
    assert [row["value"] for row in paper if row["source"].startswith("paper")] == [3818, 3818]
    curve = figures["study_made_nano_curve_loss_nats"].rows
    last = next(row for row in curve if row["variant"] == "baseline" and row["step"] == 100)
    assert (last["low"], last["value"], last["high"], last["seeds"]) == (2, 3, 4, 3)
    assert not any("scaling" in name for name in figures), "one size scales nothing"


def test_scaling_goes_over_parameters_by_family():
    figures = by_name(study_figures(study("sizes", SIZES, {name: 1000 * int(name[-1]) for name in SIZES})))
    rows = figures["study_sizes_nano_scaling_spike"].rows
    assert {(row["family"], row["parameters"]) for row in rows} == {
        (family, 1000 * size) for family in ("pre", "post") for size in (1, 2, 4)
    }
    assert len(rows) == 6 * 3


def test_a_study_without_a_finished_run_has_no_charts():
    assert study_figures(study(seeds=0)) == []


def test_a_papers_map_has_no_picked_head():
    figure = by_name(figures_of(anatomy()))["sink_map"]
    assert [param["value"] for param in figure.spec()["params"]] == ["1-1"]
    assert [param["value"] for param in figure.with_rows()["params"]] == [None]


def test_importance_of_a_head_is_that_heads():
    rows = importance_rows(anatomy(), block=3, head=1)
    assert [row["importance"] for row in rows] == pytest.approx([0.1, 0.7, 0.01, 0.01, 0.01, 0.01], abs=1e-6)


def test_costs_keep_their_order_and_controls_their_kind():
    rows = by_name(figures_of(interventions()))["interventions_cost"].rows
    assert [(row["name"], row["cost"]) for row in rows] == [
        ("zero spikes", 11.3),
        ("zero spikes / random tokens", 0.02),
        ("freeze spikes", -0.0005),
        ("mask sinks", 1.25),
    ]
    assert [row["kind"] for row in rows].count("control of the same size") == 1
    assert (rows[0]["cost_low"], rows[0]["cost_high"]) == pytest.approx((11.29, 11.31))


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", PALETTE)
@pytest.mark.parametrize("ground", ["#ffffff", "#12161d"])
def test_colours_stand_out_from_both_grounds(colour, ground):
    """3 : 1, what WCAG 2.2 asks of graphics (1.4.11)."""
    dark, light = sorted((luminance(colour), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 3
    assert ground in (TEMPLATES / "page.css").read_text()


def test_no_two_names_look_the_same():
    names = [f"name {index}" for index in range(20)]
    looks = list(zip(colours(names).range, map(tuple, dashes(names).range), strict=True))
    assert len(set(looks)) == 20


def test_steps_are_read_from_names():
    assert steps_of(["nano/checkpoint-500", "nano/checkpoint-1000"]) == [500, 1000]
    assert steps_of(["a-step_5", "b"]) is None and steps_of(["checkpoint-5", "checkpoint-5"]) is None
    assert steps_of(["checkpoint-5"]) is None


def test_a_measure_that_does_not_apply_has_no_chart():
    record = anatomy(measures=())
    content = record.model_dump() | {"heads": {"applicable": False, "reason": "made so"}, "arrays": record.arrays}
    names = {figure.name for figure in figures_of(type(record).model_validate(content))}
    assert names == {"lifecycle_residual", "lifecycle_write", "lifecycle_shares", "sink_map", "head_importance"}


@pytest.mark.parametrize("count", [1, 399, 400, 401, 1200, 12_001])
def test_a_long_curve_keeps_its_last_point(count):
    """At most some points more are drawn than asked for, evenly; the caption's end is the record's."""
    run = training()
    name = "spikesink/spike"
    arrays = {**run.arrays, name: np.arange(count) + 1.0, f"{name}.step": 10 * np.arange(count)}
    longer = training_figures([("a", run.model_copy(update={"arrays": arrays}))])
    figure = by_name(longer)["training_spike"]
    steps = [row["step"] for row in figure.rows]
    assert steps[-1] == 10 * (count - 1) and len(steps) <= 400
    assert len(set(np.diff(steps))) <= 1
    assert f"over {10 * (count - 1):,} steps" in figure.alternative
    assert figure.caption == f"At the end: a {number(float(count))}."
