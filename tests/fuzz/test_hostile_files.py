"""Known poison, each kind by name: what once looped, filled the memory, raised or could have run code is refused."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from contained import contained
from safetensors.numpy import save_file
from safetensors.torch import load_file

from fuzz import hostile, seeds
from fuzz.target import MARKER
from spikesink.access import load
from spikesink.access.gguf_header import read_header
from spikesink.data import load_token_ids, read_corpus
from spikesink.errors import InputError, ModelError, OutputError, RecordError
from spikesink.records import TrainingRun
from spikesink.train.plain_yaml import read_yaml
from spikesink.train.recipe import load_recipe


class Payload:
    """Unpickling it makes MARKER in the current folder."""

    def __reduce__(self):
        return os.system, (f"touch {MARKER}",)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A good checkpoint to be spoilt, in the current folder."""
    import shutil

    monkeypatch.chdir(tmp_path)
    return shutil.copytree(seeds.checkpoint(), tmp_path / "model")


def refused(read, *words):
    """A clear error that has the words, in bounded time and memory."""
    outcome = contained(read)
    assert outcome.kind == "refused", outcome
    for word in words:
        assert word in outcome.text, (word, outcome.text)


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestGguf:
    """The libraries loop over counts that the header names, also past the end of the file."""

    @staticmethod
    def header(*values: tuple[int, bytes], tensors: int = 0) -> bytes:
        keys = b"".join(struct.pack("<Q", 1) + bytes([97 + i]) + struct.pack("<I", kind) + content
                        for i, (kind, content) in enumerate(values))  # fmt: skip
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values)) + keys

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (header((9, struct.pack("<IQ", 0, 2**60))), "would end past the end"),
            (header((9, struct.pack("<IQ", 8, 2**60))), "more than a file of"),
            (header((9, struct.pack("<IQ", 9, 2**40))), "more than a file of"),
            (header((8, struct.pack("<Q", 2**63))), "would end past the end"),
            (header((9, struct.pack("<IQ", 9, 1) * 9), (8, bytes(99))), "nested too deeply"),
            (header((77, bytes(8))), "has type 77"),
            (header(tensors=2**50), "more than a file of"),
            (header(), "no tensors"),
            (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "more than a file of"),
        ],
    )
    def test_counts_that_cannot_be(self, tmp_path, content, word):
        (tmp_path / "a.gguf").write_bytes(content)
        refused(lambda: load(tmp_path / "a.gguf"), word, "a.gguf")

    def test_the_good_one_is_read(self):
        seeds.gguf()
        header = read_header(seeds.workplace() / "tiny.gguf")
        assert len(header.tensors) == 2 + 2 * 9 and header.quantisation == "F32"
        shapes = {tensor.name: tensor.shape for tensor in header.tensors}
        assert shapes["blk.1.ffn_down.weight"] == (48, 32)
        assert header.elements == 263 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda shape, kind, offset: (shape, kind, 2**63), "past the end"),
            (lambda shape, kind, offset: (shape, kind, offset + 32), "inside another"),
            (lambda shape, kind, offset: (shape, kind, offset + 1), "not aligned"),
            (lambda shape, kind, offset: ((2**40, 2**40), kind, offset), "past the end"),
            (lambda shape, kind, offset: (shape, 999, offset), "unknown type 999"),
            (lambda shape, kind, offset: ((0, 32), kind, offset), "do not fill"),
        ],
    )
    def test_tensors_that_do_not_fit(self, tmp_path, change, word):
        content = bytearray(seeds.gguf())
        name = b"blk.0.attn_q.weight"
        at = content.index(name) + len(name)
        shape, (kind, offset) = struct.unpack_from("<2Q", content, at + 4), struct.unpack_from("<IQ", content, at + 20)
        shape, kind, offset = change(shape, kind, offset)
        struct.pack_into("<2QIQ", content, at + 4, *shape, kind, offset)
        (tmp_path / "a.gguf").write_bytes(content)
        refused(lambda: load(tmp_path / "a.gguf"), "tensor 'blk.0", word)

    def test_a_name_twice(self, tmp_path):
        content = seeds.gguf().replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight")
        (tmp_path / "a.gguf").write_bytes(content)
        refused(lambda: load(tmp_path / "a.gguf"), "comes twice")

    def test_more_layers_than_tensors(self, tmp_path):
        content = bytearray(seeds.gguf())
        at = content.index(b"llama.block_count") + len("llama.block_count") + 4
        struct.pack_into("<I", content, at, 2**31 - 1)
        (tmp_path / "a.gguf").write_bytes(content)
        os.environ["SPIKESINK_CACHE"] = str(tmp_path / "cache")
        refused(lambda: load(tmp_path / "a.gguf"), "2,147,483,647 layers")


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("values", "word"),
        [
            ({"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
            ({"vocab_size": 10**10}, "describes a model of"),
            ({"intermediate_size": 2**40}, "describes a model of"),
            ({"hidden_act": "no_such"}, "no_such"),
        ],
    )
    def test_a_config_that_is_not_the_weights(self, model, values, word):
        change(model / "config.json", **values)
        refused(lambda: load(model), word)

    @pytest.mark.parametrize("shard", ["../model/model.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", 7])
    def test_shards_outside_the_folder(self, model, shard):
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
        refused(lambda: load(model), "the shard", "same folder")

    @pytest.mark.parametrize("content", ["[]", "7", "{", '{"weight_map": 5}', '{"weight_map": {"a": [1]}}'])
    def test_an_index_that_is_none(self, model, content):
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(content)
        refused(lambda: load(model), "no index of weights")

    def test_pickles_do_not_run(self, model):
        """Neither as the weights nor as a shard that an index of safetensors names."""
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").rename(model / "other.safetensors")
        (model / "evil.bin").write_bytes(pickle.dumps({**weights, "x": Payload()}))
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "evil.bin")}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(lambda: load(model), "evil.bin", "--allow-pickle")
        # Asked for, pickles are read as data: still no code.
        contained(lambda: load(model, allow_pickle=True))
        (model / "model.safetensors.index.json").unlink()
        (model / "other.safetensors").unlink()
        (model / "evil.bin").rename(model / "pytorch_model.bin")
        refused(lambda: load(model), "pickle weights only")
        assert not os.path.exists(MARKER)

    def test_code_of_the_checkpoint_does_not_run(self, model):
        code = f"open({str(model.parent / MARKER)!r}, 'w')\nclass A: pass\n"
        (model / "evil.py").write_text(code)
        maps = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A", "AutoTokenizer": ["evil.A", "evil.A"]}
        change(model / "tokenizer_config.json", auto_map=maps, tokenizer_class="EvilTokenizer")
        contained(lambda: load(model))
        change(model / "config.json", auto_map=maps)
        contained(lambda: load(model))
        change(model / "config.json", model_type="evil")
        refused(lambda: load(model), "--trust-remote-code")
        assert not (model.parent / MARKER).exists()

    def test_code_beside_a_gguf_does_not_run_and_is_not_offered(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        (tmp_path / "a.gguf").write_bytes(seeds.gguf())
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / MARKER)!r}, 'w')\nclass A: pass\n")
        maps = {"AutoTokenizer": ["evil.A", "evil.A"], "AutoModelForCausalLM": "evil.A"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": maps}))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": maps}))
        contained(lambda: load(tmp_path / "a.gguf"))
        assert not (tmp_path / MARKER).exists()

    def test_an_adapter_is_no_model(self, model):
        (model / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
        with pytest.raises(ModelError, match="adapter"):
            load(model)

    def test_weights_that_are_not_finite(self, model):
        from spikesink import scan
        from spikesink.errors import SpikesinkError

        weights = load_file(model / "model.safetensors")
        weights["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
        from safetensors.torch import save_file as save

        save(weights, model / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SpikesinkError):
            scan(load(model), torch.ones(1, 5, dtype=torch.long))

    def test_a_chat_template_cannot_reach_python(self, model):
        from spikesink.data import prompt_corpus, tokenise

        template = "{{ cycler.__init__.__globals__.os.popen('touch " + MARKER + "').read() }}"
        tokenizer = seeds.word_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(InputError, match="chat template"):
            tokenise(prompt_corpus("w3 w4"), tokenizer, seq_len=9, sequences=1, chat_template=True)
        assert not os.path.exists(MARKER)


class TestTokens:
    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ("{'descr': '|S0', 'fortran_order': False, 'shape': (-1,), }", "it holds .S0"),
            ("{'descr': '<i8', 'fortran_order': False, 'shape': (-1, 2), }", r"its shape is \(-1, 2\)"),
        ],
    )
    def test_a_header_that_ends_the_process(self, tmp_path, header, reason):
        """numpy divides by the items' size: no exception, the process is gone."""
        path = tmp_path / "ids.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(80))
        outcome = contained(lambda: load_token_ids(path))
        assert outcome.kind == "refused", outcome
        with pytest.raises(InputError, match=reason):
            load_token_ids(path)

    def test_a_pickle_in_an_npy_does_not_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        np.save("ids.npy", np.array([[Payload(), 2]], dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match=r"no \.npy array of integers"):
            load_token_ids(tmp_path / "ids.npy")
        assert not (tmp_path / MARKER).exists()

    def test_a_file_with_holes_that_claims_a_terabyte(self, tmp_path):
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (2147483648, 64), }"
        path = tmp_path / "ids.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        os.truncate(path, 10 + len(header) + 2**40)
        with pytest.raises(InputError, match="more than fit in memory"):
            load_token_ids(path)

    def test_a_parquet_bomb(self, tmp_path):
        """A few kilobytes that unfold to two gigabytes."""
        import pyarrow
        import pyarrow.parquet

        # One string that 128 rows name: writing it takes no memory that the forked reader could use again.
        text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 128, "int32"), ["a" * 2**24])
        pyarrow.parquet.write_table(
            pyarrow.table({"text": text}), tmp_path / "a.parquet", compression="zstd", store_schema=False
        )
        assert (tmp_path / "a.parquet").stat().st_size < 2**20
        outcome = contained(lambda: list(read_corpus(tmp_path / "a.parquet").documents()), memory=2**28)
        assert outcome.kind == "refused", outcome


