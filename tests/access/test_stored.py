"""Every stored tensor is used, is known not to matter, or is refused by name; integers are never taken for weights."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny, token_ids

from spikesink import scan
from spikesink.access import load
from spikesink.errors import ModelError, UnsupportedModelError
from spikesink.report.conditions import sentence

ATTENTION = "model.layers.0.self_attn"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def saved(folder, family="llama", **changes):
    tiny(family, **changes).save_pretrained(folder)
    return folder


def config_says(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def stores(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def numbers(model):
    summary = scan(model, token_ids()).summary
    return summary.perplexity, summary.spike


@pytest.mark.parametrize(
    ("made_with", "config", "first"),
    [
        ({"mlp_bias": True}, {"mlp_bias": False}, r"layers\.0\.mlp\.down_proj\.bias"),
        ({"attention_bias": True}, {"attention_bias": False}, r"layers\.0\.self_attn\.k_proj\.bias"),
        ({}, {"num_hidden_layers": 2}, r"layers\.2\.input_layernorm\.weight"),
    ],
)
def test_weights_that_the_config_has_no_place_for(folder, made_with, config, first):
    saved(folder, **made_with)
    load(folder)
    config_says(folder, **config)
    with pytest.raises(ModelError, match=rf"makes no use of \(first: model\.{first}\)"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{ATTENTION}.q_norm.weight",
        f"{ATTENTION}.q_proj.lora_A.weight",
        f"{ATTENTION}.q_proj.lora_B.default.weight",
        f"{ATTENTION}.sinks",
        "model.layers.3.mlp.up_proj.weight",
        "model.embed_positions.weight",
    ],
)
def test_further_weights(folder, name):
    saved(folder)
    stores(folder, lambda tensors: tensors.update({name: torch.ones(24)}))
    with pytest.raises(ModelError, match=rf"makes no use of \(first: {name}\)"):
        load(folder)


def test_what_changes_nothing_is_accepted(folder):
    saved(folder, tie_word_embeddings=True, num_nextn_predict_layers=1)
    expected = numbers(load(folder))
    further = {
        f"{ATTENTION}.rotary_emb.inv_freq": torch.ones(3),
        "v_head.summary.weight": torch.ones(1, 24),
        "score.weight": torch.ones(2, 24),
        "decoder.version": torch.ones(1),
        f"{ATTENTION}.k_scale": torch.ones(1),
        f"{ATTENTION}.rotary_emb.cos_cached": torch.ones(9, 6),
        "model.layers.3.self_attn.q_proj.weight": torch.ones(24, 24),
        "mtp.layers.0.mlp.up_proj.weight": torch.ones(40, 24),
    }
    stores(
        folder, lambda tensors: tensors.update(further, **{"lm_head.weight": tensors["model.embed_tokens.weight"] + 0})
    )
    assert numbers(load(folder)) == expected


def test_masks_that_gpt2_stores_are_accepted(folder):
    saved(folder, "gpt2")
    expected = numbers(load(folder))
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 512, 512, dtype=torch.uint8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.causal_mask": torch.ones(1, 1, 9, 9, dtype=torch.bool),
    }
    stores(folder, lambda tensors: tensors.update(masks))
    assert numbers(load(folder)) == expected


def as_type(kind):
    def change(tensors):
        for name, weight in list(tensors.items()):
            if "proj" in name:
                tensors[name] = (weight * 20).to(kind)
                if kind == torch.int8:
                    tensors[name.replace("weight", "SCB")] = torch.ones(len(weight))

    return change


@pytest.mark.parametrize(
    ("kind", "called"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8"), (torch.int32, "I32")],
)
def test_numbers_that_are_not_the_weights(folder, kind, called):
    saved(folder)
    stores(folder, as_type(kind))
    with pytest.raises(
        UnsupportedModelError, match=rf"numbers that are not the weights \(first: .*proj.weight, {called}\)"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("key", "said", "method"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        pytest.param(
            "quantization_config",
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "bitsandbytes",
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is undone where installed"),
        ),
        ("quantization_config", {"quant_method": "nobody's"}, "nobody's"),
        ("compression_config", {"format": "float-quantized", "config_groups": {}}, "compressed-tensors"),
    ],
)
def test_methods_that_cannot_be_undone_are_refused_by_name(folder, key, said, method):
    saved(folder)
    stores(folder, as_type(torch.int8))
    config_says(folder, **{key: said})
    with pytest.raises(ModelError, match=rf"stored quantised \({method}\)|stores .* weights"):
        load(folder)


def quantised_fp8(folder, scales=True):
    """Blocks of 8 x 8 in fp8; returns the model with the weights that they stand for."""
    model = tiny("llama", hidden_size=32, head_dim=8, intermediate_size=64)
    model.save_pretrained(folder)
    weights = {}

    def change(tensors):
        for name, weight in list(tensors.items()):
            if "proj" in name:
                rows, columns = weight.shape
                blocks = weight.reshape(rows // 8, 8, columns // 8, 8)
                scale = blocks.abs().amax((1, 3), keepdim=True) / 448
                low = (blocks / scale).to(torch.float8_e4m3fn)
                weights[name] = (low.float() * scale).reshape(rows, columns)
                tensors[name] = low.reshape(rows, columns)
                if scales:
                    tensors[name.replace("weight", "weight_scale_inv")] = scale[:, 0, :, 0].contiguous()

    stores(folder, change)
    said = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
    config_says(folder, quantization_config=said)
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def quantised_mxfp4(folder):
    """Experts in blocks of 32 four-bit numbers, as gpt-oss has them."""
    from transformers.integrations.mxfp4 import FP4_VALUES

    model = tiny("gpt_oss", hidden_size=32, head_dim=8, intermediate_size=64)
    model.save_pretrained(folder)
    values, weights = torch.tensor(FP4_VALUES), {}

    def change(tensors):
        for name in list(tensors):
            if name.endswith(("gate_up_proj", "down_proj")):
                wide = tensors.pop(name).transpose(1, 2)
                blocks = wide.reshape(*wide.shape[:2], -1, 32)
                exponent = torch.floor(torch.log2(blocks.abs().amax(-1) / 6)) + 1
                index = (blocks[..., None] / 2 ** exponent[..., None, None] - values).abs().argmin(-1)
                weights[name] = (values[index] * 2 ** exponent[..., None]).reshape(wide.shape).transpose(1, 2)
                tensors[f"{name}_blocks"] = (index[..., 0::2] | (index[..., 1::2] << 4)).to(torch.uint8)
                tensors[f"{name}_scales"] = (exponent + 127).to(torch.uint8)

    stores(folder, change)
    config_says(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def quantised_by_channel(folder):
    """Each output channel in fp8 with a scale of its own, as compressed-tensors stores it."""
    pytest.importorskip("compressed_tensors")
    model = tiny("llama", hidden_size=32, head_dim=8, intermediate_size=64)
    model.save_pretrained(folder)
    weights = {}

    def change(tensors):
        for name, weight in list(tensors.items()):
            if "proj" in name:
                scale = weight.abs().amax(1, keepdim=True) / 448
                tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
                tensors[f"{name}_scale"] = scale
                weights[name] = tensors[name].float() * scale

    stores(folder, change)
    kind = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": kind}}
    said = {"format": "float-quantized", "config_groups": groups, "ignore": ["lm_head"]}
    said |= {"quant_method": "compressed-tensors", "quantization_status": "compressed"}
    config_says(folder, quantization_config=said)
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def quantised_by_bitsandbytes(folder, **options):
    """As bitsandbytes stores it, and the weights that its numbers stand for by our own arithmetic."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = folder.with_name("plain")
    model = tiny("llama", hidden_size=32, head_dim=8, intermediate_size=64)
    model.save_pretrained(plain)
    kind = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **options)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=kind, device_map="cpu").save_pretrained(folder)
    state, stored = model.state_dict(), load_file(folder / "model.safetensors")
    for name, numbers in stored.items():
        if numbers.dtype == torch.int8:
            scale = stored[name.replace("weight", "SCB")]
            state[name] = numbers.float() * scale[:, None] / 127
        elif numbers.dtype == torch.uint8 and name.endswith("proj.weight"):
            # Two numbers a byte, the first in its upper half; a scale for every 64.
            index = torch.stack((numbers >> 4, numbers & 15), -1).flatten().long()
            scaled = stored[f"{name}.quant_map"][index].reshape(-1, 64) * stored[f"{name}.absmax"][:, None]
            state[name] = scaled.reshape(state[name].shape)
        else:
            continue
        assert not torch.equal(state[name], model.state_dict()[name])
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 0), ({"load_in_8bit": True}, 1e-6)],
    ids=["nf4", "int8"],
)
def test_bitsandbytes_is_undone(folder, options, tolerance):
    model = quantised_by_bitsandbytes(folder, **options)
    accessed = load(folder)
    state = accessed.model.state_dict()
    for name, expected in model.state_dict().items():
        assert torch.allclose(state[name], expected, rtol=tolerance, atol=0), name
    assert numbers(accessed) == pytest.approx(numbers(model), rel=1e-5)
    assert accessed.provenance["dequantised_from"] == "bitsandbytes"
    assert {type(module) for module in accessed.model.modules() if hasattr(module, "in_features")} == {torch.nn.Linear}
    assert not hasattr(accessed.model.config, "quantization_config")
    stores(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(("absmax", "SCB"))])
    with pytest.raises(UnsupportedModelError, match=r"quantised \(bitsandbytes\) without their scales"):
        load(folder)


