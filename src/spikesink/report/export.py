"""What a run of `intervene` recommends, as files that serving and quantisation tools read: one function a tool."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from pydantic import ConfigDict

from spikesink.errors import InputError, did_you_mean
from spikesink.records.advice import unmeasured
from spikesink.records.base import Frozen
from spikesink.records.deployment import KEPT, PER_TOKEN, PREFIX, REASSIGNED, SMOOTHING, TRUE, MeasureSet, fewest
from spikesink.records.interventions import Interventions

INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
NOT_LINEAR = ("gpt2", "openai-gpt")
"""Model types whose linear maps are no torch.nn.Linear, the module that quantisers look for."""


def export(record: Interventions, tool: str) -> bytes:
    """The file for a tool of TOOLS.

    Raises InputError for an unknown tool, a run without the measurement that it needs, or a family that it cannot name.
    """
    if tool not in TOOLS:
        raise InputError(f"Unknown tool '{tool}'{did_you_mean(tool, list(TOOLS))}")
    content = TOOLS[tool](record)
    return content if isinstance(content, bytes) else content.encode()


def _modules(record: Interventions) -> list[str]:
    """Linear maps to leave in high precision: those of a budget, else those of the blocks that stand out, if any."""
    if chosen := _chosen(record):
        return chosen.ignored
    if not record.quantisation.applicable:
        raise InputError(_missing("which linear maps break int8", "quantisation"))
    if record.quantisation.worst_blocks and not record.recommendation.modules:
        raise InputError("The run was made before modules were kept by name; run spikesink intervene again.")
    return record.recommendation.modules


def _chosen(record: Interventions) -> MeasureSet | None:
    """The measures within a budget, where one was given and holds."""
    budget = record.recommendation.budget
    return None if budget is None else budget.chosen


def _chosen_measures(record: Interventions) -> list[str]:
    return chosen.measures if (chosen := _chosen(record)) else []


def _granularity(record: Interventions) -> str:
    """`tensor` or `token`: what a dynamic scale is of. Raises InputError for measures that no quantiser has."""
    measures = _chosen_measures(record)
    if KEPT in measures:
        raise InputError(
            "Within the budget only with spike tokens kept in high precision, which no quantiser does by itself; put a "
            "prefix in front (--which remedies), or run without --budget."
        )
    return "token" if PER_TOKEN in measures else "tensor"


def notes(record: Interventions) -> list[str]:
    """What was not measured, and what the measures within a budget need beside this file."""
    measures = _chosen_measures(record)
    needed = {
        SMOOTHING: "For the smoothed checkpoint: spikesink export RUN MODEL --for smoothed --out FOLDER",
        PREFIX: "Behind the prefix: spikesink export RUN --for prefix",
    }
    return [*unmeasured(record.quantisation.skipped), *(note for name, note in needed.items() if name in measures)]


def _linears(record: Interventions) -> list[str]:
    """The same for tools that look for torch's Linear."""
    family = record.provenance.model.get("model_type")
    if family in NOT_LINEAR:
        raise InputError(
            f"The linear maps of '{family}' are no torch.nn.Linear, and this tool quantises nothing else; "
            "--for json has their names."
        )
    return _modules(record)


def _keep(record: Interventions, positions: str = TRUE) -> tuple[int, int]:
    """First tokens to keep in the cache, and the largest window that this was measured with."""
    cache = record.kv_cache
    if not cache.applicable or cache.keep is None:
        raise InputError(_missing("how many first tokens a cache must keep", "kv_cache"))
    window = max(row.window for row in cache.table if row.window)
    if positions == TRUE:
        return cache.keep, window
    if not any(row.positions == positions for row in cache.table):
        raise InputError(
            f"The tool gives kept tokens new positions, and that was not measured: {cache.reassigned_reason}"
        )
    return fewest(cache.table, window, positions, cache.tolerance_nats), window


def _arrays(record: Interventions, *names: str) -> dict[str, np.ndarray]:
    """Arrays whose names start with one of these."""
    return {name: array for name, array in record.arrays.items() if name.startswith(names)}


def _missing(what: str, part: str) -> str:
    return f"The run does not say {what}; spikesink intervene MODEL --which {part} measures it."


class Plain(Frozen):
    """What a run of `spikesink intervene` recommends for serving its model."""

    model_config = ConfigDict(title="Recommendation of spikesink intervene")

    schema_version: int = 1
    model: str | None
    high_precision_modules: list[str]
    """Linear maps to leave unquantised, as `named_modules` calls them."""
    measured_at: str
    measures: list[str]
    """With which the loss stays within the budget; empty without a budget."""
    spike_tokens: list[dict[str, Any]]
    """Rules: `position`, or `token_id` with its `text`; `spikes` of so many (`of`)."""
    spike_channels: list[int]
    keep_first_tokens: int | None
    """First tokens to keep in a cache, at their true positions; null where it was not measured."""
    prefix_token_ids: list[int]
    """Ids to put before every sequence; empty where they mend nothing, or were not measured."""
    notes: list[str]
    """What was not measured, and what the measures need beside this file."""


def _plain(record: Interventions) -> str:
    advice = record.recommendation
    content = Plain(
        model=record.provenance.model.get("name"),
        high_precision_modules=_modules(record),
        measured_at=f"int8 per {_granularity(record)}, dynamic",
        measures=_chosen_measures(record),
        spike_tokens=advice.tokens,
        spike_channels=advice.channels,
        keep_first_tokens=record.kv_cache.keep if record.kv_cache.applicable else None,
        prefix_token_ids=advice.prefix_ids,
        notes=notes(record),
    )
    return _json(content.model_dump())


def _json_schema(_record: Interventions) -> str:
    """The schema of `--for json`."""
    return _json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Plain.model_json_schema()})


