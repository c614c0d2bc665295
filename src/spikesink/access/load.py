"""From a name to a verified model: hub id, local folder, GGUF file, or nothing for the embedded SmolLM2."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spikesink import requirement
from spikesink.access.adapter import BASE, Adapter, find_adapter, merged
from spikesink.access.blocks import find_blocks
from spikesink.access.checkpoint import Checkpoint, check_memory, find_checkpoint
from spikesink.access.comparison import PROBE_TOKENS
from spikesink.access.hub import fetched, pinned
from spikesink.access.model import AccessedModel
from spikesink.access.passed import Passed, checkpoint_key, read_passed, remember, remembered, write_passed
from spikesink.access.quantised import quantisation_method
from spikesink.access.reading import explained, read_config, read_model, read_tokenizer, refuse_unsuitable
from spikesink.access.stored import check_config_sizes, check_quantised, read_stored
from spikesink.access.verify import verify as verify_layers
from spikesink.errors import ModelError, SpikesinkError, UnsupportedModelError, VerificationError, short
from spikesink.observer import Progress, notebook_progress
from spikesink.reach import check_revision, is_hub_id

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab", "merges", "spiece")
"""How the names of files begin without which there is no tokenizer, whatever tokenizer_config.json says."""
DTYPES = {name: getattr(torch, name) for name in requirement.DTYPES}


def load(
    name_or_path: str | Path | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    base: str | Path | None = None,
    verify: bool = False,
    progress: Progress = notebook_progress,
) -> AccessedModel:
    """Load a causal LM and verify every layer.

    Without a name, the embedded SmolLM2-135M-Instruct. `dtype`: a name in DTYPES; default float32 on CPU, the
    checkpoint's own on a GPU. `device`: `cpu`, `cuda`, `cuda:N` or `auto` (shards over all); default cuda if there is
    one. Only safetensors and GGUF weights are read unless `allow_pickle`; no code of the checkpoint runs unless
    `trust_remote_code`. A PEFT adapter is merged into its base: the one it names, or `base`. A checkpoint that was
    verified before, with the same files, versions, dtype and device, is not verified again (`.verified_before`) unless
    `verify`, nor unless its code is trusted. `progress` hears of downloads. Raises ModelError, UnsupportedModelError or
    VerificationError.
    """
    started = time.perf_counter()
    check_revision(name_or_path, revision)
    options = _Options(_resolve_device(device), dtype, trust_remote_code, allow_pickle, progress)
    adapter = find_adapter(name_or_path, revision=revision, allow_pickle=allow_pickle)
    if adapter is None:
        if base is not None:
            what = "the embedded model" if name_or_path is None else f"'{name_or_path}'"
            raise ModelError(f"A base was given, but {what} is no adapter; leave --base out.")
        loaded = _loaded(name_or_path, revision, options)
    else:
        loaded = _adapted(adapter, base, options)
    accessed = _accessed(loaded, keep=not trust_remote_code, verify=verify)
    accessed.provenance.update(loaded.facts)
    accessed.no_tokenizer = loaded.no_tokenizer
    accessed.load_s = time.perf_counter() - started
    return accessed


@dataclass(frozen=True)
class _Options:
    """How a checkpoint is loaded, whichever it is."""

    device: str
    dtype: str | None
    trust_remote_code: bool
    allow_pickle: bool
    progress: Progress


@dataclass(frozen=True)
class _Loaded:
    """A model that is not verified yet, and what the record says of where it comes from."""

    model: PreTrainedModel
    tokenizer: Any | None
    checkpoint: Checkpoint
    facts: dict[str, Any]
    no_tokenizer: str | None = None
    """Why there is none."""


def _loaded(name_or_path: str | Path | None, revision: str | None, options: _Options) -> _Loaded:
    checkpoint = find_checkpoint(name_or_path, revision=revision, allow_pickle=options.allow_pickle)
    with explained(checkpoint, options.trust_remote_code):
        checkpoint = pinned(checkpoint)
    config = read_config(checkpoint, options.trust_remote_code)
    refuse_unsuitable(config, checkpoint.name)
    dtype = _resolve_dtype(options.dtype, options.device)
    with explained(checkpoint, options.trust_remote_code):
        checkpoint = fetched(checkpoint, config, options.allow_pickle, options.progress)
    stored = read_stored(checkpoint.name, checkpoint.weights)
    method = quantisation_method(config)
    check_quantised(checkpoint.name, stored, method)
    check_memory(checkpoint, stored, dtype, options.device)
    if stored is not None:
        check_config_sizes(config, checkpoint.name, stored)
    how = {"device": options.device, "trust_remote_code": options.trust_remote_code}
    model = read_model(checkpoint, config, dtype, **how, allow_pickle=options.allow_pickle)
    # Before its files are hashed, those of the tokenizer among them.
    odd = checkpoint.unknown_split
    tokenizer, why = read_tokenizer(checkpoint, options.trust_remote_code) if odd is None else (None, odd)
    facts = checkpoint.provenance() | ({} if method is None else {"dequantised_from": method})
    return _Loaded(model, tokenizer, checkpoint, facts, why)


def _adapted(adapter: Adapter, base: str | Path | None, options: _Options) -> _Loaded:
    """The adapter's base with the adapter merged into it."""
    named = adapter.base if base is None else base
    # Which one of a hub model it adapts; a folder has no revisions.
    revision = adapter.base_revision if named == adapter.config.get(BASE) and is_hub_id(named) else None
    try:
        if find_adapter(named, revision=revision, allow_pickle=options.allow_pickle) is not None:
            raise ModelError("It is an adapter itself; expected a whole model.")
        loaded = _loaded(named, revision, options)
    except ModelError as error:
        raise ModelError(
            f"'{adapter.name}' is an adapter of '{named}', which cannot be loaded: {error} Another base: --base MODEL."
        ) from error
    facts = {**loaded.facts, "name": adapter.name, "base": loaded.facts["name"], "adapter": adapter.provenance()}
    tokenizer, why = _adapters_tokenizer(adapter, loaded)
    return _Loaded(merged(loaded.model, adapter).eval(), tokenizer, loaded.checkpoint, facts, why)


