"""`spikesink intervene` as a program: a record and a table, JSON alone, clear refusals, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import spiking, tiny, token_ids

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
def test_refusals_before_anything_is_loaded(cli, checkpoint, options, message, unloaded):
    refused = cli("intervene", checkpoint, *options)
    assert refused.code == 2 and message in refused.err


CACHE = ("--seq-len", 20, "--which", "kv_cache", "--sequences", 4, "--held-out", 2, "--json")


@pytest.fixture
def talkative(cli, tmp_path, word_tokenizer, text_file):
    """`intervene` on a model with a tokenizer and 128 positions (gpt2: learned ones), and a text of 300 tokens."""

    def run(family, *options):
        tiny(family, max_position_embeddings=128).save_pretrained(tmp_path / family)
        word_tokenizer.save_pretrained(tmp_path / family)
        return cli("intervene", tmp_path / family, "--text", text_file, *CACHE, *options)

    return run


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", ("--cache-seq-len", 100_000), "KV cache: No sequence of 100000 tokens in 'text.txt'"),
        ("llama", ("--cache-sequences", 2), "Use a seq_len (--cache-seq-len) of 310 or less"),
        ("gpt2", ("--cache-seq-len", 129), "KV cache: --cache-seq-len 129 is beyond the model's 128 positions"),
    ],
)
def test_a_cache_that_is_asked_for_and_cannot_be_had_is_refused(talkative, family, options, message):
    ran = talkative(family, *options)
    assert ran.code == 2 and ran.out == "" and message in ran.err


def test_what_the_cache_is_measured_on_instead_is_told(talkative):
    ran = talkative("llama")
    assert (
        ran.code == 0 and "KV cache: No sequence of 512 tokens" in ran.err and "sequences that are evaluated" in ran.err
    )
    assert json.loads(ran.out)["kv_cache"]["reason"].startswith("sequences of 20 tokens")
    ran = talkative("llama", "--cache-seq-len", 130, "--cache-sequences", 500)
    assert ran.code == 0 and "text.txt makes 2 sequences; 500 were asked for." in ran.err
    assert json.loads(ran.out)["provenance"]["settings"]["cache_tokens"]["seq_len"] == 130


def test_a_refusal_is_one_message(checkpoint):
    done = ran(checkpoint, "--which", "zero_spike")
    assert done.returncode == 2
    assert "did you mean 'zero_spikes'" in done.stderr
    assert "Traceback" not in done.stderr
