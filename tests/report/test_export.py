"""Files for other tools: parsed and matched by compressed-tensors, the library that reads the recipe's groups."""

import json
import shutil
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from made import interventions, made, provenance
from safetensors.numpy import load
from tiny import tiny

from spikesink.cli.export import CHECKPOINTS, _as_in, _check_same
from spikesink.cli.options import Loading
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.records import Anatomy
from spikesink.records.deployment import Budget, KeptSinks, KvCache, Quantisation
from spikesink.report.export import TOOLS, export
from spikesink.report.runs import Source, group

MODULES = ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]
ARRAYS = {
    "input_max.model.layers.0.mlp.up_proj": np.array([3.0, 5.0], np.float32),
    "input_max_without_spikes.model.layers.0.mlp.up_proj": np.array([2.0, 5.0], np.float32),
    "prefix.ids": np.array([7]),
    "prefix.keys.0": np.ones((2, 1, 6), np.float32),
    "amplifier": np.zeros((1, 2)),
}


@pytest.fixture
def record():
    made = interventions()
    advice = made.recommendation.model_copy(update={"modules": MODULES, "prefix_ids": [7]})
    quantised = made.quantisation.model_copy(update={"applicable": True, "worst_blocks": [4]})
    cache = made.kv_cache.model_copy(update={"applicable": True, "keep": 2, "table": _table(made)})
    facts = made.provenance.model_copy(update={"model": {**made.provenance.model, "model_type": "llama", "layers": 3}})
    changed = {"recommendation": advice, "quantisation": quantised, "kv_cache": cache, "provenance": facts}
    return made.model_copy(update={**changed, "arrays": ARRAYS})


def _table(made):
    """At reassigned positions, 1 first token costs 0.3 nats more than 4."""
    costs = {1: 0.31, 4: 0.01}
    shifted = [
        KeptSinks(**{**row.model_dump(), "positions": "reassigned", "loss_difference_nats": _cost(costs[row.keep])})
        for row in made.kv_cache.table
        if row.keep
    ]
    return [*made.kv_cache.table, *shifted]


def _cost(value):
    return {"value": value, "low": value, "high": value}


def test_the_recipe_leaves_out_what_was_named_and_nothing_else(record):
    modules = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.utils import match_named_modules

    modifier = yaml.safe_load(export(record, "llm-compressor"))["quant_stage"]["quant_modifiers"][
        "QuantizationModifier"
    ]
    config = modules.QuantizationConfig(**modifier)
    scheme = config.config_groups["group_0"]
    assert (scheme.input_activations.num_bits, scheme.input_activations.strategy) == (8, "tensor")
    assert (scheme.weights.strategy, scheme.input_activations.dynamic) == ("channel", True)
    model = tiny("llama")
    chosen = {name for name, _ in match_named_modules(model, scheme.targets, config.ignore)}
    linear = {name for name, module in model.named_modules() if type(module).__name__ == "Linear"}
    assert linear - chosen == {"lm_head", *MODULES}


def test_the_plain_list_follows_its_schema(record):
    plain = json.loads(export(record, "json"))
    assert plain["high_precision_modules"] == MODULES
    assert plain["keep_first_tokens"] == 2
    assert plain["prefix_token_ids"] == [7]
    assert plain["spike_channels"] == record.recommendation.channels
    schema = json.loads(export(record, "json-schema"))
    assert schema["title"] == "Recommendation of spikesink intervene"
    jsonschema.validate(plain, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plain, "spike_channels": "5"}, schema)


def test_first_tokens_are_those_for_the_positions_that_the_tool_gives(record):
    assert json.loads(export(record, "kvpress")) == {"press": "StreamingLLMPress", "n_sink": 2}
    streaming = json.loads(export(record, "streamingllm"))
    assert (streaming["start_size"], streaming["recent_size"], streaming["enable_pos_shift"]) == (4, 60, True)
    assert yaml.safe_load(export(record, "executorch")) == {"model": {"use_attention_sink": "4,60,1"}}


def test_servers_get_layers_and_prefix_ids(record):
    vllm, sglang = (json.loads(export(record, tool)) for tool in ("vllm", "sglang"))
    assert vllm["quantization_config"] == {"ignore": ["lm_head", *MODULES]}
    assert (vllm["prompt_token_ids_prefix"], vllm["notes"]) == ([7], [])
    assert sglang["environment"]["SGLANG_FP8_IGNORED_LAYERS"].split(",") == ["lm_head", *MODULES]
    assert sglang["quantization_config"]["ignored_layers"] == ["lm_head", *MODULES]
    assert sglang["input_ids_prefix"] == [7]


