"""GGUF files as folders of float32 safetensors: all shards of a split file, every key and tensor accounted for."""

import re
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from spikesink.access.gguf_facts import GgufFacts
from spikesink.access.gguf_header import GgufHeader, read_header
from spikesink.access.quantised import forget_quantisation
from spikesink.access.stored import Stored, check_config_sizes, check_loaded
from spikesink.errors import ModelError, short

CONVERSION = 2
"""Raised whenever a file is converted to other numbers than before, so that no cache of older ones is used."""
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)


def shards(path: Path) -> dict[Path, GgufHeader]:
    """The headers of all files of a GGUF, itself alone if it is not split. Raises ModelError where one is missing."""
    header = read_header(path)
    count = header.keys.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return {path: header}
    matched = SHARD.match(path.name)
    if matched is None or int(matched["count"]) != count:
        raise ModelError(
            f"The GGUF file '{path}' is one of {count} shards, but is not named like one "
            f"(NAME-00001-of-{count:05d}.gguf), so the others cannot be found. Give the files their names again."
        )
    paths = [path.with_name(f"{matched['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for shard in paths:
        if not shard.is_file():
            raise ModelError(f"The GGUF file '{path}' is one of {count} shards, and '{shard.name}' is not there.")
    return {shard: read_header(shard) for shard in paths}


def dequantise(paths: list[Path], folder: Path) -> None:
    """Write the float32 checkpoint and its tokenizer into an empty folder. Raises ModelError, OSError for the disk."""
    # Away from its neighbours: transformers would take an adapter_config.json beside it for its own.
    path = folder / "whole.gguf"
    if len(paths) > 1:
        _join(paths, path)
    else:
        path.symlink_to(paths[0].resolve())
    header = read_header(path)
    facts = GgufFacts(paths[0].name, header)
    try:
        config = _config(path, facts, header)
        model = _model(path, facts, config)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"The GGUF file '{paths[0].name}' cannot be read ({type(error).__name__}: {short(error)}): truncated, "
            "corrupt or of an architecture that transformers cannot de-quantise."
        ) from error
    path.unlink()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # Each library has its own exception for a full disk.
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _config(path: Path, facts: GgufFacts, header: GgufHeader) -> PreTrainedConfig:
    """The config that says all that the file says."""
    read, _ = PreTrainedConfig.get_config_dict(str(path.parent), gguf_file=path.name)
    model_type = read.pop("model_type")

    def built(changes: dict[str, Any]) -> PreTrainedConfig:
        # Rotation has one place in a config; the older spelling beside it would win.
        plain = {key: value for key, value in read.items() if not ("rope_parameters" in changes and "rope" in key)}
        return AutoConfig.for_model(model_type, **{**plain, **changes})

    layers = facts.keys.get("block_count")
    if isinstance(layers, int) and layers > len(header.tensors):
        # Before a list of so many is made.
        raise ModelError(
            f"The GGUF file '{facts.name}' names {layers:,} layers, but holds {len(header.tensors):,} tensors; "
            "truncated or corrupt."
        )
    config = built({})
    changes = facts.changes(config)
    if changes:
        config = built(changes)
    factors = facts.rope_factors(lambda name: _values(path, name), config)
    left = facts.changes(config)
    if left:
        raise ModelError(
            f"The GGUF file '{facts.name}' says what '{model_type}' does not take in transformers: "
            f"{next(iter(left))} = {str(next(iter(left.values())))[:100]}. Use the original checkpoint."
        )
    check_config_sizes(config, facts.name, Stored.of_header(header))
    return built({**changes, **factors}) if factors else config


def _model(path: Path, facts: GgufFacts, config: PreTrainedConfig) -> PreTrainedModel:
    # Older versions have no such config: they always de-quantise.
    kind = getattr(transformers, "GgufConfig", None)
    dequantised = {} if kind is None else {"quantization_config": kind(dequantize=True)}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        config=config,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **dequantised,
    )
    model, info = loaded
    facts.check_tensors(model, config.to_dict())
    check_loaded(f"The GGUF file '{facts.name}'", info, config.to_dict())
    # The weights are plain float32 now; transformers still calls the model quantised and would not save it.
    forget_quantisation(model)
    return model


def _values(path: Path, tensor: str) -> list[float]:
    """The numbers of one small tensor."""
    stored = next(each for each in gguf.GGUFReader(path).tensors if each.name == tensor)
    return [float(value) for value in gguf.dequantize(stored.data, stored.tensor_type).flatten()]


def _join(paths: list[Path], whole: Path) -> None:
    """Write the shards of a split file as one."""
    # Headers are walked before the library trusts them.
    headers = [read_header(path) for path in paths]
    readers = [gguf.GGUFReader(path) for path in paths]
    names = [tensor.name for header in headers for tensor in header.tensors]
    expected = headers[0].keys.get("split.tensors.count")
    if len(set(names)) != len(names) or (expected is not None and expected != len(names)):
        raise ModelError(
            f"The shards of '{paths[0].name}' hold {len(set(names))} tensors, expected {expected or len(names)}; are "
            "they of one file?"
        )
    writer = gguf.GGUFWriter(whole, str(headers[0].keys.get("general.architecture")))
    for field in readers[0].fields.values():
        if field.name.startswith(("GGUF.", "split.")) or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for reader in readers:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
