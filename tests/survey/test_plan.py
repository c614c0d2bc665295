"""What is known before anything is downloaded, from a hub on this machine; and what of it is left afterwards."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, file_download
from small_hub import serving
from test_survey import surveyed
from tiny import tiny, token_ids

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


def job_of(ids, tmp_path):
    from spikesink.survey.grid import Spec
    from spikesink.survey.run import Survey

    (job,) = Survey(Spec.parse({"models": [NAME], "texts": [ids]}), tmp_path / "out")._planned(lambda *_: None)
    return job