@pytest.mark.parametrize("tool", ["json", "vllm", "sglang", "torchao", "llm-compressor"])
def test_files_say_which_maps_were_not_measured(record, tool):
    assert "not measured" not in export(record, tool).decode()
    quantised = record.quantisation.model_copy(update={"skipped": ["ffn_in: it is fused"]})
    written = export(record.model_copy(update={"quantisation": quantised}), tool).decode()
    assert "What rounding does to ffn_in was not measured: it is fused." in written


def test_arguments_for_llama_cpp_stand_alone_and_the_note_beside_them(record, tmp_path, cli):
    quantised = record.quantisation.model_copy(update={"skipped": ["ffn_in: it is fused"]})
    record.model_copy(update={"quantisation": quantised}).save(tmp_path)
    told = cli("export", str(tmp_path), "--for", "gguf")
    assert all(line.startswith("--tensor-type") for line in told.out.splitlines())
    assert told.err == "What rounding does to ffn_in was not measured: it is fused.\n"


def test_llama_cpp_gets_patterns_of_its_own_names(record):
    assert export(record, "gguf").decode().splitlines() == [
        r"--tensor-type blk\.1\.ffn_gate\.=bf16",
        r"--tensor-type blk\.1\.ffn_up\.=bf16",
    ]
    with pytest.raises(InputError, match=r"llama.cpp has no name for 'model.layers.1.mlp.gate_proj' of 'unheard'"):
        export(of(record, "unheard"), "gguf")


def test_maxima_and_prefix_are_safetensors(record):
    maxima = load(export(record, "smoothquant"))
    assert {name.split(".")[0] for name in maxima} == {"input_max", "input_max_without_spikes"}
    assert maxima["input_max.model.layers.0.mlp.up_proj"].tolist() == [3.0, 5.0]
    assert set(load(export(record, "prefix"))) == {"ids", "keys.0"}


def test_the_lines_for_torchao_leave_out_what_was_named(record):
    """torchao is no dependency: `make serve-peer` reads the config with it."""
    written = json.loads(export(record, "torchao"))
    assert written["left_out"] == ["lm_head", *MODULES]
    scope = {"torch": torch, "left_out": set(written["left_out"])}
    exec(written["apply"][1], scope)
    model = tiny("llama")
    chosen = {name for name, module in model.named_modules() if scope["chosen"](module, name)}
    linear = {name for name, module in model.named_modules() if type(module).__name__ == "Linear"}
    assert linear - chosen == {"lm_head", *MODULES}


