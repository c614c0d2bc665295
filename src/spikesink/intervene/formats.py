"""Formats that models are served in: values are rounded to a format's grid and stay floating point.

The grids, scales and scale formats are those of compressed-tensors, which vLLM and llm-compressor use; e5m2, which it
does not have, is torch's own type.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikesink.errors import DoesNotApplyError, InputError

E5M2 = torch.float8_e5m2
_E5M2_MAX = torch.finfo(E5M2).max
_E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class Format:
    """A number format with its scales: one per tensor, token, channel, or group of consecutive channels."""

    element: str
    """e4m3, e5m2, e2m1, int8 or int4."""
    scales: str
    """`tensor`, `token`, `channel`, or the group's size and how its scale is stored."""
    arguments: str | dict[str, Any] | None
    """compressed-tensors' scheme whose activations are quantised like this, or its arguments; None for torch's e5m2."""
    static: bool = False
    """The scale comes from other text; values beyond it are cut off."""
    fixed: float | None = None
    """Magnitude that the scale is made of, whatever the values are."""
    smallest_normal: float = 1.0
    """Smallest normal number of the element, in units of the scale; an integer's smallest."""


_E4M3 = 2.0**-6
"""Smallest normal number of e4m3."""


def _group(element: str, size: int) -> dict[str, Any]:
    bits, kind = {"e4m3": (8, "float"), "int4": (4, "int")}[element]
    return {"num_bits": bits, "type": kind, "strategy": "group", "group_size": size}


_INT8_PER_TENSOR = {"num_bits": 8, "type": "int", "strategy": "tensor"}

FORMATS: dict[str, Format] = {
    "fp8 e4m3 per tensor static": Format("e4m3", "tensor", "FP8", static=True, smallest_normal=_E4M3),
    "fp8 e4m3 per tensor": Format("e4m3", "tensor", "FP8", smallest_normal=_E4M3),
    "fp8 e5m2 per tensor": Format("e5m2", "tensor", None, smallest_normal=2.0**-14),
    "fp8 e4m3 per token": Format("e4m3", "token", "FP8_DYNAMIC", smallest_normal=_E4M3),
    "fp8 e4m3 per 128": Format("e4m3", "128 channels", "FP8_BLOCK", smallest_normal=_E4M3),
    "mxfp8": Format("e4m3", "32 channels, powers of two", "MXFP8", smallest_normal=_E4M3),
    "mxfp4": Format("e2m1", "32 channels, powers of two", "MXFP4"),
    "nvfp4": Format("e2m1", "16 channels in e4m3, and one per tensor", "NVFP4"),
    "fp8 e4m3 scale 1": Format("e4m3", "none", "FP8", fixed=_E4M3_MAX, smallest_normal=_E4M3),
    "fp8 e4m3 per channel static": Format("e4m3", "channel", "FP8_DYNAMIC", static=True, smallest_normal=_E4M3),
    "fp8 e4m3 per 32": Format("e4m3", "32 channels", _group("e4m3", 32), smallest_normal=_E4M3),
    "int8 per tensor static": Format("int8", "tensor", _INT8_PER_TENSOR, static=True),
    "int8 per token": Format("int8", "token", "INT8"),
    "int8 per channel static": Format("int8", "channel", "INT8", static=True),
    "int4 per 128": Format("int4", "128 channels", _group("int4", 128)),
    "int4 per 32": Format("int4", "32 channels", _group("int4", 32)),
}
"""By name, as servers spell them; dynamic unless static. What is served in which is in `analyse.formats`."""


def round_to(values: Tensor, name: str, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Values (token, channel) rounded to a format of FORMATS, and the scale of each value; dtype and shape stay.

    largest: magnitude that a static scale is made of, () or (channel,); needed where the format is static, refused
    elsewhere. Raises InputError, and DoesNotApplyError where groups do not divide the channels, as kernels do.
    """
    chosen = FORMATS.get(name)
    if chosen is None:
        raise InputError(f"Unknown format '{name}'; expected one of {', '.join(FORMATS)}.")
    if chosen.static != (largest is not None):
        raise InputError(f"{name} takes {'a' if chosen.static else 'no'} largest magnitude learned before.")
    exact = values.float()
    if chosen.arguments is None:
        scale = (exact.abs().max() / _E5M2_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (exact / scale).clamp(-_E5M2_MAX, _E5M2_MAX).to(E5M2).float() * scale
        return rounded.to(values.dtype), scale.expand_as(exact)
    if chosen.fixed is not None:
        largest = torch.tensor(chosen.fixed)
    if chosen.scales == "channel":
        rounded, scale = _compressed(exact.T, _arguments(chosen.arguments), largest, values.dtype)
        return rounded.T, scale.T
    return _compressed(exact, _arguments(chosen.arguments), largest, values.dtype)


def _compressed(exact: Tensor, args: Any, largest: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    channels = exact.shape[1]
    size = args.group_size or channels
    if channels % size:
        raise DoesNotApplyError(f"groups of {size} do not divide {channels} channels")
    if largest is not None:
        most = largest.float().to(exact.device).reshape((1,) if args.strategy == "tensor" else (-1, 1))
    elif args.strategy == "tensor":
        most = exact.abs().max().reshape(1)
    else:
        most = exact.abs().unflatten(1, (-1, size)).amax(2)
    whole = generate_gparam(-exact.abs().max(), exact.abs().max()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(-most, most, args, global_scale=whole)
    rounded = fake_quantize(exact, scale, zero, args, global_scale=whole)
    unit = scale.float() if whole is None else scale.float() / whole
    units = unit.repeat_interleave(size, 1) if unit.ndim == 2 else unit
    return rounded.to(dtype), units.expand_as(exact)


def _arguments(known: str | dict[str, Any]) -> Any:
    try:
        from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
    except ImportError as error:
        raise InputError("These formats need compressed-tensors: pip install 'spikesink[formats]'.") from error
    if isinstance(known, dict):
        return QuantizationArgs(**known)
    return preset_name_to_scheme(known, ["Linear"]).input_activations


def lost(values: Tensor, rounded: Tensor, scale: Tensor, name: str) -> Tensor:
    """Which values are not zero and become zero or subnormal; all of one shape."""
    return (values != 0) & (rounded.abs() < FORMATS[name].smallest_normal * scale)
