"""`spikesink scan` as a user runs it: terminal, record, JSON, prompt, Ctrl-C."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spikesink import Anatomy, __version__

SUMMARY = [
    "perplexity",
    "sink_ratio",
    "sink_ratio_sun2026",
    "sink_ratio_gu2025",
    "sink1_gu2025",
    "has_sinks",
    "spike",
    "spike_block",
    "spike_channel",
    "has_spikes",
    "spike_channels",
    "spike_tokens",
    "massive_count",
    "max_over_median",
    "step_up_blocks",
    "step_down_blocks",
]


def test_json_is_only_json_and_writes_nothing(cli, checkpoint, text_file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--sequences", 4, "--json")
    assert ran.code == 0
    record = json.loads(ran.out)
    assert record["schema"] == 1
    assert set(SUMMARY) <= set(record["summary"])
    assert record["summary"]["spike"] > 0
    assert {"block", "kind", "resid_top3", "out_top3", "resid_median"} <= set(record["lifecycle"]["blocks"][0])
    assert {"channel", "value", "sequence", "position"} <= set(record["lifecycle"]["blocks"][0]["out_top3"][0])
    assert {"block", "head", "first_key_importance", "max_importance", "sink_rate"} <= set(record["sinks"]["heads"][0])
    assert {"load_s", "forward_s", "total_s"} <= set(record["timing"])
    assert sorted(tmp_path.rglob("*")) == before


def test_json_with_out_does_both(cli, checkpoint, text_file, tmp_path):
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--json", "--out", "made")
    assert ran.code == 0
    assert json.loads(ran.out) == json.loads((tmp_path / "made" / "anatomy.json").read_text())
    made = ["anatomy.json", "arrays.safetensors", "report.html"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == made
    assert f"Page: {Path('made', 'report.html')}" in ran.err


def test_a_page_in_the_way_is_kept_and_costs_no_record(cli, checkpoint, text_file, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "report.html").write_text("mine")
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--out", "made")
    assert ran.code == 0 and "No page: " in ran.err and "no page of spikesink's" in ran.err
    assert (tmp_path / "made" / "report.html").read_text() == "mine"
    Anatomy.read(tmp_path / "made")


def test_conditions_are_in_the_record(cli, checkpoint, text_file):
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--sequences", 4, "--json", "--bos", "always")
    provenance = json.loads(ran.out)["provenance"]
    tokens, model, settings = provenance["tokens"], provenance["model"], provenance["settings"]
    assert (tokens["sequences"], tokens["seq_len"], tokens["bos"], tokens["bos_added"]) == (4, 20, "always", True)
    assert (tokens["source"], tokens["documents"], tokens["skipped_short"]) == ("text.txt", 4, 0)
    assert len(tokens["source_sha256"]) == len(tokens["ids_sha256"]) == 64
    assert (model["name"], model["dtype"], model["device"], model["revision"]) == ("tiny-llama", "float32", "cpu", None)
    assert len(model["file_sha256"]["model.safetensors"]) == 64
    assert settings["sinks"]["epsilon"] == 0.3
    assert settings["spikes"]["max_over_median_min"] == 20
    assert provenance["versions"]["spikesink"] == __version__


def test_the_default_folder_and_the_terminal(cli, checkpoint, text_file, tmp_path):
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20)
    assert ran.code == 0
    folder = next((tmp_path / "runs").iterdir())
    assert folder.name.startswith("tiny-llama-")
    record = Anatomy.read(folder)
    for words in (
        "tiny-llama",
        "Spike",
        "No spikes",
        "Life cycle",
        "Sink heads",
        "Perplexity",
        "10 × 20 tokens of text.txt",
    ):
        assert words in ran.out, words
    assert f"Perplexity: {record.summary.perplexity:.4g}; " in " ".join(ran.out.split())
    assert str(folder.relative_to(tmp_path)) in ran.err


def test_tokens_are_evaluated_as_they_are(cli, checkpoint, tmp_path):
    ids = np.random.default_rng(0).integers(0, 97, (3, 17), dtype=np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    for first, many in (((), 3), (("--sequences", 2), 2)):
        ran = cli("scan", checkpoint, "--tokens", "ids.npy", "--json", *first)
        tokens = json.loads(ran.out)["provenance"]["tokens"]
        assert (tokens["sequences"], tokens["seq_len"], tokens["bos"]) == (many, 17, "as given")
        expected = hashlib.sha256(ids[:many].astype("<i8").tobytes()).hexdigest()
        assert tokens["ids_sha256"] == expected


@pytest.mark.parametrize(("asked", "said"), [((), False), (("--sequences", 10), False), (("--sequences", 11), True)])
def test_fewer_sequences_than_asked_for_are_told(cli, checkpoint, text_file, asked, said):
    """The text has ten documents."""
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--json", *asked)
    assert ran.code == 0 and ("text.txt makes 10 sequences; 11 were asked for." in ran.err) == said


def test_packing_joins_documents(cli, checkpoint, text_file):
    ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 50, "--pack", "--sequences", 3, "--json")
    tokens = json.loads(ran.out)["provenance"]["tokens"]
    assert (tokens["sequences"], tokens["seq_len"], tokens["packed"]) == (3, 50, True)


def test_the_same_command_twice_gives_the_same_record(cli, checkpoint, text_file):
    """The second does not verify again, and says so, unless asked to."""
    command = ("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--json")
    ran = [cli(*command), cli(*command), cli(*command, "--verify")]
    assert ["Verified before: same files, versions" in each.err for each in ran] == [False, True, False]
    records = [json.loads(r.out) for r in ran]
    for record in records:
        del record["timing"]
    assert records[0] == records[1] == records[2]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_signs_is_readable_and_json_loses_nothing(
    cli, checkpoint, text_file, monkeypatch, encoding
):
    named = text_file.rename(text_file.with_name("größe 🙂.txt"))

    def printed(*options):
        made = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", made)
        assert cli("scan", checkpoint, "--text", named, "--seq-len", 20, *options).code == 0
        made.flush()
        return made.buffer.getvalue().decode(encoding)

    assert json.loads(printed("--json"))["provenance"]["tokens"]["source"] == "größe 🙂.txt"
    said = printed("--out", "made")
    times = "x" if encoding == "ascii" else "\N{MULTIPLICATION SIGN}"
    assert f"10 {times} 20 tokens of" in said and "?" not in said
    assert (named.parent / "made" / "report.html").is_file()


def test_a_closed_stdout_is_one_message(cli, monkeypatch, unloaded):
    monkeypatch.setattr(sys, "stdout", None)
    ran = cli("scan", "--json")
    assert ran.code == 2 and ran.err.startswith("error: Standard output is closed") and len(ran.err.splitlines()) == 1


def test_a_prompt_is_shown_token_by_token(cli, checkpoint):
    ran = cli("scan", checkpoint, "--prompt", "w5 w6 w7 w5 w9")
    assert ran.code == 0
    assert "w5│w6│w7│w5│w9│" in ran.out
    assert "1 × 5 tokens of prompt" in ran.out


@pytest.mark.embedded
def test_a_prompt_colours_spikes_and_sinks(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = cli("scan", "--prompt", "The attention of many heads goes to the first token of a text, whatever it means.")
    assert ran.code == 0
    # The first token, a spike and a sink: bold, underlined, red.
    assert any(line.startswith("\x1b[1;4;31mThe\x1b[0m") for line in ran.out.splitlines())
    assert "'The' by" in ran.out


def test_version(cli):
    assert cli("--version").out.strip() == f"spikesink {__version__}"


def test_help_names_every_option(cli):
    ran = cli("scan", "--help")
    for option in [
        "--text",
        "--prompt",
        "--dataset",
        "--tokens",
        "--pack",
        "--sequences",
        "--seq-len",
        "--bos",
        "--dtype",
        "--device",
        "--epsilon",
        "--sink-metric",
        "--batch-size",
        "--revision",
        "--trust-remote-code",
        "--allow-pickle",
        "--chat-template",
        "--measure",
        "--out",
        "--force",
        "--json",
    ]:
        assert option in ran.out, option


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_in_the_middle(checkpoint, tmp_path, sent):
    """However it ends, no half of a record is left; after Ctrl-C there is a sentence, no traceback."""
    np.save(tmp_path / "ids.npy", np.zeros((4000, 100), dtype=np.int64))
    # A line for every step, so that it is known when it scans.
    code = "import spikesink.cli.progress as shown; shown.EVERY_S = 0; from spikesink.cli.main import run; run()"
    command = [sys.executable, "-c", code, "scan", str(checkpoint), "--tokens", "ids.npy", "--out", "out"]
    said, printed = tmp_path / "said.txt", tmp_path / "printed.txt"
    with said.open("w") as errors, printed.open("w") as output:
        process = subprocess.Popen(
            [*command, "--batch-size", "1"], cwd=tmp_path, stdout=output, stderr=errors,
            # A shell in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        while "scan: " not in said.read_text() and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, said.read_text()
        process.send_signal(sent)
        process.wait()
    out, err = printed.read_text(), said.read_text()
    assert process.returncode != 0
    assert list((tmp_path / "out").glob("*")) == []
    if sent == signal.SIGINT:
        # A shell shows 130 for both: interrupted while a module is imported, CPython ends itself by the signal.
        assert process.returncode in (130, -signal.SIGINT)
        assert "interrupted" in err
        assert "Traceback" not in err + out


def test_results_do_not_leave_the_runs_folder(cli, checkpoint, text_file, tmp_path):
    from spikesink.cli.options import output_folder

    for name in ("../../etc/passwd", "/abs/olute", "..", "a\nb", "", "x" * 500):
        folder = output_folder(None, False, name)
        assert folder is not None
        assert folder.parent == Path("runs")
        assert len(folder.name) < 120
