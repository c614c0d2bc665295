"""What the document says in places: advice, rules, verdicts, equations, blocks; and how a terminal takes it."""

import io
import re
from pathlib import Path

import pytest
from made import anatomy, interventions, study
from rich.console import Console

from spikesink.records import Provenance
from spikesink.records.intervals import Estimate
from spikesink.records.study import StudyRecord
from spikesink.report import write_page
from spikesink.report.build import record_document
from spikesink.report.conditions import sentence
from spikesink.report.document import Merit, Part, Table
from spikesink.report.model import fields_part
from spikesink.report.page import EQUATIONS, mathematics
from spikesink.report.terminal import print_record


def statement(record, heading):
    return next(item for item in record_document(record).statements if item.heading == heading)


def with_modules(record):
    blocks = [
        cycle.model_copy(update={"module": f"model.layers.{(cycle.block - 1) // 2}.{cycle.kind}"})
        for cycle in record.lifecycle.blocks
    ]
    return record.model_copy(update={"lifecycle": record.lifecycle.model_copy(update={"blocks": blocks})})


def test_a_scan_alone_says_what_to_do():
    points = statement(with_modules(anatomy(name="org/name")), "What to do").points
    assert points[0] == (
        "In high precision first: the first token of a sequence and “⏎” where it stands later; channel 5 of the "
        "residual stream; the blocks that write and remove them: block 2 (layer 0, FFN), model.layers.0.ffn; "
        "block 6 (layer 2, FFN), model.layers.2.ffn."
    )
    assert points[1] == "Keep the first token in the KV cache: 3 heads of 6 attend to a sink."
    assert len(points) == 2


def test_without_spikes_and_sinks_there_is_no_advice():
    said = statement(anatomy(spikes=False, sinks=False, measures=()), "What to do")
    assert said.text.startswith("No spikes") and not said.points


def test_massive_or_an_outlier_is_one_word():
    record = anatomy()
    assert ": massive by Sun et al. 2024." in statement(record, "Spikes").text
    assert record_document(record).merits[1].note == "massive"
    verdict = record.spikes.model_copy(update={"massive_count": 0})
    ours = record.model_copy(update={"spikes": verdict})
    assert "an outlier by our rule, not massive by Sun et al. 2024" in statement(ours, "Spikes").text
    assert record_document(ours).merits[1].note == "outlier by our rule only"


def tables(record):
    return {table.caption: table for section in record_document(record).sections for table in section.tables}


def test_rules_have_their_numbers_and_verdicts_their_rows():
    record = interventions()
    rules = {
        "spike_removed_max": 0.1,
        "free_max": 0.03,
        "in_words": ["Falls to spike_removed_max; costs free_max nats."],
    }
    changed = record.dissociation.model_copy(update={"rules": rules})
    table = tables(record.model_copy(update={"dissociation": changed}))["Verdict: sinks need spikes"]
    assert table.aside == "Falls to 10 %; costs 0.03 nats."
    assert table.rows[0] == ["Do sinks need spikes?", "yes", "because (rows: zero spikes)"]


def test_a_share_of_variance_below_0_is_a_dash_with_its_reason():
    record = anatomy()
    step = record.amplifier.steps[0]
    fit = step.rank_one_spike.model_copy(update={"r2": -14251.0})
    section = record.amplifier.model_copy(update={"steps": [step.model_copy(update={"rank_one_spike": fit})]})
    table = tables(record.model_copy(update={"amplifier": section}))["One direction predicts what the step FFNs write"]
    assert dict(zip(table.columns, table.rows[0], strict=True))["R²"] == "–" and "below 0" in table.note


def test_equations_are_mathematics_and_other_text_is_escaped():
    for plain, equation in EQUATIONS.items():
        made = str(mathematics(f"a <b> {plain} c"))
        assert made.count("<math") == 1 and equation in made and "a &lt;b&gt; " in made and made.endswith(" c")
    assert str(mathematics("x & y")) == "x &amp; y"


def test_marks_for_code_do_not_stand_on_the_page_of_a_study(tmp_path):
    record = study()
    claims = [claim.model_copy(update={"evidence": "Run `spikesink scan`."}) for claim in record.claims]
    record.model_copy(update={"claims": claims}).write(tmp_path / "s.json")
    assert "`" not in re.sub(
        r"<script.*?</script>", "", write_page([tmp_path], tmp_path / "p.html").read_text(), flags=re.S
    )


