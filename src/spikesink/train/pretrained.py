"""A recipe whose model is a pretrained one, as it is or with choices replaced: `model.from`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from spikesink.access import AccessedModel, load
from spikesink.access.checkpoint import Checkpoint, find_checkpoint
from spikesink.errors import InputError, short
from spikesink.zoo import DecoderSpec, SpikesinkDecoderForCausalLM, from_hf
from spikesink.zoo.convert import spec_of
from spikesink.zoo.graft import check_graft, graft

EMBEDDED = "embedded"
"""What a recipe calls the model that needs no name on the command line."""
CALIBRATION = 8
"""Training sequences that replaced parts are fitted on."""


def pretrained_spec(name: str) -> DecoderSpec:
    """The spec of a model from its config alone. Raises ModelError and UnsupportedModelError."""
    checkpoint = _checkpoint(name)
    return spec_of(_from_checkpoint(AutoConfig, checkpoint))


def pretrained_tokenizer(name: str) -> Any:
    """The tokenizer that the model was trained with."""
    return _from_checkpoint(AutoTokenizer, _checkpoint(name))


def loaded(name: str) -> AccessedModel:
    """The model itself in float32, in which it is trained and compared: on a GPU a checkpoint has its own dtype."""
    return load(None if name == EMBEDDED else name, dtype="float32")


def pretrained_model(
    name: str, target: DecoderSpec, sample: Callable[[int], np.ndarray]
) -> SpikesinkDecoderForCausalLM:
    """The model as a zoo decoder with the target's choices, fitted on the first training sequences.

    Raises InputError where the target asks for what a graft cannot replace.
    """
    accessed = loaded(name)
    decoder = from_hf(accessed.model)
    if target == decoder.config.decoder_spec:
        return decoder
    ids = torch.from_numpy(np.stack([sample(index) for index in range(CALIBRATION)]))
    return graft(decoder, target, ids)


def resolve(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain data with `model.from` replaced by the whole spec, and `pretrained` naming the model."""
    model = content.get("model")
    if not isinstance(model, dict) or "from" not in model:
        return content
    changes = {key: value for key, value in model.items() if key != "from"}
    name = model["from"]
    if not isinstance(name, str):
        raise InputError(f"model.from is {name!r}; expected a hub id, a folder, a GGUF file or '{EMBEDDED}'.")
    base = pretrained_spec(name)
    target = DecoderSpec.parse({**base.model_dump(mode="json"), **changes}, "model")
    if target != base:
        check_graft(base, target)
    return {**content, "model": target.model_dump(mode="json"), "pretrained": name}


def _checkpoint(name: str) -> Checkpoint:
    return find_checkpoint(None if name == EMBEDDED else name, revision=None, allow_pickle=False)


def _from_checkpoint(kind: Any, checkpoint: Checkpoint) -> Any:
    try:
        return kind.from_pretrained(checkpoint.source, **checkpoint.at_revision)
    except Exception as error:
        raise InputError(f"'{checkpoint.name}' cannot be read ({type(error).__name__}: {short(error)}).") from error