class TestRecipes:
    @pytest.mark.parametrize("text", hostile.YAML_POISON)
    def test_poison(self, tmp_path, monkeypatch, text):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "recipe.yaml").write_text(text)
        outcome = contained(lambda: load_recipe("recipe.yaml"))
        assert outcome.kind == "refused" or text.startswith("name: "), outcome
        assert len(outcome.text) < 20_000
        assert not (tmp_path / MARKER).exists()

    def test_aliases_would_unfold(self):
        """Nine levels of nine: 400 million items when the value is shown."""
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        refused(lambda: read_yaml("\n".join(lines), "It"), "more than 20,000 values")
        assert read_yaml("a: &a [1, 2]\nb: *a\n", "It") == {"a": [1, 2], "b": [1, 2]}
        refused(lambda: read_yaml("a: &a [*a]", "It"), "nested too deeply")

    def test_merges_would_grow_while_they_are_read(self):
        lines = ["a0: &a0 {x: 1, y: 2}"]
        lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
        refused(lambda: read_yaml("\n".join(lines), "It"), "merge keys")

    def test_a_key_twice_is_ambiguous(self):
        with pytest.raises(InputError, match="'steps' comes twice"):
            read_yaml("training:\n  steps: 1\n  steps: 2\n", "It")

    def test_infinite_numbers(self):
        with pytest.raises(InputError, match=r"optimiser\.lr.*finite"):
            load_recipe("nano", ["optimiser.lr=.inf"])

    def test_a_model_beyond_the_memory_is_refused_before_it_is_built(self, tmp_path):
        from spikesink.train.run import train

        recipe = load_recipe("nano", ["model.d_model=100000", "model.n_layers=1000"])
        refused(lambda: train(recipe, tmp_path / "run"), "GiB", "--plan")
        assert not (tmp_path / "run").exists()


