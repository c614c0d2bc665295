"""Random tiny checkpoints with one tensor or key added, dropped, renamed or retyped: none passes for the model."""

import json
import random

import numpy as np
import pytest
import torch
from gguf_of import VOCABULARY, keys_of, tensors_of, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny

from spikesink.access import load
from spikesink.errors import SpikesinkError

IDS = torch.randint(0, len(VOCABULARY), (2, 24), generator=torch.Generator().manual_seed(1))
FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gpt2": "gpt2"}
"""Architectures of GGUF, by model type of a folder."""
CHANGES = (
    "add a tensor",
    "drop a tensor",
    "rename a tensor",
    "retype a tensor",
    "add a key",
    "drop a key",
    "change a key",
)
IRRELEVANT = {"context_length", "max_position_embeddings", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Keys that may be any and change no number."""


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def outcome(path):
    """The logits of what is there, or None where it is refused."""
    try:
        return logits(load(path).model)
    except SpikesinkError:
        return None


@pytest.fixture(scope="module")
def models():
    return {family: tiny(family, vocab_size=len(VOCABULARY), query_pre_attn_scalar=6) for family in FAMILIES}


def changed_tensors(tensors, change, rng):
    """Tensors with one change, of any kind that libraries write; numpy or torch."""
    tensors = dict(tensors)
    name = rng.choice(sorted(tensors))
    if change == "add a tensor":
        extra = rng.choice(
            [name.replace("weight", "bias_2"), name.replace("weight", "sinks"), name.replace("0", "7"), "x"]
        )
        if extra not in tensors:
            tensors[extra] = tensors[name] + 0
    elif change == "drop a tensor":
        del tensors[name]
    elif change == "rename a tensor":
        tensors[name.replace("weight", "wieght").replace("bias", "bais")] = tensors.pop(name)
    return tensors, name


@settings(max_examples=12, deadline=None, derandomize=True)
@given(family=st.sampled_from(sorted(FAMILIES)), change=st.sampled_from(CHANGES), seed=st.integers(0, 10**6))
def test_folders(models, tmp_path_factory, family, change, seed):
    folder, rng = tmp_path_factory.mktemp("made") / "m", random.Random(seed)
    models[family].save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors, name = changed_tensors(load_file(path), change, rng)
    if change == "retype a tensor":
        kind = rng.choice([torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
        tensors[name] = tensors[name].to(kind)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if change in ("drop a key", "change a key"):
        # A key that says something about the shapes: what it leaves over, or lacks, must be seen.
        sizes = [
            key
            for key in ("num_hidden_layers", "n_layer", "tie_word_embeddings", "mlp_bias", "attention_bias")
            if key in config
        ]
        key = rng.choice(sizes)
        value = config.pop(key)
        if change == "change a key":
            config[key] = (not value) if isinstance(value, bool) else value - 1
        (folder / "config.json").write_text(json.dumps(config))
    if change == "add a key":
        config["quantization_config"] = {"quant_method": rng.choice(["gptq", "awq", "new"]), "bits": 4}
        (folder / "config.json").write_text(json.dumps(config))
    right, made = logits(models[family]), outcome(folder)
    assert made is None or torch.allclose(made, right, rtol=1e-4, atol=1e-4), (family, change, name)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(family=st.sampled_from(sorted(FAMILIES)), change=st.sampled_from(CHANGES), seed=st.integers(0, 10**6))
def test_gguf_files(models, tmp_path_factory, monkeypatch_module, family, change, seed):
    folder, rng = tmp_path_factory.mktemp("made"), random.Random(seed)
    architecture, model = FAMILIES[family], models[family]
    monkeypatch_module.setenv("SPIKESINK_CACHE", str(folder / "cache"))
    tensors, name = changed_tensors(tensors_of(model, architecture), change, rng)
    keys = keys_of(model, architecture)
    if change == "retype a tensor":
        tensors[name] = tensors[name].astype(rng.choice([np.int8, np.int16, np.int32]))
    key = rng.choice(sorted(keys))
    if change == "add a key":
        key = rng.choice(
            ["attention.new_thing", "rope.scaling.type", "attention.clamp_kqv", "expert_count", "logit_scale"]
        )
        keys[key] = "yarn" if key == "rope.scaling.type" else 3.0 if "clamp" in key or "scale" in key else 3
    elif change == "drop a key":
        del keys[key]
    elif change == "change a key":
        keys[key] = keys[key] * 2
    path = write_gguf(folder / "made.gguf", architecture, keys, tensors)
    right, made = logits(model), outcome(path)
    same = made is not None and torch.allclose(made, right, rtol=1e-4, atol=1e-4)
    if change in ("drop a key", "change a key"):
        # Another number may be another model; it is then a model that differs, and never this one by default.
        assert made is None or not same or key in IRRELEVANT or _by_default(key), (family, change, key)
    else:
        assert made is None or same, (family, change, name, key)


def _by_default(key):
    """Keys whose absence means what this model has, and doubled change nothing at these lengths."""
    return key in ("rope.freq_base", "attention.sliding_window", "attention.value_length", "attention.key_length")


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
