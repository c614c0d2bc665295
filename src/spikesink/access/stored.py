"""The tensors in a checkpoint's weight files, compared with the model that is built of them: each is accounted for.

transformers fills what a checkpoint lacks with random numbers, leaves out what the model has no place for, and reads
integers as if they were the weights. None of it may be measured. Of its config, what would change the function of other
architectures reaches this one or is refused.
"""

import inspect
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from spikesink.access.gguf_header import GgufHeader
from spikesink.errors import ModelError, UnsupportedModelError

WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
"""Files of a whole model: safetensors, and the pickles of old ones."""
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

CHANGING = {
    "sliding_window": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "clip_qkv": None,
    "alibi": None,
    "use_parallel_residual": None,
    "query_pre_attn_scalar": None,
    "attention_multiplier": None,
    "partial_rotary_factor": 1.0,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
}
"""Keys of a config that change what some architecture computes but no shape (a wrong size is seen anyway), with the
value that changes nothing, beside null, false and 0."""


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


def check_config_keys(name: str, config: Any, text: Any, stored: dict[str, Any]) -> None:
    """Refuse a config.json with a key that changes other architectures, of which this one makes nothing.

    config, text: as built, the whole and its text decoder's. stored: the file's content. Keys that are neither known to
    the architecture nor in CHANGING are not looked at. Raises UnsupportedModelError, ModelError.
    """
    part = next((key for key, value in vars(config).items() if value is text), None)
    if not isinstance(text, PreTrainedConfig):
        raise UnsupportedModelError(
            f"The config.json of '{name}' has a {part}, for which its model type '{config.model_type}' has no place. "
            "Give a checkpoint whose config.json is of one model."
        )
    said = stored if part is None else stored.get(part)
    if not isinstance(said, dict):
        # Left to the class.
        return
    _check_rotation(name, text, said)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        # It has code of its own, or is refused for what it is.
        return
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    code = "".join(inspect.getsource(sys.modules[kind.__module__]) for kind in (type(text), model))
    for key, neutral in CHANGING.items():
        value = said.get(key)
        has = hasattr(type(text), key) or key in text.attribute_map
        # What is no field may still be asked for by the model's code.
        if not value or value == neutral or has or re.search(rf"\b{key}\b", code):
            continue
        if not _is_neutral(key, value, text, said):
            raise ModelError(
                f"The config.json of '{name}' says {key} = {str(value)[:100]}, which '{text.model_type}' does not have "
                "in transformers; measuring without it would be wrong. Use config and weights of the same model, or "
                "take the key out if the model was trained without."
            )


def _is_neutral(key: str, value: Any, text: Any, said: Mapping[str, Any]) -> bool:
    """Whether the model computes the same without what this key says."""
    if not isinstance(value, int | float):
        return False
    if key == "sliding_window":
        positions = getattr(text, "max_position_embeddings", None)
        return said.get("use_sliding_window") is False or bool(positions and value >= positions)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    usual = {"query_pre_attn_scalar": width, "attention_multiplier": width**-0.5}
    return key in usual and math.isclose(value, usual[key], rel_tol=1e-5)


def _check_rotation(name: str, text: Any, said: Mapping[str, Any]) -> None:
    """Refuse what is said of the rotation beside something else that is taken in its place. Raises ModelError."""
    taken = getattr(text, "rope_parameters", None)
    if not isinstance(taken, dict):
        return
    claims = {"rope_theta": said.get("rope_theta")}
    if said.get("rope_scaling") and isinstance(said.get("rope_parameters"), dict):
        # What it was called before transformers 5, which then wins.
        claims |= said["rope_parameters"]
    for key, value in claims.items():
        got = [part[key] for part in (taken, *taken.values()) if isinstance(part, dict) and key in part]
        # Of layers with different rotations each has its own.
        if value is None or isinstance(value, dict) or not got:
            continue
        if value not in got:
            raise ModelError(
                f"The config.json of '{name}' says {key} = {str(value)[:100]}, and in another place "
                f"{' or '.join(map(str, got))}, which transformers takes (rope_parameters before rope_theta, "
                "rope_scaling before both); keep the right one."
            )


def check_tied(name: str, model: Any) -> None:
    """Refuse weights that the config ties and that are stored, and loaded, as others. Raises ModelError."""
    tied = getattr(model, "get_expanded_tied_weights_keys", None)
    untied = set() if tied is None else set(tied(all_submodels=True)) - set(model.all_tied_weights_keys)
    if untied:
        raise ModelError(
            f"The config.json of '{name}' ties the head to the embedding (tie_word_embeddings), but its weights store "
            f"another '{min(untied)}'. Set tie_word_embeddings to false there if that one is meant, else take it out "
            "of the weights."
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


def weight_names(named: str | None, allow_pickle: bool) -> tuple[str, ...]:
    """The names that a model's weights or their index may have, the one first that the loader takes first."""
    if named:
        return (named,)
    return WEIGHTS if allow_pickle else WEIGHTS[:2]


def picked_weights(folder: Path, named: str | None, allow_pickle: bool) -> list[Path]:
    """The weight files of a folder that the loader takes, the index first if there is one; none where it has none.

    named: the file that the config names itself (`transformers_weights`). Others beside them do not count.
    """
    names = weight_names(named, allow_pickle)
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
