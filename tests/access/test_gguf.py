"""GGUF files give the numbers of the model they were made of: every key and tensor is applied, or refused by name."""

import numpy as np
import pytest
import torch
from gguf_of import VOCABULARY, keys_of, tensors_of, write_gguf
from tiny import tiny

from spikesink import scan
from spikesink.access import access, load
from spikesink.access.gguf_header import GgufHeader
from spikesink.errors import ModelError

IDS = torch.randint(0, len(VOCABULARY), (3, 40), generator=torch.Generator().manual_seed(1))
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN_KEYS = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SHARDS = [f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))


def model_of(family, **changes):
    return tiny(family, vocab_size=len(VOCABULARY), **changes)


def numbers(accessed):
    summary = scan(accessed, IDS).summary
    return summary.perplexity, summary.spike, summary.sink_ratio_sun2026


def file_of(path, model, architecture, keys=None, extra=None, drop=""):
    tensors = {name: values for name, values in tensors_of(model, architecture).items() if not drop or drop not in name}
    return write_gguf(path, architecture, keys_of(model, architecture) | (keys or {}), tensors | (extra or {}))


@pytest.mark.parametrize(
    ("architecture", "family", "keys", "changes"),
    [
        ("llama", "llama", {"other.note": "x", "general.size_label": "0.1M"}, {}),
        ("qwen2", "qwen2", {}, {}),
        ("qwen3", "qwen3", {}, {}),
        ("gpt2", "gpt2", {}, {}),
        ("gemma3", "gemma3_text", {}, {"query_pre_attn_scalar": 6, "layer_types": ["sliding_attention"] * 3}),
        ("llama", "llama", LINEAR_KEYS, {"rope_parameters": LINEAR}),
        ("llama", "llama", {"rope.scale_linear": 4.0}, {"rope_parameters": LINEAR}),
        ("qwen2", "qwen2", YARN_KEYS, {"rope_parameters": YARN}),
        ("llama", "llama", YARN_KEYS, {"rope_parameters": YARN}),
        ("llama", "llama", {}, {"attention_bias": True, "mlp_bias": True}),
        ("gemma2", "gemma2", {}, {"attn_logit_softcapping": 2.5, "query_pre_attn_scalar": 6}),
        ("gemma2", "gemma2", {}, {"final_logit_softcapping": 7.0, "query_pre_attn_scalar": 6}),
        ("gemma2", "gemma2", {"attention.scale": 12**-0.5}, {"query_pre_attn_scalar": 12}),
        ("qwen3", "qwen3", {}, {"head_dim": 10}),
    ],
)
def test_the_file_gives_the_numbers_of_its_model(tmp_path, architecture, family, keys, changes):
    model = model_of(family, **changes)
    path = file_of(tmp_path / "made.gguf", model, architecture, keys)
    assert numbers(load(path)) == pytest.approx(numbers(access(model)), rel=1e-5)


def test_rotation_factors_of_llama_3(tmp_path):
    """`rope_freqs.weight` is what each frequency is divided by; without it the numbers are others."""
    model = model_of("llama", rope_parameters=LLAMA3)
    plain = 10_000.0 ** -(torch.arange(0, 6, 2) / 6)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    assert factors.min() == pytest.approx(1) and factors.max() == pytest.approx(8)
    path = file_of(tmp_path / "made.gguf", model, "llama", extra={"rope_freqs.weight": factors})
    assert numbers(load(path)) == pytest.approx(numbers(access(model)), rel=1e-5)
    without = file_of(tmp_path / "without.gguf", model, "llama")
    assert numbers(load(without))[0] != pytest.approx(numbers(access(model))[0], rel=1e-3)


@pytest.mark.parametrize(("drop", "first"), [("blk.1.", "layers.1."), ("blk.1.ffn_down", "layers.1.mlp.down_proj")])
def test_missing_tensors_are_never_random(tmp_path, drop, first):
    path = file_of(tmp_path / "made.gguf", model_of("llama"), "llama", drop=drop)
    with pytest.raises(ModelError, match=rf"lacks \d of the model's weights \(first: model\.{first}.*would be random"):
        load(path)


