"""The entries of W_down that write the spike, set to zero."""

import torch
from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.access.linears import LinearSite, find_linears
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.base import Context, Found, changed_entries, intervention, seeded

CONTROL = "random_entries"


@intervention("spikes", controls=(CONTROL,))
def cut_amplifier(accessed: AccessedModel, found: Found, *, control: str | None = None, seed: int = 0) -> Context:
    """Zero the few entries of the step-up FFN's W_down that write the spike.

    The entries (channel, neuron) were found on held-out sequences: the fewest that together bring 90 % of what the
    block writes into the spike channels at spike tokens. Control: as many random other entries of the same rows. The
    weights come back bit for bit.
    """
    site = step_up_output(accessed, found)
    if not found.amplifier:
        raise DoesNotApplyError("no entries of W_down were found that write the spike")
    channels, neurons = torch.tensor(found.amplifier).T
    if control == CONTROL:
        neurons = _others(channels, neurons, site.weight.shape[site.input_dim], seed)
    index = (channels, neurons) if site.input_dim == 1 else (neurons, channels)
    return changed_entries(site.weight, tuple(axis.to(site.weight.device) for axis in index), 0.0)


def step_up_output(accessed: AccessedModel, found: Found) -> LinearSite:
    """The output projection of the step-up FFN. Raises DoesNotApplyError where an FFN does not make the spikes."""
    block = found.step_up_block
    if block is None:
        raise DoesNotApplyError("no single block makes the spikes")
    if block % 2:
        raise DoesNotApplyError(f"the spikes are made by block {block}, an attention block, not by an FFN")
    for site in find_linears(accessed):
        if site.block == block and site.kind == "down_proj":
            return site
    raise DoesNotApplyError(
        f"the FFN of block {block} has no single linear output projection (as in a mixture of experts)"
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
