"""Floating-point formats that models are served in: values are rounded to a format's grid and stay floating point.

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


@dataclass(frozen=True)
class Format:
    """A floating-point format with its scales: one per tensor, token, or group of consecutive channels."""

    element: str
    """e4m3, e5m2 or e2m1."""
    scales: str
    """`tensor`, `token`, or the group's size and how its scale is stored."""
    preset: str | None
    """compressed-tensors' scheme whose activations are quantised like this; None for torch's e5m2."""
    static: bool = False
    """The scale comes from other text; values beyond it are cut off."""
    smallest_normal: float = 2.0**-6
    """Smallest normal number of the element, in units of the scale."""


FORMATS: dict[str, Format] = {
    "fp8 e4m3 per tensor static": Format("e4m3", "tensor", "FP8", static=True),
    "fp8 e4m3 per tensor": Format("e4m3", "tensor", "FP8"),
    "fp8 e5m2 per tensor": Format("e5m2", "tensor", None, smallest_normal=2.0**-14),
    "fp8 e4m3 per token": Format("e4m3", "token", "FP8_DYNAMIC"),
    "fp8 e4m3 per 128": Format("e4m3", "128 channels", "FP8_BLOCK"),
    "mxfp8": Format("e4m3", "32 channels, powers of two", "MXFP8"),
    "mxfp4": Format("e2m1", "32 channels, powers of two", "MXFP4", smallest_normal=1.0),
    "nvfp4": Format("e2m1", "16 channels in e4m3, and one per tensor", "NVFP4", smallest_normal=1.0),
}
"""By name, as servers spell them; dynamic unless static."""


def round_to(values: Tensor, name: str, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Values (token, channel) rounded to a format of FORMATS, and the scale of each value; dtype and shape stay.

    largest: magnitude that a static scale is made of; needed where the format is static, refused elsewhere. Raises
    InputError, and DoesNotApplyError where groups do not divide the channels: kernels refuse that too.
    """
    chosen = FORMATS.get(name)
    if chosen is None:
        raise InputError(f"Unknown format '{name}'; expected one of {', '.join(FORMATS)}.")
    if chosen.static != (largest is not None):
        raise InputError(f"{name} takes {'a' if chosen.static else 'no'} largest magnitude learned before.")
    exact = values.float()
    if chosen.preset is None:
        scale = (exact.abs().max() / _E5M2_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (exact / scale).clamp(-_E5M2_MAX, _E5M2_MAX).to(E5M2).float() * scale
        return rounded.to(values.dtype), scale.expand_as(exact)
    return _compressed(exact, _arguments(chosen.preset), largest, values.dtype)


def _compressed(exact: Tensor, args: Any, largest: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    channels = exact.shape[1]
    size = args.group_size or channels
    if channels % size:
        raise DoesNotApplyError(f"groups of {size} do not divide {channels} channels")
    if largest is not None:
        most = largest.float().reshape(1)
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


def _arguments(preset: str) -> Any:
    try:
        from compressed_tensors.quantization import preset_name_to_scheme
    except ImportError as error:
        raise InputError("Floating-point formats need compressed-tensors: pip install 'spikesink[formats]'.") from error
    return preset_name_to_scheme(preset, ["Linear"]).input_activations
