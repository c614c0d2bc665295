"""The cache of verifications that passed: of a model object in memory, of a checkpoint on disk."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

import spikesink
from spikesink.atomic import cache_folder, data_sha256, write_atomically
from spikesink.records import package_versions

PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Passed:
    """What a verification that held found out."""

    layout: int
    """Which of the layouts that `find_blocks` gives is the model's, counted from 0."""
    verification: dict[str, float]
    """The largest difference of every check."""


_OF_MODELS: WeakKeyDictionary[nn.Module, tuple[Any, Passed]] = WeakKeyDictionary()
"""By model object, as long as that lives; the values refer to no part of it."""


def remembered(model: PreTrainedModel) -> Passed | None:
    """The verification that held for this object as it is now, None where there is none."""
    state, passed = _OF_MODELS.get(model, (None, None))
    return passed if state is not None and state == state_of(model) else None


def remember(model: PreTrainedModel, passed: Passed) -> None:
    """Keep it for this object as it is now; not where it cannot be told whether that changes."""
    state = state_of(model)
    if state is not None:
        _OF_MODELS[model] = (state, passed)


def state_of(model: PreTrainedModel) -> tuple[Any, ...] | None:
    """What another verification could come out differently for, to be compared; None where it cannot be told.

    The config; of every module its identity, class, that class's forward, hooks and plain attributes (not `training`);
    of every parameter and buffer its place in memory, type, shape and the number of changes in place. Not seen: a
    write through `.data` into the same memory, and a function that a forward calls and that was replaced.
    """
    parts: list[Any] = [repr(model.config.to_dict()), getattr(model.config, "_attn_implementation", None)]
    for name, module in model.named_modules():
        own = vars(module)
        if "forward" in own:
            # It may be any function, and be replaced by one at the same address.
            return None
        plain = tuple((key, value) for key, value in own.items() if isinstance(value, PLAIN) and key != "training")
        hooks = (*own["_forward_hooks"], *own["_forward_pre_hooks"])
        parts.append((name, id(module), type(module), type(module).forward, plain, hooks))
    try:
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            place = (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device, tensor.shape, tensor.stride())
            parts.append((name, place))
    except RuntimeError:
        # Tensors of inference mode count no changes, others have no memory of their own.
        return None
    return tuple(parts)


def checkpoint_key(facts: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any] | None:
    """What a verification of a loaded checkpoint holds for; None where its files were not hashed.

    facts: of the provenance; all of them count but the name. Beside them: dtype, device and processor, this package's
    code and every installed package with its version.
    """
    if not facts.get("file_sha256") and not facts.get("commit"):
        return None
    device = model.device
    return {
        "checkpoint": {key: value for key, value in facts.items() if key not in ("name", "base")},
        "dtype": str(model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "matmul": torch.get_float32_matmul_precision(),
        "versions": package_versions(),
        "code": code_sha256(),
        "installed": installed_sha256(),
    }


def read_passed(key: dict[str, Any]) -> Passed | None:
    """The verification that held for this key, None where none is kept or what is kept is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(_path(key).read_text(encoding="utf-8"))
        if content == _content(key, passed := Passed(**content["passed"])):
            return passed
    return None


def write_passed(key: dict[str, Any], passed: Passed) -> None:
    """Keep it; a cache that cannot be written costs the next run its verification, and nothing else."""
    with suppress(OSError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(_content(key, passed), indent=1).encode())


def _content(key: dict[str, Any], passed: Passed) -> dict[str, Any]:
    """What the file holds, with its own hash, so that a damaged one is not read."""
    return {"key": key, "passed": asdict(passed), "sha256": data_sha256([key, asdict(passed)])}


def _path(key: dict[str, Any]) -> Path:
    return cache_folder() / "verified" / f"{data_sha256(key)}.json"


@cache
def code_sha256() -> str:
    """Over this package's own code: a version stands for many states of it while it is worked on."""
    folder = Path(spikesink.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def installed_sha256() -> str:
    """Over names and versions of all installed packages: faster kernels are taken where they are found."""
    names = {info.name for folder in sys.path for info in Path(folder or ".").glob("*.dist-info")}
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
