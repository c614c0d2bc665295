"""From a name to a model: folders, GGUF, the embedded model and its cache, devices and dtypes."""

import os
import shutil

import pytest
import torch
from tiny import tiny, token_ids
from transformers import AutoTokenizer

from spikesink import scan
from spikesink.access import access, checkpoint, load
from spikesink.access.checkpoint import embedded_gguf, find_checkpoint
from spikesink.atomic import cache_folder
from spikesink.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny("llama").save_pretrained(path)
    return path


def test_a_folder_gives_the_model_that_was_saved(folder):
    accessed = load(folder)
    assert accessed.path == folder.resolve()
    assert type(accessed.model).__name__ == "LlamaForCausalLM"
    assert accessed.tokenizer is None
    assert accessed.load_s > 0
    assert (accessed.n_layers, accessed.n_blocks, accessed.d_model, accessed.vocab_size) == (3, 6, 24, 97)
    ids = token_ids()
    reference = tiny("llama")
    assert torch.allclose(accessed.model(ids).logits, reference(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_tokenizer_that_has_no_files_is_none(family, tmp_path):
    """transformers makes one up, of special tokens alone: every text would be nothing, or all unknown."""
    tiny(family).save_pretrained(tmp_path)
    made_up = AutoTokenizer.from_pretrained(tmp_path)
    assert len(made_up) == len(made_up.all_special_tokens)
    assert load(tmp_path).tokenizer is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(folder, dtype):
    accessed = load(folder, dtype=dtype)
    assert accessed.dtype == getattr(torch, dtype)
    full = scan(load(folder), token_ids(4, 19))
    other = scan(accessed, token_ids(4, 19))
    tolerance = 0.05 if dtype == "bfloat16" else 1e-4
    assert other.summary.perplexity == pytest.approx(full.summary.perplexity, rel=tolerance)
    assert other.summary.spike == pytest.approx(full.summary.spike, rel=tolerance)


def test_a_model_in_memory_and_its_name():
    accessed = access(tiny("gpt2"))
    assert accessed.path is None
    assert accessed.name == "gpt2"


def test_auto_device_on_a_machine_with_one(folder):
    assert load(folder, device="auto").device.type in ("cpu", "cuda")


def test_multimodal_models_are_measured_on_their_text_decoder(tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {
        "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 128,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4}
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "gemma3")
    accessed = load(tmp_path / "gemma3")
    assert accessed.n_layers == 3
    record = scan(accessed, token_ids(2, 9))
    assert len(record.lifecycle.blocks) == 6
    assert record.provenance.model["model_type"] == "gemma3_text"


@pytest.mark.embedded
def test_the_embedded_model_comes_from_a_cache_keyed_by_hash(embedded):
    assert embedded.name == "SmolLM2-135M-Instruct"
    assert embedded.path is not None
    assert embedded.path.is_relative_to(cache_folder())
    assert embedded.provenance["gguf_quantisation"] == "Q4_1"
    assert embedded.dtype == torch.float32
    again = find_checkpoint(None, revision=None, allow_pickle=False)
    assert again.folder == embedded.path


@pytest.mark.embedded
@pytest.mark.parametrize("damage", ["gone", "cut", "bit", "no hashes"])
def test_a_damaged_cache_is_made_again(embedded, tmp_path, monkeypatch, damage):
    """Whoever damaged it: a file that is not as it was written is never read."""
    made = []

    def copy(_paths, folder):
        made.append(folder)
        shutil.copytree(embedded.path, folder, dirs_exist_ok=True)

    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "_dequantise", copy)
    whole = find_checkpoint(None, revision=None, allow_pickle=False).folder
    assert find_checkpoint(None, revision=None, allow_pickle=False).folder == whole
    assert len(made) == 1
    if damage == "cut":
        os.truncate(whole / "model.safetensors", 100_000_000)
    elif damage == "bit":
        with (whole / "model.safetensors").open("r+b") as file:
            file.seek(300_000_000)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    else:
        (whole / ("config.json" if damage == "gone" else "SHA256SUMS")).unlink()
    again = find_checkpoint(None, revision=None, allow_pickle=False)
    assert again.folder == whole and len(made) == 2
    assert again.provenance()["file_sha256"] == embedded.provenance["file_sha256"]


@pytest.mark.embedded
def test_an_unwritable_cache_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="SPIKESINK_CACHE"):
        find_checkpoint(None, revision=None, allow_pickle=False)


@pytest.mark.embedded
def test_a_truncated_gguf_of_a_real_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    content = embedded_gguf().read_bytes()
    for keep in (10_000, len(content) // 2):
        (tmp_path / "cut.gguf").write_bytes(content[:keep])
        with pytest.raises(ModelError, match=r"cut\.gguf' cannot be read"):
            load(tmp_path / "cut.gguf")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_why_there_is_no_tokenizer(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    assert load(folder).no_tokenizer is None
    (folder / "tokenizer.json").write_text('{"version": ')
    accessed = load(folder)
    assert accessed.tokenizer is None and "line 1 column 13" in accessed.no_tokenizer
