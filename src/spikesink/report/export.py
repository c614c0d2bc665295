"""What a run of `intervene` recommends, as files that serving and quantisation tools read."""

import json
from collections.abc import Callable
from typing import Any

import yaml

from spikesink.errors import InputError, did_you_mean
from spikesink.records.interventions import Interventions

INT8 = {"num_bits": 8, "type": "int", "symmetric": True}


def export(record: Interventions, tool: str) -> str:
    """The file for a tool of TOOLS.

    Raises InputError for an unknown tool, a run without the measurement that it needs, or a family that it cannot name.
    """
    if tool not in TOOLS:
        raise InputError(f"Unknown tool '{tool}'{did_you_mean(tool, list(TOOLS))}")
    return TOOLS[tool](record)


def _modules(record: Interventions) -> list[str]:
    """Linear maps to leave in high precision; none where no block stands out."""
    if not record.quantisation.applicable:
        raise InputError(_missing("which linear maps break int8", "quantisation"))
    if record.quantisation.worst_blocks and not record.recommendation.modules:
        raise InputError("The run was made before modules were kept by name; run spikesink intervene again.")
    return record.recommendation.modules


def _keep(record: Interventions) -> int:
    """First tokens to keep in the cache."""
    if not record.kv_cache.applicable or record.kv_cache.keep is None:
        raise InputError(_missing("how many first tokens a cache must keep", "kv_cache"))
    return record.kv_cache.keep


def _missing(what: str, part: str) -> str:
    return f"The run does not say {what}; spikesink intervene MODEL --which {part} measures it."


def _plain(record: Interventions) -> str:
    """What the other tools' files are made of."""
    advice = record.recommendation
    content = {
        "model": record.provenance.model.get("name"),
        "high_precision_modules": _modules(record),
        "measured_at": "int8 per tensor, dynamic",
        "spike_tokens": advice.tokens,
        "spike_channels": advice.channels,
        "keep_first_tokens": record.kv_cache.keep if record.kv_cache.applicable else None,
    }
    return _json(content)


def _llm_compressor(record: Interventions) -> str:
    """A recipe for `oneshot`: int8 as it was measured, one dynamic scale a tensor, without what breaks it."""
    group = {
        "targets": ["Linear"],
        "weights": {**INT8, "strategy": "channel", "dynamic": False},
        "input_activations": {**INT8, "strategy": "tensor", "dynamic": True},
    }
    modifier = {"ignore": ["lm_head", *_modules(record)], "config_groups": {"group_0": group}}
    content = {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}
    return yaml.safe_dump(content, sort_keys=False)


def _kvpress(record: Interventions) -> str:
    """Arguments of StreamingLLMPress, which keeps true positions, as the table behind it; how much to compress is the
    user's choice."""
    return _json({"press": "StreamingLLMPress", "n_sink": _keep(record)})


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


TOOLS: dict[str, Callable[[Interventions], str]] = {
    "json": _plain,
    "llm-compressor": _llm_compressor,
    "kvpress": _kvpress,
}
"""By the name that `--for` takes."""