@pytest.mark.parametrize(
    ("made", "method"),
    [(quantised_fp8, "fp8"), (quantised_mxfp4, "mxfp4"), (quantised_by_channel, "compressed-tensors")],
)
def test_what_transformers_can_undo_is_measured_dequantised(folder, made, method):
    """The weights are the stored numbers times their scales, to the last bit."""
    model = made(folder)
    accessed = load(folder)
    assert numbers(accessed) == numbers(model)
    assert {parameter.dtype for parameter in accessed.model.parameters()} == {torch.float32}
    assert accessed.provenance["dequantised_from"] == method
    assert sentence(scan(accessed, token_ids()).provenance).endswith(f"weights from {method}.")
    assert not hasattr(accessed.model.config, "quantization_config")


def test_quantised_without_scales(folder):
    quantised_fp8(folder, scales=False)
    with pytest.raises(
        UnsupportedModelError, match=r"quantised \(fp8\) without their scales \(first: model.*F8_E4M3\)"
    ):
        load(folder)


def test_only_the_files_that_the_loader_takes_count(folder, monkeypatch):
    saved(folder)
    before = load(folder)
    save_file({"x": torch.ones(1000)}, folder / "consolidated.safetensors")
    (folder / "training_args.bin").write_bytes(b"x")
    after = load(folder)
    assert after.provenance["file_sha256"] == before.provenance["file_sha256"]
    assert numbers(after) == numbers(before)
    # 60 KB of weights are loaded; 4 KB more would be too many.
    from spikesink.access import checkpoint

    needed = 4 * sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    monkeypatch.setattr(checkpoint.psutil, "virtual_memory", lambda: type("Free", (), {"available": needed + 1000})())
    load(folder)


