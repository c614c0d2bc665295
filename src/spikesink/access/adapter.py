"""PEFT adapters as models: a folder or hub id whose weights are merged into those of its base, by peft itself."""

import json
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file, has_file

from spikesink.access.stored import WEIGHTS as WHOLE
from spikesink.atomic import file_sha256
from spikesink.errors import ModelError, RequirementError, SpikesinkError, UnsupportedModelError, short
from spikesink.reach import check_reachable, is_hub_id

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE = "base_model_name_or_path"
QUIET = {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
"""Of `cached_file`: None instead of an error."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, and what its config says of it."""

    name: str
    folder: Path
    config: dict[str, Any]
    revision: str | None = None
    commit: str | None = None
    """Of a hub id: what `revision` stands for."""

    @property
    def base(self) -> str:
        """The model that it was trained on. Raises ModelError where it does not say."""
        base = self.config.get(BASE)
        if not isinstance(base, str) or not base.strip():
            raise ModelError(f"The adapter '{self.name}' does not say what it adapts; give its base: --base MODEL.")
        return base

    @property
    def base_revision(self) -> str | None:
        """Of that model, where it is one of the hub. Raises ModelError for what can be none."""
        revision = self.config.get("revision")
        if revision is not None and not isinstance(revision, str):
            raise ModelError(
                f"The adapter '{self.name}' says revision = {repr(revision)[:100]}; expected a branch, tag or commit "
                f"of its base. Correct its {CONFIG}."
            )
        return revision or None

    def provenance(self) -> dict[str, Any]:
        files = {
            name: file_sha256(self.folder / name)
            for name in (CONFIG, WEIGHTS, PICKLED)
            if (self.folder / name).is_file()
        }
        return {
            "name": self.name,
            "type": str(self.config.get("peft_type")),
            "revision": self.revision,
            "commit": self.commit,
            "file_sha256": files,
        }


def find_adapter(name_or_path: str | Path | None, *, revision: str | None, allow_pickle: bool) -> Adapter | None:
    """The adapter of this name, None where it is none: what has an adapter_config.json is one, also beside a
    config.json, since transformers takes it for one.

    Raises ModelError for one that cannot be read, or has weights of a whole model beside it.
    """
    if name_or_path is None:
        return None
    path = Path(str(name_or_path)).expanduser()
    commit = None
    if path.is_dir():
        folder, name = path.resolve(), path.resolve().name
    elif not is_hub_id(name_or_path) or path.suffix.lower() == ".gguf":
        return None
    else:
        name = str(name_or_path)
        folder = _cached(name, revision, allow_pickle)
        commit = folder and folder.name
    if folder is None or not (folder / CONFIG).is_file():
        return None
    _refuse_whole_weights(name, folder if commit is None else name, commit)
    config = _read(folder / CONFIG)
    if not (folder / WEIGHTS).is_file() and not ((folder / PICKLED).is_file() and allow_pickle):
        also = ", but pickle weights, which can run code: --allow-pickle" if (folder / PICKLED).is_file() else ""
        raise ModelError(f"The adapter '{name}' has no {WEIGHTS}{also}.")
    return Adapter(name, folder, config, revision, commit)


def _refuse_whole_weights(name: str, source: str | Path, commit: str | None) -> None:
    try:
        whole = next((each for each in WHOLE if has_file(source, each, commit)), None)
    # The hub's client has an exception of its own for every way in which it gets no answer.
    except Exception as error:
        raise ModelError(f"The hub did not say what '{name}' holds ({short(error)}); try again.") from error
    if whole is not None:
        raise ModelError(
            f"'{name}' holds an adapter ({CONFIG}) and the weights of a whole model ({whole}); which is meant? Put "
            "the one to be measured into a folder of its own."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"'{path}' cannot be read ({str(error)[:200]}); download it again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' is no object of options; download it again.")
    return config


def _cached(name: str, revision: str | None, allow_pickle: bool) -> Path | None:
    """The folder of a hub id that has an adapter: that of one commit, which is its name."""
    check_reachable(name, revision)
    try:
        config = cached_file(name, CONFIG, revision=revision, **QUIET)
    except (OSError, ValueError):
        # What is wrong with the name is said where it is loaded.
        return None
    if config is None:
        return None
    folder = Path(config).parent
    for weights in (WEIGHTS, PICKLED) if allow_pickle else (WEIGHTS,):
        if cached_file(name, weights, revision=folder.name, **QUIET) is not None:
            break
    return folder


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The base with the adapter's weights added to its own, as peft does it; every stored tensor is accounted for.

    Raises UnsupportedModelError for an adapter that is no change of weights, ModelError for one of another model, and
    RequirementError without peft.
    """
    try:
        import peft
    except ImportError as error:
        raise RequirementError(
            f"'{adapter.name}' is an adapter; merging it needs peft. Run: pip install peft"
        ) from error
    try:
        _check_all_known(adapter)
        with warnings.catch_warnings():
            # What it warns of is checked above and below.
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, str(adapter.folder), autocast_adapter_dtype=False)
        if adapted.active_peft_config.is_prompt_learning:
            raise UnsupportedModelError(
                f"The adapter '{adapter.name}' is of type {adapter.config.get('peft_type')}: it puts vectors of its "
                "own before the tokens or their keys, so that the first token is not the first one. Measure the base "
                "model."
            )
        _check_all_used(adapter, adapted)
        return adapted.merge_and_unload(safe_merge=True)
    except (SpikesinkError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"The adapter '{adapter.name}' cannot be merged into its base ({type(error).__name__}: {short(error)}). Is "
            "it an adapter of this model? Another base: --base MODEL."
        ) from error


def _check_all_known(adapter: Adapter) -> None:
    """Refuse an adapter that says what the installed peft does not know, and would leave out. Raises ModelError."""
    import peft

    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(adapter.config["peft_type"])]
    known = {field.name for field in fields(kind)}
    for key, value in adapter.config.items():
        if value and key not in known:
            raise ModelError(
                f"The adapter '{adapter.name}' says {key} = {str(value)[:100]}, which peft {peft.__version__} does not "
                "know and would leave out; measuring would be wrong. Update peft, or correct its "
                f"{CONFIG}."
            )


def _check_all_used(adapter: Adapter, adapted: Any) -> None:
    """Refuse an adapter that lacks weights, or has ones that find no place. Raises ModelError."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    path = adapter.folder / WEIGHTS
    stored = load_file(path) if path.is_file() else torch.load(adapter.folder / PICKLED, map_location="cpu")
    used = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    whole = adapted.state_dict()
    for name in sorted(set(used) - set(stored)):
        raise ModelError(f"The adapter '{adapter.name}' lacks the weights '{name}'; download it again.")
    for name, weight in sorted(stored.items()):
        # Embeddings may be stored whole beside the adapter, and are then loaded as they are.
        placed = used.get(name, whole.get(name))
        if placed is None or placed.shape != weight.shape or not torch.equal(placed.cpu(), weight.to(placed.dtype)):
            raise ModelError(
                f"The adapter '{adapter.name}' stores the weights '{name}', for which the base model has no place; "
                "measuring without them would be wrong. Another base: --base MODEL."
            )
