"""GGUF files of tiny models, written as llama.cpp's converter writes them, so that both can be measured alike."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "i n", "Ġ t")
VOCABULARY = [*SPECIAL, *bytes_to_unicode().values(), *("".join(merge.split()) for merge in MERGES)]


def tensors_of(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """The model's weights under GGUF's names, in its order."""
    names = gguf.get_tensor_name_map(_arch(architecture), model.config.num_hidden_layers)
    tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        values = weight.detach().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and "norm" in name:
            values = values + 1
        if architecture == "gpt2" and values.ndim == 2 and "wte" not in name and "wpe" not in name:
            values = values.T
        tensors[f"{names.get_name(stem)}.{suffix}"] = np.ascontiguousarray(values)
    return tensors


def keys_of(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    """What the converter says of the model, without the architecture's name in front."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if architecture == "gpt2":
        return {
            **keys,
            "feed_forward_length": config.n_inner,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    keys |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    rope = config.rope_parameters
    keys["rope.freq_base"] = float(rope["rope_theta"] if "rope_theta" in rope else rope["full_attention"]["rope_theta"])
    if architecture == "llama":
        keys["rope.dimension_count"] = head_dim
    if architecture.startswith("gemma"):
        keys["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        keys["attn_logit_softcapping"] = config.attn_logit_softcapping
        keys["final_logit_softcapping"] = config.final_logit_softcapping
    return keys


def write_gguf(
    path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, np.ndarray], split: tuple[int, ...] = ()
) -> Path:
    """A file with a byte-level tokenizer. split: (number from 0, shards, tensors in all) of a shard."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key if key.startswith(("general.", "tokenizer.", "other.")) else f"{architecture}.{key}", value)
    if split:
        for name, value in zip(("no", "count", "tensors.count"), split, strict=True):
            (writer.add_int32 if name.endswith("s.count") else writer.add_uint16)(f"split.{name}", value)
    if not split or split[0] == 0:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(VOCABULARY)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
        writer.add_token_merges(list(MERGES))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = ((bool, writer.add_bool), (str, writer.add_string), (float, writer.add_float32), (list, writer.add_array))
    next((add for kind, add in kinds if isinstance(value, kind)), writer.add_uint32)(key, value)


def _arch(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, each in gguf.MODEL_ARCH_NAMES.items() if each == name)
