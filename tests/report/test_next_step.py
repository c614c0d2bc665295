"""Every summary ends with what to run next and about what it costs."""

import io

import pytest
from made import anatomy, interventions, study, training
from rich.console import Console

from spikesink.records import Anatomy
from spikesink.report.build import record_document
from spikesink.report.next_step import STEPS, lasting, next_step
from spikesink.report.page import copied
from spikesink.report.terminal import print_record


@pytest.mark.parametrize(("tokens", "ending"), [(256, "what breaks (about 2 h)."), (255, "and what breaks.")])
def test_after_a_scan_come_interventions_with_their_cost(tokens, ending):
    """A scan of 10 s for 4 sequences: 62 passes of 40 sequences take 6,200 s, 1.7 hours. Fewer than 1,024 tokens say
    nothing."""
    record = anatomy(name="org/name")
    longer = {**record.provenance.tokens, "seq_len": tokens}
    update = {
        "timing": record.timing.model_copy(update={"forward_s": 10.0}),
        "provenance": record.provenance.model_copy(update={"tokens": longer}),
    }
    said = next_step(record.model_copy(update=update))
    assert said.text.startswith("spikesink intervene org/name measures") and said.text.endswith(ending)
    assert said.command == "spikesink intervene org/name"


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (interventions(), "spikesink export RUN --for json"),
        (interventions(parts=False), "spikesink intervene made/model --which all"),
        (training(), "spikesink scan RUN/model --tokens RUN/held_out.npy"),
        (study(), "spikesink report RUNS/made-nano.json --figures figures"),
    ],
)
def test_after_the_others(record, command):
    said = record_document(record).next
    assert said.text.startswith(command) or command == said.command


def test_a_study_of_too_few_seeds_says_how_many_cells_are_missing():
    record = study()
    few = record.model_copy(update={"rules": {**record.rules, "seeds_min": 9}})
    assert any(row.diverged for row in record.rows), "what diverged has its result"
    missing = sum(9 - len(row.seeds) - row.diverged for row in record.rows)
    assert f"--seeds 9 adds {missing} cells" in next_step(few).text


def test_the_last_of_several_records_of_a_model_speaks():
    assert next_step(anatomy(), interventions()).text.startswith("spikesink export")
    assert next_step(anatomy(), training()).text.startswith("spikesink intervene")
    assert list(STEPS).index(Anatomy) == 1


def test_the_embedded_model_needs_no_name():
    record = anatomy(name="SmolLM2-135M-Instruct")
    model = {**record.provenance.model, "gguf_quantisation": "Q4_1"}
    embedded = record.model_copy(update={"provenance": record.provenance.model_copy(update={"model": model})})
    assert next_step(embedded).command == "spikesink intervene"
    assert next_step(record).command == "spikesink intervene MODEL"


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (59, " (seconds)"), (90, " (about 2 min)"), (6000, " (about 2 h)")]
)
def test_costs_are_round(seconds, words):
    assert lasting(seconds) == words


def test_a_terminal_names_the_run_and_the_model():
    console = Console(file=io.StringIO(), width=200)
    print_record(anatomy(name="folder"), console, {"MODEL": ["my models/folder"]})
    print_record(interventions(), console, {"RUN": ["runs/a b"]})
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines() if "Next" in line]
    assert "spikesink intervene 'my models/folder' measures" in lines[0]
    assert "spikesink export 'runs/a b' --for json writes" in lines[1]


def test_commands_in_a_sentence_can_be_copied_and_are_escaped():
    shown = copied("run spikesink scan '<b>' now", "spikesink scan '<b>'")
    assert 'data-copy="spikesink scan &#39;&lt;b&gt;&#39;"' in shown and "<b>" not in shown
    assert shown.startswith("run <code>") and shown.endswith("</button> now")
