"""No command touches the network unless a hub name was given: every socket is refused while it runs.

In a process of their own, without HF_HUB_OFFLINE, which would hide what the libraries try by themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import VOCAB, tiny, word_tokenizer
from tiny_recipe import CONTENT

SOURCE = Path(__file__).parent.parent / "src"
REFUSING = """
import sys
COMMANDS = [command.split() for command in " ".join(sys.argv[1:]).split(" then ")]
EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
def refuse(event, args):
    if event in EVENTS:
        print("TRIED", event, args[-2:], file=sys.stderr)
        raise OSError("no network in this test")
sys.addaudithook(refuse)
from spikesink.cli.main import run
for command in COMMANDS:
    sys.argv = ["spikesink", *command]
    try:
        run()
    except SystemExit as left:
        if left.code:
            raise
    print("DONE", command[0], file=sys.stderr)
"""
"""An audit hook sees every socket of the interpreter, whatever library opens it."""
RECIPE = {
    **{part: CONTENT[part] for part in ("name", "model", "data")},
    "training": {"steps": 2, "batch_size": 4},
    "running": {"log_every": 1, "threads": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer, token ids, a text and a recipe."""
    folder = tmp_path_factory.mktemp("offline")
    tiny("llama", max_position_embeddings=128).save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    ids = np.random.default_rng(0).integers(3, VOCAB, (4, 32))
    np.save(folder / "ids.npy", ids)
    (folder / "text.txt").write_text("\n".join(" ".join(f"w{i}" for i in row) for row in ids.tolist()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def spikesink(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-c", REFUSING, " then ".join(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def check_offline(ran: subprocess.CompletedProcess[str], *names: str) -> None:
    assert "TRIED" not in ran.stderr, ran.stderr[-2000:]
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert [line.split()[1] for line in ran.stderr.splitlines() if line.startswith("DONE")] == [*names]


def test_nothing_is_fetched(folder):
    ran = spikesink(
        folder,
        "scan model --tokens ids.npy --out scanned --measure all",
        "scan model --text text.txt --seq-len 16 --sequences 4 --json",
        "verify model --seq-len 20",
        "train recipe.yaml --out trained",
    )
    check_offline(ran, "scan", "scan", "verify", "train")


@pytest.mark.embedded
def test_the_embedded_model_needs_no_network(folder):
    check_offline(spikesink(folder, "scan --sequences 2 --seq-len 16 --json"), "scan")


def test_a_hub_name_is_where_the_network_begins(folder):
    """The control: asked for a model by its hub id, the same command does try, so the other tests can fail."""
    ran = spikesink(folder, "scan somebody/some-model --tokens ids.npy --json")
    assert "TRIED" in ran.stderr
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
