"""Checkpoints that are stored quantised: read by transformers' own quantisers as plain weights, or refused by name."""

from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedModel

from spikesink.errors import ModelError, UnsupportedModelError, short


def quantisation_method(config: Any) -> str | None:
    """The method that a config names, None where the weights are said to be plain."""
    stored = _stored(config)
    if not stored:
        return None
    by_bits = next((bits for bits in ("load_in_4bit", "load_in_8bit") if stored.get(bits)), None)
    return str(stored.get("quant_method") or ("bitsandbytes" if by_bits else "a method without a name"))


def dequantising(config: Any, name: str, device: str) -> dict[str, Any]:
    """What `from_pretrained` must be told so that plain weights can be had; nothing for a plain checkpoint.

    Some methods are undone while loading; bitsandbytes is loaded quantised, on `device`, and undone by `made_plain`.
    Raises UnsupportedModelError, with the method, where transformers cannot.
    """
    method, stored = quantisation_method(config), _stored(config)
    if method is None:
        return {}
    from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

    if not getattr(config, "quantization_config", None):
        config.quantization_config = stored
        del config.compression_config
    try:
        kind: Any = AutoQuantizationConfig.from_dict(dict(stored))
    except Exception as error:
        raise refused(name, method, error) from error
    if hasattr(kind, "dequantize"):
        kind.dequantize = True
        return {"quantization_config": kind}
    with suppress(ImportError):
        if _undone_afterwards(AutoHfQuantizer.from_config(kind, pre_quantized=True)):
            return {"device_map": device}
    raise refused(name, method, None)


def made_plain(model: PreTrainedModel, name: str, method: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """The de-quantised model as one that never was: all weights in one type. Raises UnsupportedModelError."""
    if _undone_afterwards(getattr(model, "hf_quantizer", None)):
        model = model.dequantize(dtype if isinstance(dtype, torch.dtype) else None)
    forget_quantisation(model)
    model.is_quantized = False  # type: ignore[attr-defined]
    odd = next(
        (each for each, weight in model.named_parameters() if not weight.is_floating_point() or weight.itemsize < 2),
        None,
    )
    if odd is not None:
        raise refused(name, method, None)
    plain: Any = model
    return plain.to(dtype) if isinstance(dtype, torch.dtype) else model


def forget_quantisation(model: PreTrainedModel) -> None:
    """Take off what makes transformers treat plain weights as quantised ones."""
    for holder, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, attribute):
            delattr(holder, attribute)


def _undone_afterwards(quantiser: Any) -> bool:
    """Whether it has a way to make a model that is loaded quantised a plain one."""
    from transformers.quantizers.base import HfQuantizer

    return quantiser is not None and type(quantiser)._dequantize is not HfQuantizer._dequantize


def refused(name: str, method: str, error: Exception | None) -> UnsupportedModelError:
    """The error for a quantised checkpoint that cannot be read as plain weights."""
    reason = "" if error is None else f": {type(error).__name__}: {short(error)}"
    return UnsupportedModelError(
        f"'{name}' is stored quantised ({method}); its weights are not the ones that were trained, and transformers "
        f"does not de-quantise them on this machine{reason}. Scan the unquantised checkpoint."
    )


def _stored(config: Any) -> dict[str, Any]:
    stored = getattr(config, "quantization_config", None)
    if not stored and getattr(config, "compression_config", None):
        # compressed-tensors called it so at first.
        stored = {"quant_method": "compressed-tensors", **config.compression_config}
    if not stored:
        return {}
    if not isinstance(stored, dict):
        stored = stored.to_dict()
    if not isinstance(stored, dict):
        raise ModelError(f"The config's quantization_config is {type(stored).__name__}; expected an object.")
    return stored
