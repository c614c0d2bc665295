"""Edits of the step-up block: its output weights, what it reads, what it writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikesink.access import AccessedModel, editing
from spikesink.access.blocks import BlockSites
from spikesink.access.linears import LinearSite, find_linears
from spikesink.access.norm_weights import NormScale, norm_scale
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.base import DIVISOR, Context, Targets, intervention, random_tokens, seeded
from spikesink.positions import placed


@intervention(edits="spikes", controls=("random_entries",), reach="block")
def cut_amplifier(accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0) -> Context:
    """Zero the few entries of the step-up FFN's W_down that write the spike.

    The entries (channel, neuron) were found on held-out sequences: the fewest that together bring 90 % of what the
    block writes into the spike channels at spike tokens. Control: as many random other entries of the same rows. The
    weights come back bit for bit.
    """
    site = step_up_output(accessed, targets)
    if not targets.amplifier:
        raise DoesNotApplyError("no entries of W_down were found that write the spike")
    channels, neurons = torch.tensor(targets.amplifier).T
    if control == "random_entries":
        neurons = _others(channels, neurons, site.weight.shape[site.input_dim], seed)
    index = (channels, neurons) if site.input_dim == 1 else (neurons, channels)
    return zeroed_entries(site.weight, tuple(axis.to(site.weight.device) for axis in index))


def step_up_output(accessed: AccessedModel, targets: Targets) -> LinearSite:
    """The output projection of the step-up FFN. Raises DoesNotApplyError where an FFN does not make the spikes."""
    block = targets.step_up_block
    if block is None:
        raise DoesNotApplyError("no single block makes the spikes")
    if block % 2:
        raise DoesNotApplyError(f"the spikes are made by block {placed(block)}, not by an FFN")
    for site in find_linears(accessed):
        if site.block == block and site.kind == "down_proj":
            return site
    raise DoesNotApplyError(
        f"the FFN of block {placed(block)} has no single linear output projection (as in a mixture of experts)"
    )


def _others(channels: Tensor, neurons: Tensor, width: int, seed: int) -> Tensor:
    """For each entry another neuron of its row, none of them twice or responsible."""
    generator = seeded(seed)
    drawn = torch.empty_like(neurons)
    for channel in channels.unique():
        row = channels == channel
        free = torch.ones(width, dtype=torch.bool)
        free[neurons[row]] = False
        candidates = free.nonzero().flatten()
        if len(candidates) < int(row.sum()):
            raise DoesNotApplyError("the row of W_down has too few other entries for a control")
        drawn[row] = candidates[torch.randperm(len(candidates), generator=generator)[: int(row.sum())]]
    return drawn


@intervention(edits="spikes", controls=("random_direction",), reach="block")
def project_out_direction(
    accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0
) -> Context:
    """Project s* out of what the step-up FFN reads, so that it cannot be amplified.

    s* is the top eigenvector of S_k of the largest spike channel, in the coordinates of the norm's output without its
    scale (Sun et al. 2026, eq. 16-19). Control: a random unit vector orthogonal to s*.
    """
    if targets.step_up_block is None:
        raise DoesNotApplyError("no single block makes the spikes")
    if targets.direction is None:
        raise DoesNotApplyError(targets.direction_missing or "s* was not computed")
    sites = accessed.blocks()[targets.step_up_block - 1]
    scale = norm_scale(sites, accessed.d_model)
    direction = targets.direction
    if control == "random_direction":
        drawn = torch.randn(direction.shape, generator=seeded(seed))
        drawn -= direction * (drawn @ direction)
        direction = drawn / drawn.norm()
    return _projected(sites, scale, direction)


@contextmanager
def _projected(sites: BlockSites, scale: NormScale | None, direction: Tensor) -> Iterator[None]:
    """Take h~ - s* (s*^T h~) in place of h~ at the FFN's input alone: its norm may feed attention too."""
    entering: list[Tensor] = []
    """What the norm read last, where there is one."""

    def before_norm(_module: nn.Module, args: tuple) -> None:
        entering[:] = args[:1]

    def before_ffn(_module: nn.Module, args: tuple) -> tuple[Any, ...]:
        read = args[0]
        if scale is None:
            axis = direction.to(read)
            taken = (read @ axis)[..., None] * axis
        else:
            axis = direction.to(read.device)
            along = scale.norm(entering.pop()) @ axis
            taken = (along[..., None] * (scale.gain.to(axis) * axis)).to(read)
        return (read - taken.reshape(read.shape), *args[1:])

    handles = [sites.inner.register_forward_pre_hook(before_ffn)]
    if sites.input_norm is not None:
        handles.append(sites.input_norm.register_forward_pre_hook(before_norm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@intervention(edits="spikes", controls=("random_block",))
def normalise_write(accessed: AccessedModel, targets: Targets, *, control: str | None = None, seed: int = 0) -> Context:
    """Normalise what the step-up block writes: every token's write gets the median token's root mean square.

    A sandwich norm without learned scale (Sun et al. 2026, table 5), put on one block of a finished model. Control: the
    same on a random other block of the same kind.
    """
    block = targets.step_up_block
    if block is None:
        raise DoesNotApplyError("no single block makes the spikes")
    if control == "random_block":
        others = [other for other in range(2 - block % 2, accessed.n_blocks + 1, 2) if other != block]
        if not others:
            raise DoesNotApplyError("the model has no other block of this kind")
        block = others[int(torch.randint(0, len(others), (1,), generator=seeded(seed)))]
    return editing(accessed, WriteNorm(block))


class WriteNorm:
    """Rescales one block's write per token."""

    def __init__(self, block: int) -> None:
        self.block = block

    def edit_write(self, block: int, write: Tensor) -> Tensor:
        if block != self.block:
            return write
        rms = write.float().pow(2).mean(-1, keepdim=True).sqrt()
        typical = rms.median(dim=1, keepdim=True).values
        return write * (typical / rms.clamp_min(1e-12)).to(write)


@intervention(edits="spikes", controls=("random_tokens", "random_blocks"), reach="block", strength=DIVISOR)
def shrink_spikes(
    accessed: AccessedModel, targets: Targets, *, strength: float = 10.0, control: str | None = None, seed: int = 0
) -> Context:
    """Divide what the step-up and step-down blocks write at spike tokens by a number; direction and all else stay.

    The step-down blocks too, since what they write would else take away a spike that is not there. Controls: the same
    blocks at as many random other tokens; or as many random other blocks behind the step-up block, at spike tokens.
    """
    blocks = targets.step_blocks
    if targets.step_up_block is None or not blocks:
        raise DoesNotApplyError("no single block makes the spikes")
    if accessed.post_norm:
        raise DoesNotApplyError("the residual of a post-norm model is normed, so its writes have no size of their own")
    up = tuple(block for block in blocks if block <= targets.edit_block)
    if control == "random_blocks":
        later = [block for block in range(targets.edit_block + 1, accessed.n_blocks + 1) if block not in blocks]
        if len(later) < len(blocks):
            raise DoesNotApplyError("the model has too few other blocks behind the step-up block")
        order = torch.randperm(len(later), generator=seeded(seed))[: len(blocks)]
        blocks = tuple(later[int(index)] for index in order)
    return editing(accessed, WriteScale(targets, up, blocks, strength, control, seed))


class WriteScale:
    """Divides the writes of `blocks` at spike tokens, those that spike after one of the blocks `up` as it is."""

    def __init__(
        self,
        targets: Targets,
        up: tuple[int, ...],
        blocks: tuple[int, ...],
        divisor: float,
        control: str | None,
        seed: int,
    ) -> None:
        self.targets, self.up, self.blocks, self.divisor, self.control = targets, up, blocks, divisor, control
        self._generator = seeded(seed)
        self._state = self._spikes = self._chosen = torch.zeros(0)

    def edit_residual(self, block: int, hidden: Tensor) -> Tensor:
        self._state = hidden
        if block == 0:
            self._spikes = self._chosen = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return hidden

    def edit_write(self, block: int, write: Tensor) -> Tensor:
        # Of a parallel layer both writes are added to the same residual.
        self._state = self._state + write
        if block in self.up:
            self._choose()
        if block not in self.blocks:
            return write
        return torch.where(self._chosen.to(write.device)[..., None], write / self.divisor, write)

    def _choose(self) -> None:
        """Add the tokens that spike now."""
        new = self.targets.is_spike(self._state) & ~self._spikes
        self._spikes = self._spikes | new
        if self.control == "random_tokens":
            new = random_tokens(new, self._generator, among=~self._spikes & ~self._chosen)
        self._chosen = self._chosen | new


@contextmanager
def zeroed_entries(parameter: nn.Parameter, index: tuple[Tensor, ...]) -> Iterator[None]:
    """Make entries of a weight 0 and put the very same bits back, also after an exception."""
    with torch.no_grad():
        before = parameter[index].clone()
        parameter[index] = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            parameter[index] = before
