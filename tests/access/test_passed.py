"""What was verified is not verified again while it is the same: of a model object, and on disk of a checkpoint."""

import copy
import gc
import weakref
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny, token_ids

from spikesink import scan
from spikesink.access import access, load, passed
from spikesink.access.verify import verify
from spikesink.errors import VerificationError


@pytest.fixture
def verified(monkeypatch):
    """A list that grows with every verification."""
    made = []

    def counted(accessed):
        made.append(accessed)
        return verify(accessed)

    monkeypatch.setattr(import_module("spikesink.access.load"), "verify_layers", counted)
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(passed, "cache_folder", lambda: tmp_path / "cache")
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class TestAnObject:
    def test_is_verified_once(self, verified):
        model = tiny("llama")
        first, second = access(model), access(torch.nn.DataParallel(model))
        assert len(verified) == 1
        assert second.provenance == first.provenance
        assert (first.verified_before, second.verified_before) == (False, True)
        # What is measured leaves it as it was, whatever the mode.
        assert scan(model, token_ids()).summary == scan(model.train(), token_ids()).summary
        assert len(verified) == 1
        access(model, verify=True)
        assert len(verified) == 2

    def test_is_forgotten_with_it(self):
        model = tiny("llama")
        access(model)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: _add(model),
            lambda model: setattr(model.model.layers[0].mlp.up_proj, "weight", torch.nn.Parameter(torch.ones(40, 24))),
            lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
            lambda model: setattr(model.model.layers[0].self_attn, "scaling", 0.7),
            lambda model: setattr(model.model.layers[0], "mlp", copy.deepcopy(model.model.layers[0].mlp)),
            lambda model: model.model.layers[0].register_forward_hook(lambda *_: None),
            lambda model: model.double(),
        ],
        ids=["a step", "a weight", "the config", "an attribute", "a module", "a hook", "the dtype"],
    )
    def test_is_verified_again_after_a_change(self, verified, change):
        model = tiny("llama")
        access(model)
        change(model)
        assert not access(model).verified_before
        assert len(verified) == 2
        assert access(model).verified_before

    def test_a_forward_of_its_own_is_verified_always(self, verified):
        """And a wrong one is refused, after a right one."""
        model = tiny("llama")
        access(model)
        mlp = model.model.layers[1].mlp
        right = mlp.forward
        mlp.forward = lambda hidden: right(hidden)
        access(model)
        access(model)
        assert len(verified) == 3
        layer = model.model.layers[1]
        whole = layer.forward
        layer.forward = lambda *args, **more: whole(*args, **more) + 1.0
        with pytest.raises(VerificationError):
            access(model)


def _add(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(0.1)


class TestACheckpoint:
    def test_is_verified_once(self, folder, verified):
        first, second = load(folder), load(folder)
        assert len(verified) == 1
        assert second.provenance == first.provenance
        assert (first.verified_before, second.verified_before) == (False, True)
        assert second.blocks()[3].inner is second.model.model.layers[1].mlp
        assert load(folder, verify=True).verified_before is False
        # It is the files that count.
        folder.rename(folder.with_name("moved"))
        assert load(folder.with_name("moved")).verified_before

    def test_another_file_dtype_or_version(self, folder, verified, monkeypatch):
        load(folder)
        assert not load(folder, dtype="float64").verified_before
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["model.norm.weight"][0] += 1e-3
        save_file(tensors, path, {"format": "pt"})
        assert not load(folder).verified_before
        assert load(folder).verified_before
        versions = passed.package_versions()
        for name in versions:
            monkeypatch.setattr(passed, "package_versions", lambda name=name: {**versions, name: "0.0"})
            assert not load(folder).verified_before
        monkeypatch.undo()

    @pytest.mark.parametrize("function", ["code_sha256", "installed_sha256"])
    def test_other_code_or_packages(self, folder, monkeypatch, function):
        load(folder)
        monkeypatch.setattr(passed, function, lambda: "other")
        assert not load(folder).verified_before

    def test_code_of_the_checkpoint_is_verified_always(self, folder):
        load(folder, trust_remote_code=True)
        assert not load(folder, trust_remote_code=True).verified_before

    @pytest.mark.parametrize(
        "damage",
        [lambda _: "", lambda _: "[]", lambda text: text[:-9], lambda text: text.replace("e-0", "e-1", 1)],
        ids=["empty", "a list", "cut", "a digit"],
    )
    def test_a_damaged_cache(self, folder, damage):
        load(folder)
        (kept,) = (folder.parent / "cache" / "verified").iterdir()
        whole = kept.read_text()
        kept.write_text(damage(whole))
        assert kept.read_text() != whole
        assert not load(folder).verified_before
        assert load(folder).verified_before

    def test_a_layout_that_is_not_there(self, folder):
        accessed = load(folder)
        model = accessed.model
        passed.remember(model, passed.Passed(99, {}))
        assert access(model).provenance["verification"] == accessed.provenance["verification"]

    def test_a_cache_that_cannot_be_written(self, folder):
        (folder.parent / "cache").write_text("a file in the way")
        assert load(folder).n_layers == 3
        assert not load(folder).verified_before

    def test_what_does_not_hold_is_not_kept(self, folder, monkeypatch):
        def fails(_):
            raise VerificationError("no")

        monkeypatch.setattr(import_module("spikesink.access.load"), "verify_layers", fails)
        for _ in range(2):
            with pytest.raises(VerificationError, match="no"):
                load(folder)
        assert not (folder.parent / "cache" / "verified").exists()
