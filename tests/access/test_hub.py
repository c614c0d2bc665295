"""Hub ids, from a cache laid out as the hub's client lays it out: pinned to a commit, and checked as folders are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from small_hub import serving
from tiny import tiny, token_ids
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from spikesink.access import load
from spikesink.atomic import file_sha256
from spikesink.errors import ModelError

NAME = "somebody/tiny"
SOURCE = Path(__file__).parent.parent.parent / "src"
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama in shards."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny("llama").save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a hub model in an empty cache, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub" / "models--somebody--tiny"


def publish(folder, hub, commit=FIRST, ref="main"):
    """The files of a folder as one commit: blobs by hash, links to them, and what the ref stands for."""
    snapshot = hub / "snapshots" / commit
    for file in folder.iterdir():
        blob = hub / "blobs" / file_sha256(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        (snapshot / file.name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (hub / "refs").mkdir(exist_ok=True)
    (hub / "refs" / ref).write_text(commit)
    return snapshot


def changed(folder, path, **config):
    """A copy of the folder with another config."""
    shutil.copytree(folder, path)
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **config}))
    return path


def test_a_hub_model_is_the_one_that_was_saved(folder, hub):
    snapshot = publish(folder, hub)
    accessed = load(NAME)
    ids = token_ids()
    torch.testing.assert_close(accessed.model(ids).logits, tiny("llama")(ids).logits, atol=1e-5, rtol=1e-5)
    assert (accessed.name, accessed.path) == (NAME, snapshot)
    assert (accessed.provenance["revision"], accessed.provenance["commit"]) == (None, FIRST)
    assert accessed.provenance["file_sha256"] == load(folder).provenance["file_sha256"]
    assert len(accessed.provenance["file_sha256"]) > 3


def test_a_revision_is_named_and_pinned(folder, hub, tmp_path):
    publish(folder, hub)
    other = tmp_path / "other"
    tiny("llama", seed=5).save_pretrained(other)
    publish(other, hub, SECOND, "v2")
    weights = [load(NAME, revision=revision).model.lm_head.weight for revision in ("v2", SECOND, "main")]
    expected = [tiny("llama", seed=seed).lm_head.weight for seed in (5, 5, 0)]
    assert all(torch.equal(checkpoint, wanted) for checkpoint, wanted in zip(weights, expected, strict=True))
    provenance = load(NAME, revision="v2").provenance
    assert (provenance["revision"], provenance["commit"]) == ("v2", SECOND)
    with pytest.raises(ModelError, match="nor in the cache, and HF_HUB_OFFLINE is set"):
        load(NAME, revision="v3")


def test_a_config_that_cannot_belong_to_the_weights(folder, hub, tmp_path):
    """What a folder is refused for, before anything of that size is built."""
    publish(changed(folder, tmp_path / "deep", num_hidden_layers=10**6), hub)
    with pytest.raises(ModelError, match="names 1,000,000 layers, but its weights are"):
        load(NAME)
    publish(changed(folder, tmp_path / "wide", intermediate_size=10**7), hub, SECOND, "wide")
    with pytest.raises(ModelError, match="describes a model of"):
        load(NAME, revision="wide")


def test_a_config_of_any_size_is_not_read(folder, hub, tmp_path):
    shutil.copytree(folder, tmp_path / "large")
    with (tmp_path / "large" / "config.json").open("ab") as file:
        file.truncate(2**25)
    publish(tmp_path / "large", hub)
    with pytest.raises(ModelError, match="that is no config"):
        load(NAME)


@pytest.mark.parametrize("shard", ["../../../../model.safetensors", "pytorch_model.bin"])
def test_an_index_names_files_of_its_own(folder, hub, tmp_path, shard):
    shutil.copytree(folder, tmp_path / "bent")
    index = tmp_path / "bent" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = shard
    index.write_text(json.dumps(content))
    publish(tmp_path / "bent", hub)
    with pytest.raises(ModelError, match="names the shard"):
        load(NAME)


def test_what_other_tools_left_in_the_cache_counts_for_nothing(folder, hub):
    """Weights that the model is not loaded from would make any config plausible, and are no provenance."""
    snapshot = publish(folder, hub)
    plain = load(NAME).provenance
    (snapshot / "consolidated.safetensors").write_bytes(b"anything")
    (snapshot / "pytorch_model.bin").write_bytes(b"anything")
    (snapshot / "pytorch_model.bin.index.json").write_text("{}")
    assert load(NAME).provenance == plain


def test_pickles_only_where_asked_for(hub, tmp_path):
    model = tiny("llama")
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    publish(tmp_path / "pickled", hub)
    with pytest.raises(ModelError, match=r"no safetensors weights.*--allow-pickle"):
        load(NAME)
    accessed = load(NAME, allow_pickle=True)
    assert torch.equal(accessed.model.lm_head.weight, model.lm_head.weight)
    assert accessed.provenance["file_sha256"].keys() == {"config.json", "pytorch_model.bin"}


def test_a_shard_that_is_not_there(folder, hub):
    snapshot = publish(folder, hub)
    next(snapshot.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="does not appear to have a file named model-0"):
        load(NAME)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_same_commit_runs_only_where_asked_for(folder, hub, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    own = changed(folder, tmp_path / "own", model_type="own", auto_map=names)
    (own / "own.py").write_text(CODE)
    publish(own, hub)
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load(NAME)
    assert not (tmp_path / "modules").exists()
    accessed = load(NAME, trust_remote_code=True)
    assert type(accessed.model).__name__ == "OwnForCausalLM"
    assert accessed.provenance["commit"] == FIRST
    assert [path.parent.name.lstrip("_") for path in (tmp_path / "modules").rglob("own.py")] == [FIRST]


LOAD = """
import json, sys
from spikesink.access import load
heard = []
accessed = load("somebody/tiny", progress=lambda *stage: heard.append(stage))
print(json.dumps([accessed.provenance, heard, accessed.tokenizer is not None]))
"""


def in_a_process(home, **environment):
    """What loading says of the model, what it reports, whether there is a tokenizer; the cache is `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**kept, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_download_fetches_what_is_loaded_and_nothing_else(folder, tmp_path):
    """From a hub on this machine; then the same from the cache alone, without any."""
    repository = tmp_path / "repository"
    shutil.copytree(folder, repository)
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "w1": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(repository)
    needed = {path.name for path in repository.iterdir()}
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "own.py", "README.md"):
        (repository / name).write_bytes(b"for other tools")
    with serving(repository, NAME, FIRST) as hub:
        provenance, heard, has_tokenizer = in_a_process(tmp_path / "home", HF_ENDPOINT=hub.address)
    assert sorted(hub.sent) == sorted(needed)
    assert has_tokenizer
    assert provenance["commit"] == FIRST
    assert provenance["file_sha256"] == {name: file_sha256(repository / name) for name in needed}
    assert heard and all(stage == "download, MiB" and 0 <= done <= total for stage, done, total in heard)
    again, heard, has_tokenizer = in_a_process(tmp_path / "home", HF_HUB_OFFLINE="1")
    assert (again, heard, has_tokenizer) == (provenance, [], True)
