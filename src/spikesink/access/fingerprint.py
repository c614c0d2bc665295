"""What a model is, as a short text: the same weights give the same fingerprint, wherever they were loaded from."""

import hashlib

import torch

from spikesink.access.model import AccessedModel


def fingerprint(accessed: AccessedModel) -> str:
    """SHA-256 over name, shape, dtype and two sums of every parameter; one read of the weights."""
    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, parameter in accessed.model.named_parameters():
            flat = parameter.detach().flatten()
            sums = (float(flat.sum(dtype=torch.float64)), float(flat[::2].sum(dtype=torch.float64)))
            digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype), sums)).encode())
    return digest.hexdigest()