def _adapters_tokenizer(adapter: Adapter, base: _Loaded) -> tuple[Any | None, str | None]:
    """The one that lies beside it, else the base's; and where there is none, why."""
    source, local = (str(adapter.folder), adapter.folder) if adapter.commit is None else (adapter.name, None)
    own = Checkpoint(adapter.name, source, local, adapter.revision, commit=adapter.commit)
    tokenizer, why = read_tokenizer(own, trust_remote_code=False)
    beside = any(path.name.startswith(VOCABULARIES) for path in adapter.folder.iterdir())
    return (tokenizer, why) if tokenizer is not None or beside else (base.tokenizer, base.no_tokenizer)


def _accessed(loaded: _Loaded, *, keep: bool, verify: bool) -> AccessedModel:
    """The model with the verification that held for its checkpoint before, or one that is made now and kept."""
    key = checkpoint_key(loaded.facts, loaded.model) if keep else None
    before = None if key is None or verify else read_passed(key)
    if before is not None:
        remember(loaded.model, before)
    accessed = _explained_access(loaded, verify)
    passed = remembered(loaded.model)
    if key is not None and before is None and passed is not None:
        write_passed(key, passed)
    return accessed


def _explained_access(loaded: _Loaded, verify: bool) -> AccessedModel:
    """`access`, where a config that loads but does not run is the checkpoint's fault and not ours."""
    checkpoint = loaded.checkpoint
    try:
        return access(loaded.model, loaded.tokenizer, path=checkpoint.folder, verify=verify)
    except (SpikesinkError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"'{checkpoint.name}' loads, but cannot run {PROBE_TOKENS} tokens "
            f"({type(error).__name__}: {short(error)}). "
            "Its config.json is broken, or asks for something that spikesink does not know."
        ) from error


