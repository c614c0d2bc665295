"""What quantisation needs to know beforehand: linear sites by kind, channel ranges, which tokens are spike tokens."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from spikesink.access import editing
from spikesink.access.linears import KINDS, LinearSite, editing_inputs, find_linears
from spikesink.analyse.dissociation import Bench
from spikesink.analyse.passes import stream
from spikesink.intervene.quantise import kv_name
from spikesink.measure.channel_range import ChannelRange
from spikesink.measure.spike_states import SpikeStates


@dataclass(frozen=True)
class Calibration:
    """Learned on held-out sequences, but for `spikes`, which marks the evaluated ones."""

    sites: dict[str, list[LinearSite]]
    """By kind; a kind that the model does not have is empty."""
    ranges: ChannelRange
    spikes: Tensor | None
    """Spike tokens (sequence, token) bool of the evaluated sequences; None where the model has no spikes."""


class _KvRange:
    """Editor that notes ranges of keys and values and changes nothing."""

    def __init__(self, ranges: ChannelRange) -> None:
        self.ranges = ranges

    def edit_keys(self, block: int, key: Tensor) -> Tensor:
        self.ranges.update(kv_name(block, "key"), key.transpose(1, 2).flatten(2))
        return key

    def edit_values(self, block: int, value: Tensor) -> Tensor:
        self.ranges.update(kv_name(block, "value"), value.transpose(1, 2).flatten(2))
        return value


def calibrate(bench: Bench, held_out: Tensor) -> Calibration:
    """One pass over the held-out sequences for ranges, and one over the evaluated ones for spike tokens."""
    linears = find_linears(bench.accessed)
    ranges = ChannelRange()

    def note(site: LinearSite, entering: Tensor) -> Tensor:
        ranges.update(site.name, entering)
        return entering

    with ExitStack() as stack:
        stack.enter_context(editing_inputs(linears, note))
        stack.enter_context(editing(bench.accessed, _KvRange(ranges)))
        stream(bench.accessed, held_out, [], batch_size=bench.batch_size)
    sites = {kind: [site for site in linears if site.kind == kind] for kind in KINDS}
    return Calibration(sites, ranges, spike_tokens(bench))


def spike_tokens(bench: Bench) -> Tensor | None:
    """Which evaluated tokens spike, (sequence, token) bool."""
    if not bench.found.has_spikes:
        return None

    def compute() -> dict[str, list]:
        states = SpikeStates(bench.found.edit_block, bench.found.is_spike)
        stream(bench.accessed, bench.ids, [states], batch_size=bench.batch_size)
        return {"spikes": torch.cat(states.spikes).nonzero().tolist()}

    marked = torch.zeros(bench.ids.shape, dtype=torch.bool)
    for sequence, position in bench.memo.get("spike tokens", compute)["spikes"]:
        marked[sequence, position] = True
    return marked