def test_measures_within_a_budget_come_first(record):
    ignored = ["model.layers.0.mlp.down_proj"]

    def within(*measures):
        made = {
            "measures": measures, "ignored": ignored, "blocks": [2], "perplexity": _cost(12.0), "within": True,
            "loss_difference_nats": _cost(0.01),
        }  # fmt: skip
        budget = Budget.model_validate({"nats": 0.05, "deployed": "int8", "chosen": made})
        return record.model_copy(update={"recommendation": record.recommendation.model_copy(update={"budget": budget})})

    text = export(within("one scale per token", "smoothing", "ignored layers"), "llm-compressor").decode()
    assert text.startswith("# For the smoothed checkpoint: spikesink export RUN MODEL --for smoothed")
    recipe = yaml.safe_load(text)
    modifier = recipe["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    assert modifier["ignore"] == ["lm_head", *ignored]
    assert modifier["config_groups"]["group_0"]["input_activations"]["strategy"] == "token"
    assert json.loads(export(within("ignored layers"), "vllm"))["quantization_config"]["ignore"][1:] == ignored
    behind = json.loads(export(within("prefix"), "torchao"))
    assert behind["notes"] == ["Behind the prefix: spikesink export RUN --for prefix"]
    with pytest.raises(InputError, match="no quantiser does by itself"):
        export(within("spike tokens kept"), "torchao")


def of(record, family):
    model = {**record.provenance.model, "model_type": family}
    return record.model_copy(update={"provenance": record.provenance.model_copy(update={"model": model})})


def test_what_cannot_be_said_is_refused(record):
    with pytest.raises(InputError, match="did you mean 'kvpress'"):
        export(record, "kvpres")
    bare = record.model_copy(update={"quantisation": Quantisation(applicable=False, reason="not asked for")})
    with pytest.raises(InputError, match="--which quantisation measures it"):
        export(bare, "llm-compressor")
    for tool in ("torchao", "vllm", "sglang", "llm-compressor"):
        with pytest.raises(InputError, match=r"'gpt2' are no torch.nn.Linear"):
            export(of(record, "gpt2"), tool)
    for tool in ("smoothquant", "prefix"):
        with pytest.raises(InputError, match="--which remedies measures it"):
            export(record.model_copy(update={"arrays": {}}), tool)
    reasons = ["prefix: the model has no spikes", "smoothing: no norm"]
    tried = record.remedies.model_copy(update={"applicable": True, "skipped": reasons})
    with pytest.raises(InputError, match=r"no prefix to write: the model has no spikes\.$"):
        export(record.model_copy(update={"arrays": {}, "remedies": tried}), "prefix")
    still = record.kv_cache.model_copy(update={"table": record.kv_cache.table[:6], "reassigned_reason": "no rotation"})
    with pytest.raises(InputError, match="no rotation"):
        export(record.model_copy(update={"kv_cache": still}), "executorch")
    with pytest.raises(InputError, match="--which kv_cache measures it"):
        export(record.model_copy(update={"kv_cache": KvCache(applicable=False)}), "kvpress")
    old = record.model_copy(update={"recommendation": record.recommendation.model_copy(update={"modules": []})})
    with pytest.raises(InputError, match="before modules were kept"):
        export(old, "json")


def test_the_command(cli, record, tmp_path, checkpoint):
    record.save(tmp_path / "run")
    shown = cli("export", tmp_path / "run", "--for", "kvpress")
    assert (shown.code, json.loads(shown.out)["n_sink"]) == (0, 2)
    assert cli("export", tmp_path / "run", "--for", "llm-compressor", "--out", "recipe.yaml").code == 0
    again = cli("export", tmp_path / "run", "--for", "llm-compressor", "--out", "recipe.yaml")
    assert (again.code, "--force" in again.err) == (2, True)
    assert cli("export", tmp_path / "run", "--for", "tensorrt").code == 2
    shown = cli("export", "--help").out
    assert all(tool in shown for tool in (*TOOLS, *CHECKPOINTS))
    nowhere = cli("export", tmp_path / "run", "--for", "rotated")
    assert (nowhere.code, "--out FOLDER" in nowhere.err) == (2, True)
    other = cli("export", tmp_path / "run", checkpoint, "--for", "rotated", "--out", "folder")
    assert (other.code, "has other files" in other.err, Path("folder").exists()) == (2, True, False)
    nowhere = cli("export", tmp_path / "run", "--for", "json", "--out", "nodir/x.json")
    assert (nowhere.code, "There is no folder 'nodir'" in nowhere.err) == (2, True)
    folder = cli("export", tmp_path / "run", "--for", "json", "--out", tmp_path / "run", "--force")
    assert (folder.code, "is a folder" in folder.err) == (2, True)
    by_file = cli("export", tmp_path / "run" / "interventions.json", "--for", "kvpress")
    assert (by_file.code, by_file.out) == (0, cli("export", tmp_path / "run", "--for", "kvpress").out)
    assert "did you mean 'vllm'" in cli("export", tmp_path / "run", "--for", "vLLM").err
    idle = cli("export", tmp_path / "run", "--for", "json", "--base", "x")
    assert (idle.code, "--base would change nothing" in idle.err) == (2, True)


def test_nothing_to_leave_out_is_said_and_writes_no_file(cli, record, tmp_path):
    nothing = record.recommendation.model_copy(update={"modules": []})
    fine = record.quantisation.model_copy(update={"worst_blocks": []})
    record.model_copy(update={"recommendation": nothing, "quantisation": fine}).save(tmp_path / "run")
    ran = cli("export", tmp_path / "run", "--for", "gguf", "--out", "arguments.txt")
    assert (ran.code, ran.out, Path("arguments.txt").exists()) == (0, "", False)
    assert "Nothing to leave out" in ran.err


def test_what_is_no_text_does_not_go_to_a_terminal(cli, record, tmp_path, monkeypatch):
    record.save(tmp_path / "run")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    ran = cli("export", tmp_path / "run", "--for", "prefix")
    assert (ran.code, ran.out, "give --out FILE" in ran.err) == (2, "", True)
    assert cli("export", tmp_path / "run", "--for", "kvpress").code == 0


def of_files(record, **model):
    return record.model_copy(update={"provenance": record.provenance.model_copy(update={"model": model})})


BASE = {"name": "base", "file_sha256": {"model.safetensors": "1"}}
ADAPTED = {**BASE, "name": "a", "adapter": {"name": "a", "file_sha256": {"adapter_model.safetensors": "2"}}}


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (ADAPTED, True),
        ({**ADAPTED, "name": "moved", "adapter": {**ADAPTED["adapter"], "name": "moved"}}, True),
        (BASE, False),
        ({**ADAPTED, "adapter": {"file_sha256": {"adapter_model.safetensors": "3"}}}, False),
        ({**ADAPTED, "dequantised_from": "mxfp4"}, False),
        ({**ADAPTED, "gguf_quantisation": "Q4_1"}, False),
        # Records hash these since 28 November 2026: one that lacks them may be older; another hash is another file.
        ({**ADAPTED, "file_sha256": {**BASE["file_sha256"], "chat_template.jinja": "4", "vocab.txt": "5"}}, True),
        ({**ADAPTED, "file_sha256": {**BASE["file_sha256"], "tokenizer.json": "4"}}, False),
        ({**ADAPTED, "file_sha256": {"model-00001-of-00002.safetensors": "1"}}, False),
    ],
)
def test_models_are_the_same_by_all_that_they_are_made_of(record, model, same):
    records = [made(Anatomy, provenance=provenance()), record]
    sources = [Source(of_files(each, **of), Path()) for each, of in zip(records, (ADAPTED, model), strict=True)]
    assert len(group(sources)) == (1 if same else 2)

    class Accessed:
        name, provenance = "x", model

    if same:
        _check_same(ADAPTED, Accessed)
    else:
        with pytest.raises(InputError, match="has other files"):
            _check_same(ADAPTED, Accessed)


