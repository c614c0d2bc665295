"""Bounded, sparse, near-constant: spike tokens once normed, block by block, against other tokens. Spec 2.4."""

import torch
from torch import Tensor

from spikesink.access.norm_weights import input_norm
from spikesink.analyse.anatomy.sample import read_by, spike_block, spike_mask, valid_mask
from spikesink.analyse.passes import Pass, Progress, Scan, Steps
from spikesink.errors import DoesNotApplyError
from spikesink.measure.normalisation import GroupStatistics, explained_by_others
from spikesink.observer import Batch, Observer
from spikesink.records.sections import normalisation as record
from spikesink.weights import InputNorm

MAX_PROMPTS = 4096
"""Prompts whose sums are kept for the implicit-parameter number."""
PLAIN = InputNorm(eps=0.0)


def measure_normalisation(scanned: Scan, _progress: Progress) -> Steps[tuple[record.Normalisation, dict]]:
    """Statistics of h~ over spike and other tokens after every block, in one streaming pass."""
    if not scanned.spike.has_spikes:
        raise DoesNotApplyError("The model has no spike tokens on this text, so there is nothing to compare")
    norms = {input_norm(scanned.accessed, block) for block in range(1, scanned.accessed.n_blocks + 1)}
    kinds = {None if norm is None else "layer norm" if norm.centred else "rms norm" for norm in norms}
    norm = next((norm for norm in norms if norm is not None), PLAIN)
    watch = _Groups(scanned, norm)
    yield Pass([watch])
    blocks = [
        record.NormalisationBlock(block=block, spike=_statistics(spike), other=_statistics(other))
        for block, (spike, other) in sorted(watch.groups.items())
    ]
    section = record.Normalisation(
        norm=" and ".join(sorted(kind for kind in kinds if kind)) or "none; vectors are scaled to length sqrt(d)",
        spike_channels=scanned.spike.channels,
        blocks=blocks,
        implicit=_implicit(scanned, watch),
    )
    return section, {}


class _Groups(Observer):
    """Sums per block and group, and per-prompt sums at the spike block and before the step-up."""

    def __init__(self, scanned: Scan, norm: InputNorm) -> None:
        self.norm, self.channels, self.block = norm, scanned.spike.channels, spike_block(scanned)
        spike = spike_mask(scanned)
        self.masks = (spike, valid_mask(scanned) & ~spike)
        self.groups: dict[int, tuple[GroupStatistics, GroupStatistics]] = {}
        self.prompts: list[tuple[_Prompts, ...]] = []
        """Spike tokens, other tokens, and spike tokens without the spike channels."""
        step_up = scanned.steps.step_up if scanned.steps is not None else []
        self.before_block = read_by(scanned.accessed, min(step_up)) if step_up else None
        self.prompts_before: list[tuple[_Prompts, ...]] = []
        self._before: Tensor | None = None

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._before = None

    def on_residual(self, block: int, hidden: Tensor) -> None:
        vectors = self.norm(hidden).cpu() / hidden.shape[-1] ** 0.5
        rows = self.batch.rows
        if block > 0:
            if block not in self.groups:
                self.groups[block] = (GroupStatistics(self.channels), GroupStatistics(self.channels))
            for group, mask in zip(self.groups[block], self.masks, strict=True):
                group.update(vectors, mask[rows], self._before)
        if rows.start < MAX_PROMPTS:
            spike, other = (mask[rows] for mask in self.masks)
            if block == self.before_block:
                self.prompts_before.append((_Prompts(vectors, spike),))
            if block == self.block:
                rest = vectors.clone()
                rest[..., self.channels] = 0.0
                self.prompts.append((_Prompts(vectors, spike), _Prompts(vectors, other), _Prompts(rest, spike)))
        self._before = vectors


class _Prompts:
    """Per prompt of a batch: sum and number of the group's vectors; and their energy."""

    def __init__(self, vectors: Tensor, members: Tensor) -> None:
        self.sums = (vectors * members[..., None]).sum(1)
        self.counts = members.sum(1)
        self.energy = float(vectors[members].square().sum(dtype=torch.float64))


def _implicit(scanned: Scan, watch: _Groups) -> record.ImplicitParameter:
    spike, other, rest = (_explained([groups[index] for groups in watch.prompts]) for index in range(3))
    before = _explained([groups[0] for groups in watch.prompts_before]) if watch.prompts_before else (None, 0)
    tokens = scanned.ids[spike_mask(scanned)]
    return record.ImplicitParameter(
        block=watch.block,
        explained_spike=spike[0],
        explained_other=other[0],
        prompts_spike=spike[1],
        prompts_other=other[1],
        before_block=watch.before_block,
        explained_spike_before=before[0],
        explained_spike_without_channels=rest[0],
        distinct_spike_tokens=len(torch.unique(tokens)),
    )


def _explained(prompts: list[_Prompts]) -> tuple[float | None, int]:
    sums = torch.cat([batch.sums for batch in prompts])
    counts = torch.cat([batch.counts for batch in prompts])
    kept = counts > 0
    if int(kept.sum()) < 2:
        return None, int(kept.sum())
    energy = sum(batch.energy for batch in prompts)
    if energy == 0:
        return None, int(kept.sum())
    return explained_by_others(sums[kept], counts[kept].float(), energy), int(kept.sum())


def _statistics(group: GroupStatistics) -> record.NormStatistics:
    return record.NormStatistics(
        tokens=group.tokens,
        prompts=group.prompts,
        bound=group.bound if group.tokens else None,
        energy_share=group.energy_share,
        participation_ratio=group.participation_ratio,
        cosine_within=group.cosine_within,
        cosine_across=group.cosine_across,
        persistence=group.persistence,
    )