class TestRecords:
    @pytest.fixture
    def folder(self, tmp_path):
        seeds.training_run().save(tmp_path)
        return tmp_path

    def test_numbers_that_are_not_finite(self, folder):
        path = folder / "training.json"
        path.write_text(path.read_text().replace('"loss_nats": 1.5', '"loss_nats": NaN'))
        with pytest.raises(RecordError, match="NaN is no JSON number"):
            TrainingRun.read(folder)

    def test_types_that_numpy_does_not_have(self, folder):
        header = json.dumps({"loss": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
        (folder / "curves.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(RecordError, match="cannot be read"):
            TrainingRun.read(folder)

    def test_names_of_arrays_are_no_paths(self, folder):
        save_file({"../../escaped": np.arange(3), "/abs": np.arange(2)}, folder / "curves.safetensors")
        record = TrainingRun.read(folder)
        record.save(folder / "again")
        assert set(TrainingRun.read(folder / "again").arrays) == {"../../escaped", "/abs"}
        assert sorted(path.name for path in (folder / "again").iterdir()) == ["curves.safetensors", "training.json"]

    @pytest.mark.parametrize("name", ["training.json", "curves.safetensors"])
    def test_a_pipe_does_not_block(self, folder, name):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(lambda: TrainingRun.read(folder), "not a regular file")


def test_a_message_cannot_steer_the_terminal(capsys, monkeypatch):
    import sys

    from spikesink.cli.main import run

    monkeypatch.setattr(sys, "argv", ["spikesink", "scan", "./\x1b]0;title\x07"])
    with pytest.raises(SystemExit, match="2"):
        run()
    assert "\x1b" not in capsys.readouterr().err


def test_what_the_system_refuses_is_one_message(capsys, monkeypatch):
    import sys

    from spikesink.cli import main

    monkeypatch.setattr(sys, "argv", ["spikesink", "train"])

    def full(**_):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(main, "app", full)
    with pytest.raises(SystemExit, match="2"):
        main.run()
    assert capsys.readouterr().err == "error: The system refused: No space left on device ('/somewhere').\n"
    monkeypatch.setattr(main, "app", lambda **_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(SystemExit, match="2"):
        main.run()
    assert "Not enough memory" in capsys.readouterr().err


def test_a_default_folder_is_never_another_runs(tmp_path, monkeypatch):
    """Two runs in one second, or a clock that is set back."""
    from spikesink.cli.options import output_folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "same")
    names = []
    for _ in range(3):
        folder = output_folder(None, False, "m")
        folder.mkdir(parents=True)
        names.append(folder.name)
    assert names == ["m-same", "m-same-2", "m-same-3"]


def test_a_memo_on_a_full_disk_is_one_message(tmp_path, monkeypatch):
    from spikesink.analyse import resume

    def full(_):
        raise OSError(28, "No space left on device")

    memo = resume.FinishedPasses(tmp_path, {})
    monkeypatch.setattr(resume.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        memo.get("x", lambda: {"a": 1})