def access(
    model: nn.Module, tokenizer: Any | None = None, *, path: Path | None = None, verify: bool = False
) -> AccessedModel:
    """Find and verify the residual blocks of a model that is already in memory, also one in a wrapper.

    The same object is verified once, and again after its config, modules, hooks or weights have changed (`state_of` of
    `spikesink.access.passed` says what is seen), or always with `verify`. Raises UnsupportedModelError where no layout
    fits and VerificationError where none holds numerically.
    """
    model = unwrapped(model)
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} (model type '{model.config.model_type}') computes attention outside transformers' "
            "attention registry, so its attention cannot be measured exactly. Refused rather than guessed."
        )
    before = None if verify else remembered(model)
    refusals: list[VerificationError] = []
    for layout, layers in enumerate(find_blocks(model)):
        accessed = AccessedModel(model, tokenizer, path, layers, verified_before=before is not None)
        if before is None:
            try:
                passed = Passed(layout, verify_layers(accessed))
            except VerificationError as error:
                refusals.append(error)
                continue
            remember(model, passed)
        elif layout == before.layout:
            passed = before
        else:
            continue
        accessed.provenance.update(_facts(accessed), verification=dict(passed.verification))
        return accessed
    if not refusals:
        # What was kept names a layout that the model does not have.
        return access(model, tokenizer, path=path, verify=True)
    raise refusals[0]


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The causal LM inside what wraps it: `DataParallel` and its like, `torch.compile`, a `PeftModel`.

    Raises UnsupportedModelError for adapters that are no part of the model itself, and for what holds no causal LM.
    """
    outermost = type(model).__name__
    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            _refuse_prompt_learning(model)
            adapted: Any = model
            inner = adapted.get_base_model()
        else:
            inner = getattr(model, "module", getattr(model, "_orig_mod", None))
        if not isinstance(inner, nn.Module):
            raise UnsupportedModelError(
                f"Got a model of type {outermost}; expected a Hugging Face causal LM (...ForCausalLM), also in "
                "DataParallel, torch.compile or a PeftModel."
            )
        model = inner
    return model


def _refuse_prompt_learning(model: Any) -> None:
    for config in model.peft_config.values():
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"The adapter is of type {getattr(config.peft_type, 'value', config.peft_type)!s}: it puts vectors "
                "of its own before the tokens or their keys, so that the first token is not the first one. Measure "
                "the base model, or an adapter that changes weights (LoRA, DoRA, IA3)."
            )


def _facts(accessed: AccessedModel) -> dict[str, Any]:
    return {
        "model_type": accessed.config.model_type,
        "architecture": type(accessed.model).__name__,
        "dtype": str(accessed.dtype).removeprefix("torch."),
        "device": str(accessed.device),
        "layers": accessed.n_layers,
        "attention_layers": len(accessed.attending),
        "d_model": accessed.d_model,
        "vocab_size": accessed.vocab_size,
        "arrangement": "parallel" if accessed.parallel else "post_norm" if accessed.post_norm else "sequential",
    }


def _resolve_device(device: str | None) -> str:
    """The device to load on, or `auto`. Raises ModelError for one that this machine does not have."""
    if device == "auto":
        return device
    device = "cuda" if device == "gpu" else device
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if device is None:
        return "cuda" if len(there) > 1 else "cpu"
    try:
        # Not every device is a GPU that torch counts (mps, xpu): what holds a tensor is there.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"Device '{device}' is not one of this machine, which has "
            f"{', '.join(there)}. Leave --device out, or use one of these or auto."
        ) from error
    return device


def _resolve_dtype(dtype: str | None, device: str) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device == "cpu" else "auto"
    return DTYPES[requirement.dtype_name(dtype)]
