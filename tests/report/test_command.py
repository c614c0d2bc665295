"""Command lines that a record gives: the same model, text and criteria again, to be pasted as they are."""

import shlex
from inspect import signature
from pathlib import Path

import pytest
from made import anatomy, interventions

from spikesink.access.load import _resolve_dtype
from spikesink.cli import options
from spikesink.cli.intervene import EVALUATED, intervene_command
from spikesink.cli.options import Loading, Sinking, Text
from spikesink.cli.report import places
from spikesink.data.files import FIELD
from spikesink.records import Provenance
from spikesink.report import write_page
from spikesink.report.build import record_document, runs_document
from spikesink.report.command import DEFAULTS, SEQUENCES, command, filled

FILE = {"source": "my text.txt", "source_sha256": "0", "source_description": "a line of a text file"}
ROWS = {"source": "rows.csv", "source_sha256": "0", "source_description": "the column `body` of a CSV row"}
HUB = {"source": "hub:org/data:en:test", "source_description": "the field `text` of a row, in order; config en"}
ALL = {"bos": "always", "packed": True, "chat_template": True, "seq_len": 200, "sequences": 64}


def made_under(tokens, model=None, **settings):
    model = {"name": "org/name", "dtype": "float32", "device": "cpu", **(model or {})}
    return Provenance(model=model, tokens=tokens, versions={}, settings=settings)


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        (made_under({**FILE, **ALL}), "--text 'my text.txt' --bos always --chat-template --pack --seq-len 200"),
        (made_under({**ROWS, "seq_len": 64, "bos": "auto"}), "--text rows.csv --field body"),
        (made_under({**HUB, "bos": "never"}), "--dataset org/data:en:test --bos never"),
        (made_under({"source": "pydoc_data.topics", "source_sha256": "0", "seq_len": 32}), "--seq-len 32"),
        (made_under({"source": "ids.npy", "bos": "as given", "seq_len": 9, "sequences": 7}), "--tokens ids.npy"),
        (made_under({"source": "prompt", "source_sha256": "0", "bos": "always", "seq_len": 5}), "--bos always"),
        (made_under({"source": "ids", "bos": "as given", "seq_len": 9}), ""),
        (made_under({}, {"dtype": "bfloat16", "revision": "v 2"}), "--revision 'v 2' --dtype bfloat16"),
        (made_under({}, {"revision": "base", "adapter": {"revision": "own"}}), "--revision own"),
        (made_under({}, {"device": "cuda:0"}), "--dtype float32"),
        (
            made_under({}, sinks={"epsilon": 0.2, "metric": "gu2025"}, magnitude=50.0, batch_size=4),
            "--epsilon 0.2 --sink-metric gu2025 --magnitude 50.0 --batch-size 4",
        ),
    ],
)
def test_a_command_has_the_conditions_of_the_record(provenance, words):
    assert command("intervene", provenance, "--which", "all") == " ".join(
        f"spikesink intervene org/name {words} --which all".split(" ")
    ).replace("  ", " ")


def test_what_a_command_leaves_out_is_what_it_does_without():
    """A report imports no command, so that the defaults stand in both."""
    text, sinking = Text(), Sinking()
    assert {
        "field": FIELD, "seq_len": text.seq_len, "epsilon": sinking.epsilon, "metric": sinking.sink_metric,
        "dtype": str(_resolve_dtype(None, "cpu")).removeprefix("torch."),
    } == DEFAULTS  # fmt: skip
    held_out = signature(intervene_command).parameters["held_out"].default
    defaults = {verb: {option: default for option, _, default in of} for verb, of in SEQUENCES.items()}
    assert defaults == {
        "scan": {"--sequences": options.SEQUENCES},
        "intervene": {"--sequences": EVALUATED, "--held-out": held_out},
    }


def test_sequences_are_those_of_the_same_command():
    few = made_under({**FILE, "seq_len": 64, "sequences": 8})
    assert command("scan", few) == "spikesink scan org/name --text 'my text.txt' --sequences 8"
    assert command("intervene", few) == "spikesink intervene org/name --text 'my text.txt'"
    ids = made_under({"source": "ids.npy", "bos": "as given", "sequences": 64})
    assert command("scan", ids) == "spikesink scan org/name --tokens ids.npy --sequences 64"
    both = made_under({**FILE, "seq_len": 64, "sequences": 8}, evaluated_sequences=5, held_out_sequences=3)
    assert command("intervene", both).endswith("--sequences 5 --held-out 3")
    assert "--sequences" not in command("scan", both)


def with_conditions(record, **tokens):
    provenance = record.provenance.model_copy(update={"tokens": {**record.provenance.tokens, **tokens}})
    return record.model_copy(update={"provenance": provenance})


def test_a_run_knows_its_model_its_text_and_its_folder():
    record = with_conditions(anatomy(name="llama"), **FILE, bos="always")
    loading = Loading(model="my models/llama", base="org/base", trust_remote_code=True)
    known = places(Path("runs/a"), loading, Text(text=Path("texts/my text.txt")))
    document = filled(record_document(record), known)
    line = "spikesink intervene 'my models/llama' --base org/base --trust-remote-code --text 'texts/my text.txt'"
    assert document.next.command.startswith(line)
    assert document.next.text.startswith(document.next.command)
    assert all("MODEL" not in each.command for each in document.unmeasured)
    assert not [said for said in document.statements if "MODEL" in said.text + "".join(said.points)]
    assert len(shlex.split(document.next.command)) == shlex.split(document.next.command).index("--seq-len") + 2


def test_a_page_names_its_run_and_no_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interventions().save(Path("runs/a b"))
    page = write_page(["runs/a b"], tmp_path / "page.html").read_text()
    assert 'data-copy="spikesink export &#39;runs/a b&#39; --for json"' in page
    absolute = runs_document([tmp_path / "runs/a b"], {"made/model": [str(tmp_path / "made")]})
    assert absolute.next.command == "spikesink export 'a b' --for json"
    assert not [said for said in absolute.statements if str(tmp_path) in (said.command or "")]
