"""`find`: where spikes and sinks are, from a scan of held-out sequences, and the constants learned on them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikesink.access import AccessedModel
from spikesink.access.gated_ffn import gated_ffns
from spikesink.access.linears import LinearSite, editing_inputs
from spikesink.analyse.passes import Progress, Scan, ids_of, no_progress, stream
from spikesink.analyse.scan import Ids, accessed_model, check_options, measure
from spikesink.data.tokens import as_tokens
from spikesink.errors import DoesNotApplyError
from spikesink.intervene import Targets
from spikesink.intervene.weights import step_up_output
from spikesink.measure.amplifier import spectrum
from spikesink.measure.lifecycle import main_step_up
from spikesink.measure.states import SpikeStates
from spikesink.observer import Observer, notebook_progress
from spikesink.positions import half_of, placed

AMPLIFIER_SHARE = 0.9
"""Share of what the step-up block writes into the spike channels that the cut entries bring."""


def find(
    model: AccessedModel | PreTrainedModel | str | None,
    tokens: Ids,
    *,
    epsilon: float = 0.3,
    sink_metric: str = "sun2026",
    magnitude: float | None = None,
    batch_size: int | None = None,
    progress: Progress = notebook_progress,
) -> Targets:
    """Find spikes and sinks on these sequences and learn the constants that interventions put in their place.

    tokens: ids (sequence, token), held out from what is evaluated later. epsilon, sink_metric: as in `scan`. magnitude:
    from which magnitude after the step-up block an element is part of a spike; default a tenth of the largest there,
    and 20 times the median.
    """
    criteria = check_options(epsilon, sink_metric, batch_size)
    given = as_tokens(tokens)
    accessed = accessed_model(model, given)
    scanned, _ = measure(accessed, ids_of(given), criteria, batch_size=batch_size, progress=progress)
    return targets_of(scanned, magnitude=magnitude, progress=progress)


def targets_of(scanned: Scan, *, magnitude: float | None = None, progress: Progress = no_progress) -> Targets:
    """The same from a scan that has been made; one more pass over its sequences learns the constants."""
    spike, steps = scanned.spike, scanned.steps
    last = steps.step_up[-1] if steps and steps.step_up else None
    step_down = steps.step_down[0] if steps and steps.step_down else None
    # The spike is whole after the last step; s* and W_down are those of the FFN that writes most of it.
    step_up = main_step_up(steps) or last
    block = last or spike.verdict.verdict_block
    residuals = scanned.spikes.residuals
    # A parallel layer has no residual behind its attention alone, only behind both of its blocks.
    block = block if block in residuals else block + 1
    usual = residuals[block].threshold(scanned.criteria.spikes)
    facts: dict[str, Any] = {
        "has_spikes": spike.has_spikes,
        "spike": spike.peak.value,
        "edit_block": block,
        "attention_behind": sum(sites.block > block for sites in scanned.accessed.attending),
        "step_up_block": step_up,
        "step_down_block": step_down,
        "step_blocks": (*steps.step_up, *steps.step_down) if steps else (),
        "channels": tuple(spike.channels),
        "magnitude_min": usual if magnitude is None else magnitude,
        "massive_channels": _massive(scanned, block, step_down),
        "sequences": len(scanned.ids),
        **_sinks(scanned),
    }
    if not spike.has_spikes:
        return Targets(**facts)
    learned = _learn(scanned.accessed, scanned.ids, Targets(**facts), progress)
    direction, missing = _direction(scanned.accessed, step_up, spike.channels[0])
    return Targets(**facts, **learned, direction=direction, direction_missing=missing)


def _massive(scanned: Scan, block: int, step_down: int | None) -> tuple[int, ...]:
    """Channels that meet Sun et al. 2024's criterion from this block on, before the step-down block."""
    return tuple(
        row.channel
        for row in scanned.spike.verdict.massive_channels
        if row.last_block >= block and (step_down is None or row.first_block < step_down)
    )


