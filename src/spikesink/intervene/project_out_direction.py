"""The amplifier's direction s* taken out of what the step-up FFN reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access import AccessedModel
from spikesink.access.blocks import BlockSites
from spikesink.access.weights import NormScale, norm_scale
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.base import Context, Found, intervention, seeded

CONTROL = "random_direction"


@intervention("spikes", controls=(CONTROL,))
def project_out_direction(
    accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0
) -> Context:
    """Project s* out of what the step-up FFN reads, so that it cannot be amplified.

    s* is the top eigenvector of S_k of the largest spike channel, in the coordinates of the norm's output without its
    scale (Sun et al. 2026, eq. 16-19). Control: a random unit vector orthogonal to s*.
    """
    if found.step_up_block is None:
        raise DoesNotApplyError("no single block makes the spikes")
    if found.direction is None:
        raise DoesNotApplyError(found.direction_missing or "s* was not computed")
    sites = accessed.blocks()[found.step_up_block - 1]
    scale = norm_scale(sites, accessed.d_model)
    direction = found.direction
    if control == CONTROL:
        drawn = torch.randn(direction.shape, generator=seeded(seed))
        drawn -= direction * (drawn @ direction)
        direction = drawn / drawn.norm()
    return _projected(sites, scale, direction)


@contextmanager
def _projected(sites: BlockSites, scale: NormScale | None, direction: Tensor) -> Iterator[None]:
    """Take h~ - s* (s*^T h~) in place of h~, at the norm's output, or at the FFN's input where it has no norm."""

    def after_norm(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        assert scale is not None
        axis = direction.to(output.device)
        along = scale.norm(args[0]) @ axis
        return output - (along[..., None] * (scale.gain.to(axis) * axis)).to(output)

    def before_ffn(_module: nn.Module, args: tuple) -> tuple[Any, ...]:
        axis = direction.to(args[0])
        return (args[0] - (args[0] @ axis)[..., None] * axis, *args[1:])

    if scale is None:
        handle = sites.inner.register_forward_pre_hook(before_ffn)
    else:
        assert sites.input_norm is not None
        handle = sites.input_norm.register_forward_hook(after_norm)
    try:
        yield
    finally:
        handle.remove()