def test_files_that_are_no_weights(folder):
    saved(folder)
    (folder / "model.safetensors").unlink()
    for name in ("training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=r"has a config\.json but no weights"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="holds pickle weights only"):
        load(folder)


def test_a_config_that_asks_for_another_attention(folder):
    saved(folder)
    expected = numbers(load(folder))
    config_says(folder, _attn_implementation="flash_attention_2")
    assert numbers(load(folder)) == expected


def test_a_folder_may_be_called_like_a_gguf(folder):
    named = folder.with_name("x.gguf")
    saved(named)
    assert load(named).name == "x.gguf"


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("llama", {"sliding_window": 4}, r"says sliding_window = 4, which 'llama' does not have"),
        ("llama", {"attn_logit_softcapping": 1.0}, "attn_logit_softcapping = 1.0"),
        ("llama", {"logit_scale": 5.0}, "logit_scale = 5.0"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("qwen2", {"residual_multiplier": 0.5}, "residual_multiplier = 0.5, which 'qwen2' does not have"),
        ("llama", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar = 24"),
        ("llama", {"rope_theta": 500.0}, r"says rope_theta = 500.0, and in another place 10000.0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "says rope_type = default, and .* linear"),
        ("llama", {"text_config": {"hidden_size": 5}}, "has a text_config, for which its model type 'llama'"),
    ],
)
def test_keys_of_other_architectures(folder, family, config, words):
    saved(folder, family)
    config_says(folder, **config)
    with pytest.raises(ModelError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"sliding_window": None, "attn_logit_softcapping": 0.0, "logit_scale": 1.0, "alibi": False}),
        ("llama", {"sliding_window": 4096, "query_pre_attn_scalar": 6, "attention_multiplier": 6**-0.5}),
        ("llama", {"sliding_window": 4, "use_sliding_window": False, "_name_or_path": "x", "torch_dtype": "float32"}),
        ("llama", {"rope_theta": 10000, "new_harmless_key": 3, "attention_dropout": 0.5}),
        ("gpt_neox", {"use_parallel_residual": True}),
        ("granite", {"residual_multiplier": 0.6}),
    ],
)
def test_keys_that_change_nothing(folder, family, config):
    saved(folder, family)
    expected = numbers(load(folder))
    config_says(folder, **config)
    assert numbers(load(folder)) == expected


def test_old_and_new_names_of_one_rotation(folder):
    saved(folder)
    linear = {"rope_type": "linear", "factor": 2.0}
    config_says(folder, rope_parameters={**linear, "rope_theta": 10000.0})
    expected = numbers(load(folder))
    config_says(folder, rope_scaling=linear, rope_theta=10000.0)
    assert numbers(load(folder)) == expected


def test_a_tied_head_that_is_stored_as_another(folder):
    saved(folder)
    config_says(folder, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"ties the head to the embedding .* store another 'lm_head.weight'"):
        load(folder)