def _sinks(scanned: Scan) -> dict[str, Any]:
    """Sink heads, and the positions that they attend to in the mean over sequences."""
    sinks = scanned.sinks
    heads = [(block, int(head)) for block in sinks.positions for head in sinks.is_sink(block).nonzero()[0]]
    if not heads:
        return {"has_sinks": False}
    importance = np.mean([sinks.positions[block][head] for block, head in heads], axis=0)
    half = importance[: half_of(len(importance))]
    positions = np.flatnonzero(half > sinks.importance_min)
    chosen = positions if len(positions) else [int(half.argmax())]
    return {"has_sinks": True, "sink_heads": tuple(heads), "sink_positions": tuple(int(p) for p in chosen)}


def _learn(accessed: AccessedModel, ids: Tensor, targets: Targets, progress: Progress) -> dict[str, Any]:
    """Mean states, and which entries of W_down write the spike."""
    states = SpikeStates(targets.edit_block, targets.is_spike)
    site = _step_up_output(accessed, targets)
    writers = _Writers(targets, site) if site else None
    observers = [states, writers] if writers else [states]
    with editing_inputs([site] if site else [], writers.keep if writers else lambda _site, entering: entering):
        stream(accessed, ids, observers, stage="learn constants", progress=progress)
    spikes, others = states.means()
    return {
        "spike_states": spikes,
        "ordinary_states": others,
        "ordinary_max": states.ordinary_max,
        "spike_tokens": states.tokens,
        "same_context": _same_context(ids, torch.cat(states.spikes)),
        "amplifier": writers.entries() if writers else (),
    }


def _same_context(ids: Tensor, spikes: Tensor) -> float:
    """Share of the spike tokens, (sequence, token), that are the most frequent token with all in front of it."""
    contexts = Counter(tuple(ids[row, : place + 1].tolist()) for row, place in spikes.nonzero().tolist())
    return max(contexts.values()) / contexts.total() if contexts else 0.0


def _step_up_output(accessed: AccessedModel, targets: Targets) -> LinearSite | None:
    try:
        return step_up_output(accessed, targets)
    except DoesNotApplyError:
        return None


@dataclass
class _Writers(Observer):
    """Sums, over spike tokens, what enters the step-up block's W_down, signed along each spike channel."""

    targets: Targets
    site: LinearSite
    _entering: Tensor | None = None
    _sums: Tensor | None = None
    _spiked: bool = False

    def keep(self, _site: LinearSite, entering: Tensor) -> Tensor:
        self._entering = entering
        return entering

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block != self.targets.edit_block:
            return
        assert self._entering is not None
        spikes = self.targets.is_spike(hidden)
        self._spiked |= bool(spikes.any())
        signs = hidden[spikes][:, list(self.targets.channels)].sign().double()
        total = signs.T @ self._entering.reshape(*hidden.shape[:2], -1)[spikes].double()
        self._sums = total if self._sums is None else self._sums + total

    def entries(self) -> tuple[tuple[int, int], ...]:
        """The fewest (channel, neuron) that bring AMPLIFIER_SHARE of the write, the largest first; none where no token
        spiked."""
        assert self._sums is not None
        if not self._spiked:
            return ()
        weight = self.site.weight.detach() if self.site.input_dim == 1 else self.site.weight.detach().T
        rows = weight[list(self.targets.channels)].double()
        contributions = (rows * self._sums).cpu().flatten()
        ordered, order = contributions.sort(descending=True)
        enough = int((ordered.cumsum(0) < AMPLIFIER_SHARE * contributions.sum()).sum()) + 1
        width = rows.shape[1]
        return tuple((self.targets.channels[int(index) // width], int(index) % width) for index in order[:enough])


def _direction(accessed: AccessedModel, block: int | None, channel: int) -> tuple[Tensor | None, str | None]:
    """s* of the spike channel in the step-up FFN, or why there is none."""
    if block is None:
        return None, "no single block makes the spikes"
    try:
        ffns = gated_ffns(accessed, block)
    except DoesNotApplyError as reason:
        return None, str(reason)
    if len(ffns) > 1:
        return None, f"block {placed(block)} is a mixture of experts, whose experts have an s* each"
    return torch.from_numpy(spectrum(ffns[0], channel, count=1)[1][0]).float(), None
