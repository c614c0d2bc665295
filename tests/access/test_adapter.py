"""Adapters are merged into their base by peft; what is measured is what the adapted model computes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny, token_ids

from spikesink import scan
from spikesink.access import load
from spikesink.errors import ModelError, UnsupportedModelError

peft = pytest.importorskip("peft")
IDS = token_ids()
QUERIES = ["q_proj", "v_proj"]
CONFIGS = {
    "lora": peft.LoraConfig(target_modules=QUERIES, r=3, lora_alpha=7, init_lora_weights=False),
    "dora": peft.LoraConfig(target_modules=QUERIES, r=3, use_dora=True, init_lora_weights=False),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "saved head": peft.LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"], init_lora_weights=False),
}


def adapted(folder, config):
    """Base and adapter in folders of their own; returns the adapted model."""
    base = tiny("llama")
    base.save_pretrained(folder / "base")
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny("llama"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    for each in model.peft_config.values():
        each.base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return model.eval()


def numbers(model):
    summary = scan(model, IDS).summary
    return summary.perplexity, summary.spike, summary.sink_ratio_sun2026


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_adapter_is_the_adapted_model(tmp_path, config):
    model = adapted(tmp_path, config)
    accessed = load(tmp_path / "adapter")
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    assert torch.allclose(accessed.model(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(load(tmp_path / "base").model(IDS).logits, logits, rtol=1e-2, atol=1e-2)
    # In memory, unmerged, it is the same.
    assert numbers(accessed) == pytest.approx(numbers(model), rel=1e-4)
    provenance = accessed.provenance
    assert (provenance["name"], provenance["base"]) == ("adapter", "base")
    assert set(provenance["adapter"]["file_sha256"]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_another_base(tmp_path):
    adapted(tmp_path, CONFIGS["lora"])
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"is an adapter of '.*base', which cannot be loaded: .*--base MODEL"):
        load(tmp_path / "adapter")
    assert load(tmp_path / "adapter", base=tmp_path / "moved").provenance["base"] == "moved"
    with pytest.raises(ModelError, match=r"'.*moved' is no adapter; leave --base out"):
        load(tmp_path / "moved", base=tmp_path / "moved")


def test_a_base_of_another_size(tmp_path):
    adapted(tmp_path, CONFIGS["lora"])
    tiny("llama", hidden_size=32, head_dim=8).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="cannot be merged into its base"):
        load(tmp_path / "adapter", base=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(min(tensors)), "lacks the weights"),
        (lambda tensors: tensors.update({"base_model.model.extra.weight": torch.ones(2)}), "has no place"),
        (
            lambda tensors: tensors.update({min(tensors).replace("layers.0", "layers.9"): torch.ones(3, 24)}),
            "has no place",
        ),
    ],
)
def test_every_stored_tensor_counts(tmp_path, change, words):
    adapted(tmp_path, CONFIGS["lora"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "adapter")


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["prompt", "prefix"],
)
def test_vectors_before_the_tokens_are_refused(tmp_path, config):
    model = adapted(tmp_path, config)
    for what in (lambda: load(tmp_path / "adapter"), lambda: scan(model, IDS)):
        with pytest.raises(UnsupportedModelError, match=r"(PROMPT|PREFIX)_TUNING: it puts vectors of its own before"):
            what()


@pytest.mark.parametrize(("content", "words"), [("{", "cannot be read"), ("[]", "no object"), ("{}", "does not say")])
def test_a_config_that_says_nothing(tmp_path, content, words):
    adapted(tmp_path, CONFIGS["lora"])
    (tmp_path / "adapter" / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "adapter")


def test_pickled_adapters_only_if_asked_for(tmp_path):
    adapted(tmp_path, CONFIGS["lora"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    expected = numbers(load(tmp_path / "adapter"))
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ModelError, match="--allow-pickle"):
        load(tmp_path / "adapter")
    assert numbers(load(tmp_path / "adapter", allow_pickle=True)) == expected


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of an empty hub cache, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def publish(folder, hub, name, commit="0" * 40, ref="main"):
    repository = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(commit)


def says(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_hub_id_in_the_cache(tmp_path, hub):
    adapted(tmp_path, CONFIGS["lora"])
    expected = numbers(load(tmp_path / "adapter"))
    # A training script leaves the base's config beside it.
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "adapter")
    publish(tmp_path / "adapter", hub, "someone/adapter")
    accessed = load("someone/adapter")
    assert accessed.name == "someone/adapter"
    assert numbers(accessed) == expected
    assert (accessed.provenance["base"], accessed.provenance["adapter"]["commit"]) == ("base", "0" * 40)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_an_adapter_beside_a_whole_model_is_refused(tmp_path, hub, weights):
    adapted(tmp_path, CONFIGS["lora"])
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "adapter")
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "adapter" / weights)
    publish(tmp_path / "adapter", hub, "someone/both")
    for name in ("someone/both", tmp_path / "adapter"):
        with pytest.raises(ModelError, match=rf"holds an adapter .* and the weights of a whole model \({weights}\)"):
            load(name)


def test_the_revision_of_the_base_that_the_adapter_names(tmp_path, hub):
    adapted(tmp_path, CONFIGS["lora"])
    expected = numbers(load(tmp_path / "adapter"))
    tiny("llama", seed=5).save_pretrained(tmp_path / "newer")
    publish(tmp_path / "newer", hub, "someone/base")
    publish(tmp_path / "base", hub, "someone/base", "1" * 40, "v2")
    says(tmp_path / "adapter", base_model_name_or_path="someone/base", revision="v2")
    accessed = load(tmp_path / "adapter")
    assert numbers(accessed) == expected
    assert (accessed.provenance["revision"], accessed.provenance["commit"]) == ("v2", "1" * 40)
    # A folder has none.
    assert numbers(load(tmp_path / "adapter", base=tmp_path / "base")) == expected
    says(tmp_path / "adapter", revision=2)
    with pytest.raises(ModelError, match="says revision = 2"):
        load(tmp_path / "adapter")


def test_a_base_that_is_an_adapter_is_refused(tmp_path):
    adapted(tmp_path, CONFIGS["lora"])
    with pytest.raises(ModelError, match="It is an adapter itself"):
        load(tmp_path / "adapter", base=tmp_path / "adapter")


def test_what_peft_does_not_know_is_refused(tmp_path):
    adapted(tmp_path, CONFIGS["lora"])
    says(tmp_path / "adapter", unused_future_thing=None, use_other_thing=False)
    load(tmp_path / "adapter")
    says(tmp_path / "adapter", use_future_thing=True)
    with pytest.raises(ModelError, match=r"says use_future_thing = True, which peft .* does not know"):
        load(tmp_path / "adapter")


def test_a_tokenizer_beside_the_adapter_is_its_own(tmp_path, word_tokenizer):
    adapted(tmp_path, CONFIGS["lora"])
    word_tokenizer.save_pretrained(tmp_path / "base")
    accessed = load(tmp_path / "adapter")
    assert accessed.tokenizer is not None and accessed.no_tokenizer is None
    # Settings alone are no tokenizer.
    (tmp_path / "adapter" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert load(tmp_path / "adapter").tokenizer is not None
    (tmp_path / "adapter" / "tokenizer.json").write_text("{")
    accessed = load(tmp_path / "adapter")
    assert accessed.tokenizer is None and accessed.no_tokenizer


def test_a_gguf_that_is_not_there_is_not_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr("spikesink.access.adapter.check_reachable", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match=r"The GGUF file 'missing\.gguf' does not exist"):
        load("missing.gguf")
