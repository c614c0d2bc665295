"""`spikesink intervene` as a program: a record and a table, JSON alone, clear refusals, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import spiking, token_ids

from spikesink.records.interventions import Interventions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model that spikes, saved, and ids for it."""
    folder = tmp_path_factory.mktemp("tiny")
    spiking(num_hidden_layers=4).save_pretrained(folder / "model")
    np.save(folder / "ids.npy", token_ids(sequences=8, tokens=140).numpy())
    return folder


def command(checkpoint, *options):
    source = [str(checkpoint / "model"), "--tokens", str(checkpoint / "ids.npy")]
    return [sys.executable, "-m", "spikesink", "intervene", *source, "--held-out", "3", *options]


def ran(checkpoint, *options):
    return subprocess.run(command(checkpoint, *options), capture_output=True, text=True, check=False, timeout=1200)


def test_json_is_all_that_stdout_holds(checkpoint):
    done = ran(checkpoint, "--which", "zero_spikes,freeze_spikes,drop_bos,kv_cache", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    begin = int((np.load(checkpoint / "ids.npy")[:, 0] == spiking().config.bos_token_id).sum())
    assert record["provenance"]["tokens"]["begin_with_bos"] == begin
    assert record["provenance"]["model"]["name"] == checkpoint.name, "the run that keeps its model in `model`"
    rows = {row["name"]: row for row in record["interventions"]}
    assert rows["baseline"]["control_of"] is None
    assert rows["zero_spikes/random_tokens"]["control_of"] == "zero_spikes"
    assert set(rows["zero_spikes"]["perplexity"]) == {"value", "low", "high"}
    assert rows["drop_bos"]["applicable"] is False
    assert record["dissociation"]["rules"]["in_words"]
    assert record["kv_cache"]["applicable"]
    assert record["quantisation"]["applicable"] is False


def test_a_killed_run_goes_on_and_the_table_reads(checkpoint, tmp_path):
    options = ("--which", "all", "--out", str(tmp_path / "run"))
    running = subprocess.Popen(command(checkpoint, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    partial = []
    while time.monotonic() < deadline and running.poll() is None:
        partial = list((tmp_path / "run").glob(".interventions-*.partial.jsonl"))
        if partial and partial[0].read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    finished = partial[0].read_bytes().count(b"\n")
    assert not (tmp_path / "run" / "interventions.json").exists()
    done = ran(checkpoint, *options)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "run").glob(".interventions-*"))
    record = Interventions.read(tmp_path / "run")
    assert finished < len(record.interventions)
    assert "Page: " in done.stderr and (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    for heading in (
        "Remove one, keep the rest",
        "Verdict",
        "Simulated quantisation",
        "Streaming KV cache",
        "What to do",
    ):
        assert heading in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    again = ran(checkpoint, *options)
    assert again.returncode == 2
    assert "--force" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--which", "zero_spike"), "did you mean 'zero_spikes'"),
        (("--which", "quantization"), "did you mean 'quantisation'"),
        (("--epsilon", 2), "epsilon"),
    ],
)
def test_refusals_before_anything_is_loaded(cli, checkpoint, options, message, monkeypatch):
    monkeypatch.setattr("spikesink.access.load", lambda *_a, **_o: pytest.fail("it was loaded"))
    refused = cli("intervene", checkpoint, *options)
    assert refused.code == 2 and message in refused.err


def test_a_refusal_is_one_message(checkpoint):
    done = ran(checkpoint, "--which", "zero_spike")
    assert done.returncode == 2
    assert "did you mean 'zero_spikes'" in done.stderr
    assert "Traceback" not in done.stderr
