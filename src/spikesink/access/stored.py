"""The tensors in a checkpoint's weight files, compared with the model that is built of them: each is accounted for.

transformers fills what a checkpoint lacks with random numbers, leaves out what the model has no place for, and reads
integers as if they were the weights. None of it may be measured.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from spikesink.access.gguf_header import GgufHeader
from spikesink.errors import ModelError, UnsupportedModelError

SPARE_ELEMENTS = 2**26
"""What a model may hold beyond twice its stored weights: masks and tables of positions, which no checkpoint stores."""
PLAIN = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that hold weights as they are, in safetensors' names."""
BESIDE_THE_MODEL = re.compile(
    r"rotary\w*\.(original_inv_freq|inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)(attn|attention|self_attn)\.(bias|masked_bias|causal_mask|embed_positions)$"
    r"|(^|\.)(encoder|decoder)\.version$"
    r"|(^|\.)[kv]_scale$"
    r"|\.weight\.quant_state\.bitsandbytes__\w+$"
    r"|(^|\.)position_ids$|num_batches_tracked$"
    r"|^(v_head|score|classifier|qa_outputs|medusa_heads?)\."
    r"|(^|\.)(pooler|cls\.seq_relationship)\."
    r"|(^|\.)(mtp|nextn)([._]|$)"
)
"""Stored tensors that a model may leave out: tables made anew, causal masks, scales of a quantised cache, heads on top,
further tokens' layers."""
SCALE = re.compile(r"[^.]*(scale|absmax|SCB)[^.]*$")
"""What quantised weights are multiplied with, beside them in the same module."""
OTHER_SENSES = re.compile(
    r"(^|[._])(vision|visual|image|audio|multi_?modal|mm|speech|talker|code2wav|token2wav)([._]|$)"
)
"""Of a multimodal checkpoint, whose text decoder is measured alone."""


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a weight file's header."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """As safetensors calls it: F32, BF16, I8, F8_E4M3."""


@dataclass(frozen=True)
class Stored:
    """What lies in a checkpoint's weight files."""

    tensors: int
    elements: int
    quantised: tuple[StoredTensor, ...] = ()
    """Those whose numbers are no weights: integers, and floats of a byte or less, which need a scale."""
    unscaled: tuple[StoredTensor, ...] = ()
    """Of these, the ones beside which no scale is stored."""

    @classmethod
    def of_header(cls, header: GgufHeader) -> "Stored":
        return cls(len(header.tensors), header.elements)

    @classmethod
    def of(cls, tensors: Sequence[StoredTensor]) -> "Stored":
        odd = tuple(each for each in tensors if each.kind not in PLAIN and not BESIDE_THE_MODEL.search(each.name))
        scaled = {each.name.rpartition(".")[0] for each in tensors if SCALE.search(each.name)}
        # The scale of `x.weight` is `x.SCB`, or `x.weight.absmax`.
        bare = tuple(each for each in odd if not {each.name, each.name.rpartition(".")[0]} & scaled)
        return cls(len(tensors), sum(math.prod(each.shape) for each in tensors), odd, bare)


def read_stored(name: str, files: Sequence[Path]) -> Stored | None:
    """From the headers of safetensors files; None where there are none. Raises ModelError for what cannot be read."""
    from safetensors import safe_open

    tensors = []
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                    part = weights.get_slice(key)
                    tensors.append(StoredTensor(key, tuple(part.get_shape()), str(part.get_dtype())))
        # safetensors has an exception of its own.
        except Exception as error:
            raise ModelError(
                f"'{path.name}' of '{name}' cannot be read ({error}): truncated or corrupt; download it again."
            ) from error
    return Stored.of(tensors) if tensors else None


