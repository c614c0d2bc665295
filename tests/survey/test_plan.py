"""What is known before anything is downloaded, from a hub on this machine; and what of it is left afterwards."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import constants, file_download
from small_hub import serving
from test_survey import surveyed
from tiny import tiny, token_ids
from tiny_gguf import write_tiny_gguf

from spikesink.access.checkpoint import embedded_gguf
from spikesink.errors import ModelError
from spikesink.survey import cell, plan
from spikesink.survey.plan import planned, revisions_of, weight_bytes

NAME, COMMIT = "somebody/tiny", "1" * 40
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "tiny"
    tiny("llama").save_pretrained(path, max_shard_size="20KB")
    (path / "pytorch_model.bin").write_bytes(b"for others")
    return path


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """The folder as a model of a hub, which this process asks instead of the real one."""
    with serving(folder, NAME, COMMIT) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        # transformers keeps a client with the address of its first use: another test's, whose hub nobody reaches.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
                monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.elements = sum(parameter.numel() for parameter in tiny("llama").parameters())
        yield server


@pytest.fixture
def ids(tmp_path):
    np.save(tmp_path / "ids.npy", token_ids(4, 12).numpy())
    return str(tmp_path / "ids.npy")


def test_sizes_come_from_the_hub_and_nothing_is_downloaded(hub, folder):
    plan = planned(NAME, "step20")
    shards = sum(file.stat().st_size for file in folder.glob("model-*.safetensors"))
    assert (plan.download, plan.elements, plan.commit) == (shards, hub.elements, COMMIT) and shards > 10_000
    assert weight_bytes(plan, ["bfloat16", "float32"]) == 4 * hub.elements
    assert hub.sent == []
    assert revisions_of(NAME, ["all"]) == ["main", "step3", "step20", "step100"]
    with pytest.raises(ModelError, match="no revision 'step7'"):
        planned(NAME, "step7")
    with pytest.raises(ModelError, match="the hub has no such model"):
        planned("somebody/else", None)


def test_the_embedded_model_is_planned_by_its_header():
    try:
        embedded_gguf()
    except ModelError:
        pytest.skip("the embedded model is not installed")
    assert planned("embedded", None).elements == 134_515_008


def test_weights_are_removed_after_use_where_asked(hub, ids, tmp_path):
    spec = {"models": [NAME], "texts": [ids]}
    record, _ = surveyed(spec, tmp_path / "out", keep=False)
    (row,) = record.rows
    assert (row.status, row.commit, row.model) == ("finished", COMMIT, NAME)
    assert any(name.endswith(".safetensors") for name in hub.sent)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    hub.sent.clear()
    surveyed(spec, tmp_path / "out", keep=False)
    assert hub.sent == [], "what is finished is not downloaded again"
    # Downloaded before by somebody else: theirs to remove.
    surveyed(spec, tmp_path / "kept")
    surveyed(spec, tmp_path / "again", keep=False)
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_each_machine_looks_at_its_own_cache_and_disk(hub, ids, tmp_path, monkeypatch):
    # Whoever planned had the weights already; this machine has not, and makes room again.
    job = job_of(ids, tmp_path).model_copy(update={"keep": False, "download": 0})
    cell.run_packed(job.model_dump_json(), tmp_path / "job", lambda *_: None)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    # A process that was killed has left its download marked, for the one that goes on.
    plan.claim(job)
    hub.sent.clear()
    monkeypatch.setattr(plan, "free_disk", lambda: 1000)
    cell.run_packed(job.model_dump_json(), tmp_path / "again", lambda *_: None)
    assert hub.sent and not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    with pytest.raises(ModelError, match=r"of disk, 9\.31e-07 GiB are free on "):
        cell.run_packed(job.model_dump_json(), tmp_path / "full", lambda *_: None)


def test_what_does_not_fit_is_refused_before_it_is_downloaded(hub, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "free_disk", lambda: 1000)
    record, ran = surveyed({"models": [NAME], "texts": [ids]}, tmp_path / "disk")
    assert ran == [] and record.rows[0].status == "refused" and "of disk" in record.rows[0].error
    monkeypatch.setattr(plan, "free_disk", lambda: GIB)
    hub.elements = 10**15
    record, ran = surveyed({"models": [NAME], "texts": [ids], "dtype": "bfloat16"}, tmp_path / "memory")
    assert ran == [] and "need 1862645.1 GiB of memory" in record.rows[0].error and hub.sent == []


def test_a_hub_that_does_not_answer_costs_its_own_row_alone(hub, folder, ids, tmp_path):
    hub.shutdown()
    hub.server_close()
    shutil.copytree(folder, tmp_path / "local" / "model")
    record, _ = surveyed({"models": [NAME, str(tmp_path / "local" / "model")], "texts": [ids]}, tmp_path / "out")
    assert [row.status for row in record.rows] == ["failed", "finished"]
    assert "cannot be reached" in record.rows[0].error


def test_a_disk_that_fills_while_weights_come_is_a_sentence(hub, ids, tmp_path, monkeypatch):
    def full(*_given, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    made = cell.Job.model_validate_json(job_of(ids, tmp_path).model_dump_json())
    with pytest.raises(ModelError, match="No space left on device"):
        cell.run_packed(made.model_dump_json(), tmp_path / "job", lambda *_: None)


@pytest.mark.parametrize("source", ["embedded", "~/tiny.gguf"])
@pytest.mark.parametrize("revision", ["step1", "all"])
def test_what_has_no_revisions_refuses_them(source, revision, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tiny_gguf(tmp_path / "tiny.gguf")
    assert revisions_of(source, [revision]) == [revision]
    with pytest.raises(ModelError, match=f"Got the revision '{revision}', but .* has none"):
        planned(source, revision)


def test_a_missing_folder_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for source, revision in (("./nowhere", None), ("run", "step9"), ("./nowhere", "all")):
        with pytest.raises(ModelError, match="does not exist"):
            planned(source, revision)


def test_a_home_folder_and_every_shard_of_a_gguf_are_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert planned("~/tiny.gguf", None) == planned(str(whole), None)
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    assert planned(str(other), None).identity != planned(str(whole), None).identity
    first, second = (str(tmp_path / f"split-0000{number}-of-00002.gguf") for number in (1, 2))
    write_shard(first, 0, 3)
    write_shard(second, 1, 3)
    before = planned(first, None)
    assert before.elements == 2 * 60 and planned(second, None) == replace(before, source=second)
    write_shard(second, 1, 4)
    assert planned(first, None).identity != before.identity


def write_shard(path, number, value):
    writer = gguf.GGUFWriter(path, "llama")
    for name, count in (("no", number), ("count", 2)):
        writer.add_uint16(f"split.{name}", count)
    writer.add_tensor(f"blk.{number}.attn_q.weight", np.full((6, 10), value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["mine.py", "chat_template.jinja", "merges.txt", "config.json", "tokenizer.model"])
def test_every_file_of_a_model_is_seen(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "model")
    plain = planned(str(tmp_path / "model"), None).identity
    (tmp_path / "model" / "optimizer.pt").write_text("no part of it")
    assert planned(str(tmp_path / "model"), None).identity == plain
    with (tmp_path / "model" / name).open("a") as file:
        file.write(" ")
    assert planned(str(tmp_path / "model"), None).identity != plain


def adapter_of(base, path, **config):
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), **config}))
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


def test_an_adapter_is_planned_with_its_base(folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    path = adapter_of(base, tmp_path / "adapter")
    before = planned(str(path), None)
    assert (before.source, before.elements) == (str(path), planned(str(base), None).elements)
    tiny("llama", seed=5).save_pretrained(base, max_shard_size="20KB")
    after = planned(str(path), None)
    assert after.identity != before.identity
    (path / "adapter_model.safetensors").write_bytes(b"others")
    assert planned(str(path), None).identity not in (before.identity, after.identity)
    shutil.rmtree(base)
    with pytest.raises(
        ModelError, match=r"'adapter' is an adapter of '.*base', which cannot be had: .* does not exist"
    ):
        planned(str(path), None)


def test_an_adapter_on_the_hub_or_of_a_base_there(hub, folder, tmp_path, monkeypatch):
    # Its weights are the base's: what is downloaded, and removed again, is of that commit.
    local = planned(str(adapter_of(NAME, tmp_path / "adapter")), None)
    plain = planned(NAME, None)
    assert replace(local, source=NAME, identity=COMMIT, hub_revision=None) == plain
    assert planned(str(adapter_of(NAME, tmp_path / "older", revision="step3")), None).commit == COMMIT
    assert any(f"/api/models/{NAME}/revision/step3" in line for line in hub.asked)
    hub.folder = adapter_of(folder, tmp_path / "remote")
    remote = planned(NAME, "step20")
    assert (remote.source, remote.hub_revision, remote.commit, remote.download) == (NAME, "step20", COMMIT, 0)
    assert remote.elements == planned(str(folder), None).elements and remote.identity != COMMIT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert planned(NAME, "step20") == remote


def job_of(ids, tmp_path):
    from spikesink.survey.grid import Spec
    from spikesink.survey.run import Survey

    (job,) = Survey(Spec.parse({"models": [NAME], "texts": [ids]}), tmp_path / "out")._planned(lambda *_: None)
    return job