def test_every_chart_has_a_link_and_the_page_its_command(tmp_path):
    anatomy(measures=()).save(tmp_path / "run")
    text = write_page([tmp_path / "run"], tmp_path / "p.html").read_text()
    for name in re.findall(r'data-figure="(\w+)"', text):
        assert f'href="#figure-{name}"' in text
    assert 'data-copy="spikesink report run"' in text and str(tmp_path) not in text


def test_what_was_not_measured_has_a_command_to_copy(tmp_path):
    anatomy(measures=("heads",)).save(tmp_path)
    text = write_page([tmp_path], tmp_path / "p.html").read_text()
    assert 'data-copy="spikesink scan made/model --measure amplifier,trigger,normalisation,geometry,properties"' in text


def printed(record, width):
    stream = io.StringIO()
    print_record(record, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("record", [anatomy(), interventions(), study()], ids=["scan", "interventions", "study"])
def test_a_terminal_is_never_too_narrow(record, width):
    lines = printed(record, width).splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    assert not any("…" in line for line in lines), "nothing is cut off"


@pytest.mark.parametrize("width", [50, 80, 100, 140])
def test_no_digit_of_a_table_is_cut_off(width):
    """Intervals may break behind their comma; everything else of a row of numbers stands on one line."""
    cost, wide = Estimate(value=-0.0014, low=-0.0024, high=-0.0005), Estimate(value=1.09e7, low=1e7, high=1.2e7)
    changed = {"loss_difference_nats": cost, "perplexity": wide, "spike_tokens": 1.0416}
    record = interventions()
    rows = [row.model_copy(update=changed) for row in record.interventions if row.applicable]
    rows[-1] = rows[-1].model_copy(update={"name": "project_out_direction"})
    text = printed(record.model_copy(update={"interventions": rows}), width)
    table = text[text.index("Remove one, keep the rest") :]
    assert table.count("-0.0014 [-0.0024,") == table.count("-0.0005]") == len(rows) - 1, "the baseline has no cost"
    assert table.count("1.04 ") == table.count("10.9 million") == len(rows)


@pytest.mark.parametrize(
    ("merit", "text"),
    [(Merit("a", 0.747, "%"), "74.7 %"), (Merit("a", 11.3, "nats", 11.29, 11.31), "+11.30 [+11.29, +11.31] nats"),
     (Merit("a", 15055.2, "×"), "15,055 ×"), (Merit("a", None, "nats"), "–"), (Merit("a", "yes"), "yes"),
     (Merit("a", 0.00001, "nats"), "0 nats"), (Merit("a", -593.64, digits=4), "-593.6")],
)  # fmt: skip
def test_figures_of_merit(merit, text):
    assert merit.text == text


def test_a_section_without_a_part_shows_all_its_fields():
    content = {"applicable": True, "reason": None, "tokens": 39, "share": 0.51234,
               "blocks": [{"block": 2, "mean": None}], "ids": list(range(20))}  # fmt: skip
    section = fields_part("reach", "Reach", content)
    first = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 … 20 in all"
    shown = [(merit.label, merit.text) for merit in section.merits]
    assert shown == [("tokens", "39"), ("share", "0.5123"), ("ids", first)]
    (table,) = section.tables
    assert isinstance(table, Table) and isinstance(section, Part)
    assert (table.caption, table.columns, table.rows) == ("Blocks", ["block", "mean"], [["2", "–"]])


def test_the_text_of_a_study_is_that_of_its_recipe():
    record = StudyRecord.read_file(Path(__file__).parents[2] / "results" / "normalisation-sinks-700.json")
    assert sentence(record.provenance) == "normalisation-sinks-700, 32-token sequences of bigram_backcopy."


def test_a_training_says_its_precision():
    """What `auto` came to, beside the dtype that was measured in."""
    model = {"name": "healed", "dtype": "float32"}
    provenance = Provenance(model=model, tokens={"seq_len": 7}, versions={}, settings={"precision": "bf16"})
    assert sentence(provenance) == "healed, 7-token sequences, float32, trained in bf16."