def check_config_sizes(config: Any, name: str, stored: Stored) -> None:
    """Refuse a config whose model is far larger than the weights. Raises ModelError.

    What a checkpoint lacks would be made up, at whatever size the config names: a config of a few bytes could fill the
    memory, or build layers for hours, before its weights are found missing. Counted on the meta device, without memory,
    after layers were counted, which build one by one.
    """
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > stored.tensors:
        raise ModelError(
            f"The config of '{name}' names {layers:,} layers, but its weights are {stored.tensors:,} tensors. Use "
            "weights and config of the same model."
        )
    # Numbers of four bits lie two in a byte.
    elements = stored.elements * (2 if stored.quantised else 1)
    described = _elements(config)
    if described is not None and described > 2 * elements + SPARE_ELEMENTS:
        raise ModelError(
            f"The config of '{name}' describes a model of {described:,} numbers, but its weights hold "
            f"{stored.elements:,}. Use weights and config of the same model."
        )


def check_loaded(what: str, info: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse what was loaded with weights missing, of another shape, or left over, the first named. Raises ModelError.

    what: the checkpoint, as a sentence begins. info: transformers' account of the loading. config: as stored.
    """
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise ModelError(
            f"{what} lacks {len(missing)} of the model's weights (first: {missing[0]}); they would be random. Use a "
            "complete checkpoint."
        )
    for name, *shapes in sorted(info.get("mismatched_keys", ())):
        stored, expected = (tuple(shape) for shape in shapes)
        raise ModelError(
            f"{what} has '{name}' of shape {stored}; its config.json makes it {expected}. Use weights and config of "
            "the same model."
        )
    left = sorted(name for name in map(str, info["unexpected_keys"]) if not _may_be_left(name, config))
    if left:
        raise ModelError(
            f"{what} stores {len(left)} weights that its config.json makes no use of (first: {left[0]}); measuring "
            "without them would be wrong. Use weights and config of the same model."
        )


def check_quantised(name: str, stored: Stored | None, method: str | None) -> None:
    """Refuse weights that are stored quantised by a method that is not named, or without what they are multiplied with.

    Raises UnsupportedModelError.
    """
    if stored is not None and stored.unscaled and method is not None:
        first = stored.unscaled[0]
        raise UnsupportedModelError(
            f"'{name}' stores {len(stored.unscaled)} weights quantised ({method}) without their scales (first: "
            f"{first.name}, {first.kind}); they would be taken for the weights. Use the unquantised checkpoint."
        )
    if stored is not None and stored.quantised and method is None:
        first = stored.quantised[0]
        raise UnsupportedModelError(
            f"'{name}' stores {len(stored.quantised)} weights as numbers that are not the weights (first: "
            f"{first.name}, {first.kind}), and its config.json does not say by which method they were quantised. Use "
            "the unquantised checkpoint."
        )


def _may_be_left(name: str, config: dict[str, Any]) -> bool:
    """Whether the model computes the same without this stored tensor."""
    if BESIDE_THE_MODEL.search(name):
        return True
    if any(key in config for key in ("vision_config", "audio_config", "text_config")) and OTHER_SENSES.search(name):
        return True
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    text = config.get("text_config") or config
    further = text.get("num_nextn_predict_layers") or text.get("num_mtp_layers") or 0
    layers = text.get("num_hidden_layers")
    # Layers that predict further tokens come behind the others.
    return layer is not None and isinstance(layers, int) and layers <= int(layer[1]) < layers + int(further)


def _elements(config: Any) -> int | None:
    """Parameters and buffers of the config's model; None where it does not build, which loading will explain."""
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        # Shared weights are stored once, however many layers use them.
        model.tie_weights()
    except Exception:
        return None
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def picked_weights(folder: Path, named: str | None, allow_pickle: bool) -> list[Path]:
    """The weight files of a folder that the loader takes, the index first if there is one; none where it has none.

    named: the file that the config names itself (`transformers_weights`). Others beside them do not count.
    """
    names = [named] if named else ["model.safetensors", "model.safetensors.index.json"]
    if allow_pickle and not named:
        names += ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    first = next((folder / name for name in names if (folder / name).is_file()), None)
    if first is None:
        return []
    shards = shards_of(first, allow_pickle) if first.name.endswith(".index.json") else []
    return [first, *(folder / shard for shard in shards)]


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
