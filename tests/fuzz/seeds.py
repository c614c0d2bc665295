"""The good files that hostile ones are bent from; each is made once."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from study.study_cases import GRID, base, record
from tiny import spiking, tiny, token_ids, word_tokenizer
from tiny_gguf import write_tiny_gguf

from spikesink import Anatomy, scan
from spikesink.access import access
from spikesink.access.model import AccessedModel
from spikesink.access.verify import verify_all
from spikesink.analyse.interventions import dissociate
from spikesink.records import Provenance, Timing, TrainingRun
from spikesink.records.base import JsonRecord, Record
from spikesink.records.interventions import Interventions
from spikesink.records.verification import VerificationRecord
from spikesink.study.run import Study
from spikesink.train import checkpoints
from spikesink.train.recipe import load_recipe

RECORDS: dict[str, type[Record]] = {
    "anatomy": Anatomy, "interventions": Interventions, "training": TrainingRun, "verification": VerificationRecord,
}  # fmt: skip
DOCUMENTS = ("cell", "study")


@cache
def workplace() -> Path:
    """A folder for the seeds, gone with the process."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="spikesink-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def model() -> AccessedModel:
    """Four layers with a spike, so that every chart has something to show."""
    return access(spiking(num_hidden_layers=4))


@cache
def record_files(kind: str) -> dict[str, bytes]:
    """The files of a good record by name."""
    made = {
        "anatomy": lambda: scan(model(), token_ids(), measures=("all",)),
        "interventions": lambda: intervened(None),
        "training": training_run,
        "verification": lambda: verify_all(model(), tokens=40),
    }[kind]()
    folder = made.save(workplace() / kind, force=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def training_run() -> TrainingRun:
    return TrainingRun(
        name="tiny", recipe={"model": {"norm": "dyt"}}, recipe_sha256="0", parameters=7, steps=5, tokens=35,
        tokens_per_s=2.5, processes=1, loss_nats=1.5, held_out_loss_nats=1.25, anatomy={"spike": 3.0},
        provenance=Provenance(model={}, tokens={}, versions={}, settings={}),
        timing=Timing(created="2026-01-01", load_s=0.0, forward_s=1.0, total_s=2.0),
        arrays={"loss": np.arange(3.0), "loss.step": np.arange(3)},
    )  # fmt: skip


def intervened(folder: Path | None) -> Interventions:
    """A few passes; they go on from what lies in the folder."""
    return dissociate(model(), token_ids(8, 9), which="mask_sinks,drop_bos", held_out=3, draws=1, folder=folder)


@cache
def partial() -> tuple[str, bytes]:
    """The file of finished passes that a run leaves when it is killed: its name, and all its lines."""
    folder = workplace() / "partial"
    folder.mkdir()
    intervened(folder)
    (path,) = folder.iterdir()
    return path.name, path.read_bytes()


@cache
def study() -> Study:
    """Of cells made by hand."""
    made = Study("s", GRID, base(), workplace() / "study")
    for variant, seed in ((variant, seed) for variant in GRID.variants for seed in range(3)):
        figures = {"perplexity": 2.0 + seed, "sink_ratio": 0.5 + seed / 10, "spike": 900.0 - 400 * (variant == "dyt")}
        record(variant, seed, **figures).write(made.records / f"{variant}-{seed}.json")
    made.write()
    return made


def document(kind: str) -> JsonRecord:
    return study().summarise() if kind == "study" else record("wide", 1, perplexity=3.0)


@cache
def marker() -> bytes:
    """What makes a checkpoint count, of one whose only file has five bytes."""
    folder = workplace() / "checkpoints" / "checkpoint-7"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"12345")
    checkpoints.mark_complete(folder, load_recipe("nano"))
    return (folder / checkpoints.MARKER).read_bytes()


@cache
def checkpoint() -> Path:
    """A Llama of two layers with a tokenizer of words."""
    folder = workplace() / "checkpoint"
    tiny("llama", num_hidden_layers=2, max_position_embeddings=64).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@cache
def gguf() -> bytes:
    return write_tiny_gguf(workplace() / "tiny.gguf").read_bytes()


@cache
def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"w{i} w{i + 1} w{i + 2} and more" for i in range(3, 40)], "n": list(range(37))})
    pyarrow.parquet.write_table(table, workplace() / "a.parquet")
    return (workplace() / "a.parquet").read_bytes()
