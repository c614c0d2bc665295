"""Which files make a model, and when a de-quantised one is taken from the cache."""

import pytest
from tiny_gguf import write_tiny_gguf

from spikesink.access import checkpoint
from spikesink.access.checkpoint import find_checkpoint, model_files


def test_code_template_and_vocabulary_are_of_the_model(tmp_path):
    kept = {"a.safetensors", "config.json", "chat_template.jinja", "merges.txt", "modeling_own.py", "tokenizer.model"}
    for name in (*kept, "b.safetensors", "pytorch_model.bin.index.json", "README.md", "optimizer.pt"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.py").mkdir()
    assert {path.name for path in model_files(tmp_path, (tmp_path / "a.safetensors",))} == kept


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json"])
def test_a_cache_with_a_file_that_was_not_written_there_is_made_again(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    path, made = write_tiny_gguf(tmp_path / "tiny.gguf"), []
    original = checkpoint._dequantise
    monkeypatch.setattr(checkpoint, "_dequantise", lambda *given: made.append(given) or original(*given))
    folder = find_checkpoint(path, revision=None, allow_pickle=False).folder
    assert find_checkpoint(path, revision=None, allow_pickle=False).folder == folder and len(made) == 1
    (folder / name).write_text("{{ another }}")
    assert find_checkpoint(path, revision=None, allow_pickle=False).folder == folder and len(made) == 2
