"""The good files that hostile ones are bent from; each is made once."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from tiny import VOCAB, tiny, token_ids
from tiny_gguf import write_tiny_gguf

from spikesink import Anatomy, scan
from spikesink.access import access
from spikesink.records import Provenance, Timing, TrainingRun


@cache
def workplace() -> Path:
    """A folder for the seeds, gone with the process."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="spikesink-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def anatomy() -> Anatomy:
    return scan(access(tiny("llama")), token_ids())


@cache
def record_files(kind: type) -> dict[str, bytes]:
    """The files of a good record by name."""
    folder = workplace() / kind.__name__
    (anatomy() if kind is Anatomy else training_run()).save(folder, force=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def training_run() -> TrainingRun:
    return TrainingRun(
        name="tiny", recipe={"model": {"norm": "dyt"}}, recipe_sha256="0", parameters=7, steps=5, tokens=35,
        tokens_per_s=2.5, processes=1, loss_nats=1.5, held_out_loss_nats=1.25, anatomy={"spike": 3.0},
        provenance=Provenance(model={}, tokens={}, versions={}, settings={}),
        timing=Timing(created="2026-01-01", load_s=0.0, forward_s=1.0, total_s=2.0),
        arrays={"loss": np.arange(3.0), "loss.step": np.arange(3)},
    )  # fmt: skip


@cache
def checkpoint() -> Path:
    """A Llama of two layers with a tokenizer of words."""
    folder = workplace() / "checkpoint"
    tiny("llama", num_hidden_layers=2, max_position_embeddings=64).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


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
