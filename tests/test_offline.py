"""No command touches the network unless a hub name was given: every socket is refused while it runs.

Each runs in a process of its own without HF_HUB_OFFLINE, which would hide what the libraries try by themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import VOCAB, tiny

SOURCE = Path(__file__).parent.parent / "src"
REFUSING = """
import sys
TRIED = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        if event == "socket.getaddrinfo" and args[0] in ("localhost", "127.0.0.1", None):
            return
        TRIED.append((event, repr(args[1:] if event == "socket.connect" else args)))
        raise OSError("no network in this test")
sys.addaudithook(hook)
from spikesink.cli.main import run
sys.argv = ["spikesink", *sys.argv[1:]]
try:
    run()
finally:
    if TRIED:
        print("TRIED", TRIED, file=sys.stderr)
"""
"""An audit hook sees every socket of the interpreter, whatever library opens it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer, token ids and a text."""
    folder = tmp_path_factory.mktemp("offline")
    tiny("llama", max_position_embeddings=128).save_pretrained(folder / "model")
    _word_tokenizer().save_pretrained(folder / "model")
    ids = np.random.default_rng(0).integers(3, VOCAB, (4, 32))
    np.save(folder / "ids.npy", ids)
    (folder / "text.txt").write_text("\n".join(" ".join(f"w{i}" for i in row) for row in ids.tolist()))
    return folder


def _word_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spikesink(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-c", REFUSING, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", "model", "--tokens", "ids.npy", "--out", "scan", "--measure", "all"),
        ("scan", "model", "--text", "text.txt", "--seq-len", "16", "--sequences", "4", "--json"),
        ("verify", "model", "--seq-len", "20"),
        ("train", "nano", "--dry-run"),
    ],
    ids=["scan-tokens", "scan-text", "verify", "train"],
)
def test_nothing_is_fetched(folder, arguments):
    ran = spikesink(folder, *arguments)
    assert "TRIED" not in ran.stderr
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.embedded
def test_the_embedded_model_needs_no_network(folder):
    ran = spikesink(folder, "scan", "--sequences", "2", "--seq-len", "16", "--json")
    assert "TRIED" not in ran.stderr
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_a_hub_name_is_where_the_network_begins(folder):
    """The control: asked for a model by its hub id, the same command does open a socket, so the test can fail."""
    ran = spikesink(folder, "scan", "somebody/some-model", "--tokens", "ids.npy", "--json")
    assert "TRIED" in ran.stderr
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
