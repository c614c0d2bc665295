"""Whether a config can belong to the weights beside it, asked before anything of the config's size is built.

What a checkpoint lacks, transformers makes up, at whatever size the config names: a config of a few bytes could fill
the memory, or build layers for hours, before its weights are found missing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from spikesink.errors import ModelError

SPARE_ELEMENTS = 2**26
"""What a model may hold beyond twice its stored weights: masks and tables of positions, which no checkpoint stores."""


@dataclass(frozen=True)
class Stored:
    """What lies in a checkpoint's weight files."""

    tensors: int
    elements: int


def check_config_sizes(config: Any, name: str, stored: Stored) -> None:
    """Refuse a config whose model is far larger than the weights. Raises ModelError.

    Counted on the meta device, without memory, after layers were counted, which build one by one.
    """
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > stored.tensors:
        raise ModelError(
            f"The config of '{name}' names {layers:,} layers, but its weights are {stored.tensors:,} tensors. Use "
            "weights and config of the same model."
        )
    described = _elements(config)
    if described is not None and described > 2 * stored.elements + SPARE_ELEMENTS:
        raise ModelError(
            f"The config of '{name}' describes a model of {described:,} numbers, but its weights hold "
            f"{stored.elements:,}. Use weights and config of the same model."
        )


def _elements(config: Any) -> int | None:
    """Parameters and buffers of the config's model; None where it does not build, which loading will explain."""
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        # Shared weights are stored once, however many layers use them.
        model.tie_weights()
    except Exception:
        return None
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