def _llm_compressor(record: Interventions) -> str:
    """A recipe for `oneshot`: int8 as it was measured, one dynamic scale a tensor or token, without what breaks it."""
    group = {
        "targets": ["Linear"],
        "weights": {**INT8, "strategy": "channel", "dynamic": False},
        "input_activations": {**INT8, "strategy": _granularity(record), "dynamic": True},
    }
    modifier = {"ignore": ["lm_head", *_linears(record)], "config_groups": {"group_0": group}}
    content = {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}
    return "".join(f"# {note}\n" for note in notes(record)) + yaml.safe_dump(content, sort_keys=False)


def _torchao(record: Interventions) -> str:
    """The config as torchao's `config_to_dict` spells it, what its filter leaves out, and how both are applied."""
    row: dict[str, Any] = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    tensor: dict[str, Any] = {"_type": "PerTensor", "_version": 1, "_data": {}}
    data = {
        "act_mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
        "granularity": [row if _granularity(record) == "token" else tensor, row],
    }
    config = {"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": data}
    apply = [
        "advice = json.load(open(FILE)); left_out = set(advice['left_out'])",
        "def chosen(module, name): return isinstance(module, torch.nn.Linear) and name not in left_out",
        "torchao.quantization.quantize_(model, torchao.core.config.config_from_dict(advice['config']), chosen)",
    ]
    return _json({"config": config, "left_out": ["lm_head", *_linears(record)], "apply": apply, "notes": notes(record)})


def _vllm(record: Interventions) -> str:
    """`--quantization-config` of its online quantisation, which names layers before they are fused; ids for prompts."""
    config = {"ignore": ["lm_head", *_linears(record)]}
    ids = record.recommendation.prefix_ids
    return _json({"quantization_config": config, "prompt_token_ids_prefix": ids, "notes": notes(record)})


def _sglang(record: Interventions) -> str:
    """The variable that its online fp8 reads, the same in a checkpoint's quantization_config, and ids for prompts."""
    layers = ["lm_head", *_linears(record)]
    return _json(
        {
            "environment": {"SGLANG_FP8_IGNORED_LAYERS": ",".join(layers)},
            "quantization_config": {"ignored_layers": layers},
            "input_ids_prefix": record.recommendation.prefix_ids,
            "notes": notes(record),
        }
    )


def _gguf(record: Interventions) -> str:
    """Arguments of llama-quantize, one a line: a tensor in bf16 is multiplied without rounding what enters it."""
    import gguf

    family, layers = record.provenance.model.get("model_type"), record.provenance.model.get("layers") or 0
    # llama.cpp writes an architecture without what separates its words.
    names = {re.sub(r"[-_]|text$", "", name): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    arch = names.get("llama" if family == "mistral" else re.sub(r"[-_]|text$", "", str(family)))
    known = None if arch is None else gguf.get_tensor_name_map(arch, layers)
    lines = []
    for module in _modules(record):
        tensor = None if known is None else known.get_name(module)
        if tensor is None:
            raise InputError(f"llama.cpp has no name for '{module}' of '{family}'; --for json has ours.")
        lines.append(f"--tensor-type {re.escape(tensor)}\\.=bf16\n")
    return "".join(lines)


def _kvpress(record: Interventions) -> str:
    """Arguments of StreamingLLMPress, which keeps true positions, as the table behind it; how much to compress is the
    user's choice."""
    return _json({"press": "StreamingLLMPress", "n_sink": _keep(record)[0]})


def _streamingllm(record: Interventions) -> str:
    """Arguments of StreamingLLM's examples, which give kept tokens new positions."""
    keep, window = _keep(record, REASSIGNED)
    return _json(
        {
            "enable_start_recent_kv_cache": True,
            "enable_pos_shift": True,
            "start_size": keep,
            "recent_size": window - keep,
        }
    )


def _executorch(record: Interventions) -> str:
    """A config of export_llm: sink size, window beside it, tokens that are dropped at once (one, as was measured)."""
    keep, window = _keep(record, REASSIGNED)
    return yaml.safe_dump({"model": {"use_attention_sink": f"{keep},{window - keep},1"}})


def _smoothquant(record: Interventions) -> bytes:
    """Largest magnitude (channel,) that enters each linear map: `input_max.NAME`, `input_max_without_spikes.NAME`."""
    return _safetensors(_arrays(record, "input_max"), "the largest magnitudes that enter linear maps")


def _prefix(record: Interventions) -> bytes:
    """The prefix's ids, and its keys and values (head, token, d_head) by layer, for `intervene.prefix.load_prefix`."""
    arrays = _arrays(record, "prefix.")
    if record.remedies.applicable and not arrays:
        reasons = [each.removeprefix("prefix: ") for each in record.remedies.skipped if each.startswith("prefix: ")]
        raise InputError(f"There is no prefix to write: {'; '.join(reasons)}.")
    own = {name.removeprefix("prefix."): array for name, array in arrays.items()}
    return _safetensors(own, "which tokens to put in front")


def _safetensors(arrays: dict[str, np.ndarray], what: str) -> bytes:
    from safetensors.numpy import save

    if not arrays:
        raise InputError(_missing(what, "remedies"))
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


TOOLS: dict[str, Callable[[Interventions], str | bytes]] = {
    "json": _plain,
    "json-schema": _json_schema,
    "llm-compressor": _llm_compressor,
    "torchao": _torchao,
    "vllm": _vllm,
    "sglang": _sglang,
    "gguf": _gguf,
    "kvpress": _kvpress,
    "streamingllm": _streamingllm,
    "executorch": _executorch,
    "smoothquant": _smoothquant,
    "prefix": _prefix,
}
"""By the name that `--for` takes."""
