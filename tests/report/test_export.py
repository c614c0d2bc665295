"""Files for other tools: parsed and matched by compressed-tensors, the library that reads the recipe's groups."""

import json

import pytest
import yaml
from made import interventions
from tiny import tiny

from spikesink.errors import InputError
from spikesink.records.interventions import KvCache, Quantisation
from spikesink.report.export import TOOLS, export

MODULES = ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]


@pytest.fixture
def record():
    made = interventions()
    advice = made.recommendation.model_copy(update={"modules": MODULES})
    quantised = made.quantisation.model_copy(update={"applicable": True, "worst_blocks": [4]})
    cache = made.kv_cache.model_copy(update={"applicable": True, "keep": 2})
    return made.model_copy(update={"recommendation": advice, "quantisation": quantised, "kv_cache": cache})


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


def test_the_cache_and_the_plain_list(record):
    assert json.loads(export(record, "kvpress")) == {"press": "StreamingLLMPress", "n_sink": 2}
    plain = json.loads(export(record, "json"))
    assert plain["high_precision_modules"] == MODULES
    assert plain["keep_first_tokens"] == 2
    assert plain["spike_channels"] == record.recommendation.channels


def test_what_cannot_be_said_is_refused(record):
    with pytest.raises(InputError, match="did you mean 'kvpress'"):
        export(record, "kvpres")
    bare = record.model_copy(update={"quantisation": Quantisation(applicable=False, reason="not asked for")})
    with pytest.raises(InputError, match="--which quantisation measures it"):
        export(bare, "llm-compressor")
    with pytest.raises(InputError, match="--which kv_cache measures it"):
        export(record.model_copy(update={"kv_cache": KvCache(applicable=False)}), "kvpress")
    old = record.model_copy(update={"recommendation": record.recommendation.model_copy(update={"modules": []})})
    with pytest.raises(InputError, match="before modules were kept"):
        export(old, "json")
    assert set(TOOLS) == {"json", "llm-compressor", "kvpress"}


def test_the_command(cli, record, tmp_path):
    record.save(tmp_path / "run")
    shown = cli("export", tmp_path / "run", "--for", "kvpress")
    assert (shown.code, json.loads(shown.out)["n_sink"]) == (0, 2)
    assert cli("export", tmp_path / "run", "--for", "llm-compressor", "--out", "recipe.yaml").code == 0
    again = cli("export", tmp_path / "run", "--for", "llm-compressor", "--out", "recipe.yaml")
    assert (again.code, "--force" in again.err) == (2, True)
    assert cli("export", tmp_path / "run", "--for", "tensorrt").code == 2