@pytest.mark.parametrize(
    ("keys", "extra", "named"),
    [
        ({"attention.something": 3}, {}, r"llama\.attention\.something = 3"),
        ({"attention.clamp_kqv": 8.0}, {}, r"llama\.attention\.clamp_kqv = 8"),
        ({"attention.scale": 0.3}, {}, r"llama\.attention\.scale"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, {}, r"rope\.scaling\.type = longrope"),
        ({"rope.dimension_count": 4}, {}, r"rope\.dimension_count = 4"),
        ({"attn_logit_softcapping": 30.0}, {}, r"attn_logit_softcapping = 30"),
        ({"attention.sliding_window": 5}, {}, r"attention\.sliding_window = 5"),
        ({"attention.head_count": 2}, {}, r"attention\.head_count|shape|key_length"),
        ({}, {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, r"blk\.0\.attn_sinks\.weight"),
        ({}, {"blk.3.ffn_up.weight": np.ones((40, 24), np.float32)}, r"blk\.3\.ffn_up\.weight"),
        ({}, {"blk.0.attn_q_norm.weight": np.ones(6, np.float32)}, r"blk\.0\.attn_q_norm\.weight"),
    ],
)
def test_what_does_not_reach_the_model_is_refused_by_name(tmp_path, keys, extra, named):
    path = file_of(tmp_path / "made.gguf", model_of("llama"), "llama", keys, extra)
    with pytest.raises(ModelError, match=named):
        load(path)


def test_a_split_file_is_read_whole(tmp_path):
    model = model_of("llama")
    tensors = list(tensors_of(model, "llama").items())
    for number, part in enumerate((tensors[:11], tensors[11:])):
        keys = {} if number else keys_of(model, "llama")
        write_gguf(tmp_path / SHARDS[number], "llama", keys, dict(part), split=(number, 2, len(tensors)))
    expected = numbers(access(model))
    for shard in SHARDS:
        accessed = load(tmp_path / shard)
        assert numbers(accessed) == pytest.approx(expected, rel=1e-5)
        assert accessed.tokenizer is not None
    (tmp_path / SHARDS[1]).rename(tmp_path / "away.gguf")
    with pytest.raises(ModelError, match=rf"one of 2 shards, and '{SHARDS[1]}' is not there"):
        load(tmp_path / SHARDS[0])
    with pytest.raises(ModelError, match="not named like one"):
        load(tmp_path / "away.gguf")


def test_shards_of_two_files(tmp_path):
    model = model_of("llama")
    tensors = list(tensors_of(model, "llama").items())
    for number, part in enumerate((tensors[:11], tensors[12:])):
        keys = {} if number else keys_of(model, "llama")
        write_gguf(tmp_path / SHARDS[number], "llama", keys, dict(part), split=(number, 2, len(tensors)))
    with pytest.raises(ModelError, match=rf"hold {len(tensors) - 1} tensors, expected {len(tensors)}"):
        load(tmp_path / SHARDS[0])


@pytest.mark.parametrize(("pre", "known"), [("llama-bpe", True), ("smollm", True), ("gpt-2", True), ("frob", False)])
def test_a_way_to_split_text_that_is_not_known(tmp_path, pre, known):
    path = file_of(tmp_path / "made.gguf", model_of("llama"), "llama", {"tokenizer.ggml.pre": pre})
    accessed = load(path)
    # Ids are measured all the same.
    assert numbers(accessed)[0] > 1
    assert (accessed.tokenizer is not None) is known
    assert known or "tokenizer.ggml.pre = frob" in accessed.no_tokenizer


def test_what_lies_beside_a_file_is_not_read(tmp_path):
    path = file_of(tmp_path / "made.gguf", model_of("llama"), "llama")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere", "peft_type": "LORA"}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    accessed = load(path)
    assert accessed.tokenizer.chat_template is None
    assert sorted(file.name for file in accessed.path.iterdir() if file.is_symlink()) == []


def test_a_file_without_a_matrix_has_no_quantisation():
    with pytest.raises(ModelError, match="holds no matrix"):
        GgufHeader({}, ()).quantisation  # noqa: B018
