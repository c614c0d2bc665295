"""Numbers that are not finite: refused with the reason, never counted as zero or as the largest number there is."""

import torch
from torch import Tensor


def finite(tensor: Tensor) -> bool:
    # A sum is finite unless an element is not (or the sum itself overflows, then the elements decide).
    return bool(torch.isfinite(tensor.float().sum())) or bool(torch.isfinite(tensor).all())


def explain_not_finite(what: str, tensor: Tensor) -> str:
    """The message of a NumericError: beyond the range of the dtype, or not a number."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if bool(torch.isnan(tensor).any()):
        found = f"values that are not numbers, computed in {dtype}"
    else:
        count = int(torch.isinf(tensor).sum())
        most = torch.finfo(tensor.dtype).max
        found = f"beyond the range of {dtype}: {count} of {tensor.numel():,} values exceed {most:,.6g}"
    wider = "float32" if tensor.dtype in (torch.float16, torch.bfloat16) else "float64"
    return f"{what}: {found}. Load the model with --dtype {wider}; if that does not help, check the checkpoint."