def test_another_model_is_refused_before_it_is_loaded(checkpoint):
    with pytest.raises(InputError, match=r"of 'base', and 'SmolLM2.*name it"):
        _as_in(BASE, Loading())
    with pytest.raises(InputError, match="has other files"):
        _as_in({**BASE, "file_sha256": {"config.json": "1"}}, Loading(str(checkpoint)))
    loading = _as_in({**BASE, "dtype": "bfloat16", "revision": "v2"}, Loading(str(checkpoint)))
    assert (loading.dtype, loading.revision) == ("bfloat16", None)


def test_only_another_checkpoint_is_replaced(cli, record, tmp_path, checkpoint):
    from spikesink.access import load

    model = shutil.copytree(checkpoint, tmp_path / "models" / "model")
    of_files(record, **load(model).provenance).save(tmp_path / "run")
    shutil.copy(model / "config.json", tmp_path / "models")
    (tmp_path / "else").mkdir()
    for out, words in (
        (tmp_path / "run", "is no checkpoint"),
        (tmp_path / "else", "is no checkpoint"),
        (model, "would be lost"),
        (tmp_path / "models", "would be lost"),
    ):
        before = sorted(out.rglob("*"))
        ran = cli("export", tmp_path / "run", model, "--for", "rotated", "--out", out, "--force")
        assert (ran.code, words in " ".join(ran.err.split()), sorted(out.rglob("*"))) == (2, True, before)
    other = shutil.copytree(checkpoint, tmp_path / "other")
    assert cli("export", tmp_path / "run", model, "--for", "rotated", "--out", other, "--force").code == 0
    assert json.loads((other / "config.json").read_text())["architectures"]


def test_a_rotated_checkpoint_of_the_run(cli, record, tmp_path, checkpoint, monkeypatch):
    from spikesink.access import full_batch, load, run

    accessed = load(checkpoint)
    facts = record.provenance.model_copy(update={"model": accessed.provenance})
    record.model_copy(update={"provenance": facts}).save(tmp_path / "run")
    monkeypatch.setattr("spikesink.cli.progress.EVERY_S", 0.0)
    ran = cli("export", tmp_path / "run", checkpoint, "--for", "rotated", "--out", "folder")
    assert ran.code == 0, ran.err
    assert "load model: 1 of 1" in ran.err and "write checkpoint: 0 of 1" in ran.err
    batch = full_batch(torch.arange(3, 14)[None])
    torch.testing.assert_close(run(load("folder"), batch), run(accessed, batch), rtol=1e-4, atol=1e-4)

    def refusing(_accessed):
        raise DoesNotApplyError("the linear maps of block 1 are transposed")

    monkeypatch.setattr("spikesink.intervene.fold.rotated", refusing)
    ran = cli("export", tmp_path / "run", checkpoint, "--for", "rotated", "--out", "other")
    assert (ran.code, Path("other").exists()) == (2, False)
    assert "of block 1 are transposed. Instead --for json says what to leave in high precision." in ran.err
