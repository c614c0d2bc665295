"""Sink keys and what lies close to them, before the rotary embedding. Spec section 3; Sun et al. 2026, figure 6."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spikesink.access.comparison import difference, tolerances
from spikesink.access.norm_weights import input_norm
from spikesink.access.rotary import Rotary, unrotating
from spikesink.access.weights import key_projection
from spikesink.analyse.anatomy.heads import rule
from spikesink.analyse.anatomy.sample import sequences_with_sinks, sink_tokens, spike_mask, valid_mask
from spikesink.analyse.passes import Pass, Progress, Scan, Steps
from spikesink.errors import DoesNotApplyError
from spikesink.measure.geometry import (
    GapSums,
    add_gaps,
    column_parts,
    effective_rank,
    energy_rank,
    principal_plane,
    separability,
)
from spikesink.measure.states import Gather
from spikesink.measure.statistics import rank_correlation
from spikesink.observer import AttentionInputs, AttentionRows, Batch, Observer
from spikesink.positions import placed, ranks
from spikesink.records.sections import geometry as record

CHANNELS = 8
TOKENS = 64
"""Spike tokens whose keys are taken apart, and as many others."""


class KeyParts:
    """`entering` observes the residuals that the blocks read; `measure` takes the keys apart.

    rows, positions (token,): tokens whose keys are known; is_sink, is_spike (token,): which are sink and spike tokens.
    """

    def __init__(
        self, scanned: Scan, rows: Tensor, positions: Tensor, is_sink: np.ndarray, is_spike: np.ndarray
    ) -> None:
        self.accessed = scanned.accessed
        self.spike, self.other = (np.flatnonzero(mask)[:TOKENS] for mask in (is_spike, ~is_sink))
        steps = scanned.steps
        start = max(steps.step_up) if steps is not None and steps.step_up else self.accessed.n_blocks
        stop = min(steps.step_down, default=self.accessed.n_blocks) if steps is not None else 0
        self.blocks = [sites.block for sites in self.accessed.attending if start < sites.block < stop]
        chosen = torch.from_numpy(np.concatenate([self.spike, self.other]))
        residuals = [block - 1 for block in self.blocks]
        self.entering = Gather(rows[chosen], positions[chosen], residuals=residuals)

    def measure(self, keys: dict[int, Tensor]) -> dict[str, Any]:
        """keys: by block, pre-RoPE (token, KV head, d_head) of all tokens. The fields of the record."""
        try:
            if not len(self.spike) or not len(self.other):
                raise DoesNotApplyError("No sink token is a spike token")
            if not self.blocks:
                raise DoesNotApplyError("No attention block stands between a spike's step-up and its step-down")
            return {"key_parts": [self._part(block, keys[block]) for block in self.blocks]}
        except DoesNotApplyError as reason:
            return {"key_parts_reason": str(reason)}

    def _part(self, block: int, keys: Tensor) -> record.KeyPart:
        hidden = self.entering.residuals[block - 1]
        norm = input_norm(self.accessed, block)
        hidden = hidden if norm is None else norm(hidden)
        weight, offset = (t.cpu() for t in key_projection(self.accessed, block, keys[0].numel()))
        ours = torch.cat([keys[self.spike], keys[self.other]]).flatten(1)
        wrong = difference(hidden @ weight.T + offset, ours)
        if not wrong < tolerances(self.accessed.dtype).forward:
            raise DoesNotApplyError(
                f"The keys of block {placed(block)} are not W_K times the normed state (they differ by {wrong:.2g}), "
                "as where keys are normed"
            )
        channels, explained = column_parts(hidden[: len(self.spike)], weight, CHANNELS)
        _, explained_other = column_parts(hidden[len(self.spike) :], weight, CHANNELS)
        return record.KeyPart(
            block=block,
            n=len(self.spike),
            channels=channels,
            explained=explained,
            n_other=len(self.other),
            explained_other=explained_other,
        )


KEYS_PER_SEQUENCE = 8
"""Other keys drawn from each sequence; of sink keys all, at most this many."""
SEED = 0
QUERY, SINK_KEY, OTHER_KEY = 0, 1, 2
DRAWN = 24
"""Queries, sink keys and other keys of every head that are kept for drawing: as many of each."""


def measure_geometry(scanned: Scan, progress: Progress) -> Steps[tuple[record.Geometry, dict[str, np.ndarray]]]:
    """One pass over some sequences that have a sink token."""
    sinks = sink_tokens(scanned)
    sequences = sequences_with_sinks(sinks)
    valid = valid_mask(scanned)[sequences]
    picked = _Picked(sinks.mask[sequences] & valid, ~sinks.mask[sequences] & valid, ranks(valid))
    picked.is_spike = (spike_mask(scanned)[sequences][picked.rows, picked.positions]).numpy() & picked.is_sink
    parts = KeyParts(scanned, picked.rows, picked.positions, picked.is_sink, picked.is_spike)
    with unrotating(scanned.accessed) as rotary:
        watch = _Heads(rotary, sinks.mask[sequences], picked)
        yield Pass([watch, parts.entering], sequences)
    gaps = _gaps(scanned, watch)
    keys = []
    for done, block in enumerate(sorted(watch.keys)):
        progress("key ranks", done, len(watch.keys))
        keys += [_key_geometry(block, head, watch, picked) for head in range(watch.keys[block].shape[1])]
    progress("key ranks", len(watch.keys), len(watch.keys))
    planes, arrays = _planes(scanned, watch, picked)
    arrays |= _head_planes(watch, picked)
    importance = np.array([scanned.sinks.largest[gap.block][gap.head] for gap in gaps])
    layers = np.array([gap.block for gap in gaps])
    section = record.Geometry(
        sink_tokens=rule(sinks),
        sequences=len(sequences),
        queries=int(max((sums.count for sums in watch.gaps.values()), default=0)),
        keys=keys,
        gaps=gaps,
        gap_and_sink=rank_correlation(np.array([gap.gap for gap in gaps]), importance, layers),
        planes=planes,
        **parts.measure(watch.keys),
    )
    return section, arrays


class _Picked:
    """Tokens whose keys are kept, (token,): all sink tokens and random others of every sequence."""

    def __init__(self, sinks: Tensor, others: Tensor, rank: Tensor) -> None:
        generator = torch.Generator().manual_seed(SEED)
        one, other = (_some(mask, generator) for mask in (sinks, others))
        both = torch.cat([one, other])
        self.rows, self.positions = both[:, 0], both[:, 1]
        self.is_sink = (torch.arange(len(both)) < len(one)).numpy()
        self.is_first = (rank[self.rows, self.positions] == 0).numpy() & self.is_sink
        """Sink tokens that begin their sequence."""
        self.is_spike = np.zeros(len(both), dtype=bool)
        """Sink tokens that are spike tokens as well."""


def _some(mask: Tensor, generator: torch.Generator) -> Tensor:
    """At most KEYS_PER_SEQUENCE (row, position) of each row, at random."""
    scores = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1.0)
    values, positions = scores.topk(min(KEYS_PER_SEQUENCE, mask.shape[1]), dim=1)
    rows = torch.arange(len(mask))[:, None].expand_as(positions)
    return torch.stack([rows[values >= 0], positions[values >= 0]], dim=1)


class _Heads(Observer):
    """Pre-RoPE keys and queries of the picked tokens, and logit gaps over row blocks of queries."""

    def __init__(self, rotary: Rotary, sinks: Tensor, picked: _Picked) -> None:
        self.rotary, self.sinks, self.picked = rotary, sinks, picked
        self.keys: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}
        self.gaps: dict[int, GapSums] = {}

    def on_batch(self, batch: Batch) -> None:
        super().on_batch(batch)
        self._sink = self.sinks[batch.rows].to(batch.valid.device)
        local = self.picked.rows - batch.first_sequence
        self._inside = ((local >= 0) & (local < len(batch.ids))).nonzero()[:, 0]
        self._rows = local[self._inside]

    def on_attention(self, inputs: AttentionInputs) -> None:
        self._inputs, (self._query, self._key) = inputs, self.rotary.unrotated(inputs)
        positions = self.picked.positions[self._inside]
        for kept, states in ((self.keys, self._key), (self.queries, self._query)):
            if inputs.block not in kept:
                kept[inputs.block] = torch.zeros(len(self.picked.rows), states.shape[1], states.shape[3])
            kept[inputs.block][self._inside] = states[self._rows, :, positions].float().cpu()

    def on_attention_rows(self, rows: AttentionRows) -> None:
        queries, keys, seen = rows.queries, rows.keys, rows.seen
        sink = self._sink[:, None, keys].to(seen.device)
        counted = (self.batch.valid & ~self._sink)[:, queries].to(seen.device)
        rotated = _logits(self._inputs.query[:, :, queries].float(), self._inputs.key[:, :, keys].float())
        query, key = self._query[:, :, queries], self._key[:, :, keys]
        content = _logits(query, key)
        cosine = _logits(functional.normalize(query, dim=-1), functional.normalize(key, dim=-1))
        scaling = self._inputs.scaling
        add_gaps(
            self.gaps.setdefault(rows.block, GapSums()),
            content=content * scaling,
            rotated=rotated * scaling,
            cosine=cosine,
            sink=seen & sink,
            other=seen & ~sink,
            counted=counted,
        )


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """q.k of every query head with its KV head, (batch, head, row, key)."""
    return query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT


def _gaps(scanned: Scan, watch: _Heads) -> list[record.LogitGap]:
    gaps = []
    for block, sums in sorted(watch.gaps.items()):
        is_sink = scanned.sinks.is_sink(block)
        for head in range(len(is_sink)) if sums.count else ():
            gap, content = sums.mean("gap", head), sums.mean("content", head)
            gaps.append(
                record.LogitGap(
                    block=block,
                    head=head,
                    is_sink=bool(is_sink[head]),
                    gap=gap,
                    gap_std=max(0.0, sums.mean("square", head) - gap**2) ** 0.5,
                    content=content,
                    distance=gap - content,
                    positive_share=sums.mean("positive", head),
                    cosine_sink=sums.mean("cosine_sink", head),
                    cosine_other=sums.mean("cosine_other", head),
                )
            )
    return gaps


def _key_geometry(block: int, head: int, watch: _Heads, picked: _Picked) -> record.KeyGeometry:
    keys = watch.keys[block][:, head]
    sinks, others, spikes = keys[picked.is_sink], keys[~picked.is_sink], keys[picked.is_spike]
    generator = np.random.default_rng(SEED)
    n = min(len(sinks), len(others))
    drawn = torch.from_numpy(generator.permutation(len(others))[:n])
    test = picked.rows.numpy() % 2 == 1
    pretended = np.zeros(len(keys), dtype=bool)
    pretended[np.nonzero(~picked.is_sink)[0][drawn.numpy()]] = True
    return record.KeyGeometry(
        block=block,
        kv_head=head,
        n=n,
        rank_sink=effective_rank(sinks[:n]),
        rank_other=effective_rank(others[drawn]),
        n_spike=len(spikes),
        rank_spike=effective_rank(spikes) if len(spikes) > 1 else None,
        energy_rank_spike=energy_rank(spikes) if len(spikes) > 1 else None,
        energy_rank_sink=energy_rank(sinks[:n]),
        energy_rank_other=energy_rank(others[drawn]),
        first=_rank(keys[torch.from_numpy(picked.is_first)], others, generator),
        later=_rank(keys[torch.from_numpy(picked.is_sink & ~picked.is_first)], others, generator),
        norm_sink=float(sinks.norm(dim=-1).mean()),
        norm_other=float(others.norm(dim=-1).mean()),
        separability=_separability(keys.numpy(), picked.is_sink, ~picked.is_sink, test),
        separability_control=_separability(keys.numpy(), pretended, ~picked.is_sink & ~pretended, test),
    )


def _rank(keys: Tensor, others: Tensor, generator: np.random.Generator) -> record.KeyRank | None:
    n = min(len(keys), len(others))
    if n < 2:
        return None
    drawn = torch.from_numpy(generator.permutation(len(others))[:n])
    return record.KeyRank(n=n, rank=effective_rank(keys[:n]), rank_other=effective_rank(others[drawn]))


def _separability(keys: np.ndarray, one: np.ndarray, other: np.ndarray, test: np.ndarray) -> float | None:
    return separability(keys[one & ~test], keys[other & ~test], keys[one & test], keys[other & test])


def _planes(scanned: Scan, watch: _Heads, picked: _Picked) -> tuple[list[record.KeyPlane], dict[str, np.ndarray]]:
    """The head with the largest importance, and the one with the smallest, each in its own plane."""
    heads = [
        (float(value), block, head)
        for block, values in scanned.sinks.largest.items()
        for head, value in enumerate(values)
    ]
    planes, arrays = [], {}
    for name, (importance, block, head) in (("sink_head", max(heads)), ("other_head", min(heads))):
        queries = watch.queries[block][~torch.from_numpy(picked.is_sink), head].numpy()
        groups = watch.queries[block].shape[1] // watch.keys[block].shape[1]
        keys = watch.keys[block][:, head // groups].numpy()
        points, explained = principal_plane(np.concatenate([queries, keys]))
        kinds = np.concatenate([np.full(len(queries), QUERY), np.where(picked.is_sink, SINK_KEY, OTHER_KEY)])
        arrays[f"{name}_points"], arrays[f"{name}_kinds"] = points.astype(np.float32), kinds.astype(np.int8)
        planes.append(record.KeyPlane(name=name, block=block, head=head, importance=importance, explained=explained))
    return planes, arrays


def _head_planes(watch: _Heads, picked: _Picked) -> dict[str, np.ndarray]:
    """A few queries and keys of every head, each head in its own plane, with the share of variance it holds."""
    sinks, others = (_spread(np.nonzero(mask)[0]) for mask in (picked.is_sink, ~picked.is_sink))
    kinds = np.repeat([QUERY, SINK_KEY, OTHER_KEY], [len(others), len(sinks), len(others)])
    blocks = sorted(watch.queries)
    heads = max((watch.queries[block].shape[1] for block in blocks), default=0)
    points = np.full((len(blocks), heads, len(kinds), 2), np.nan, dtype=np.float32)
    explained = np.full((len(blocks), heads), np.nan, dtype=np.float32)
    for row, block in enumerate(blocks):
        queries, keys = watch.queries[block].numpy(), watch.keys[block].numpy()
        for head in range(queries.shape[1]):
            shared = keys[:, head // (queries.shape[1] // keys.shape[1])]
            states = np.concatenate([queries[others, head], shared[sinks], shared[others]])
            points[row, head], explained[row, head] = principal_plane(states)
    return {
        "head_blocks": np.array(blocks, dtype=np.int64),
        "head_points": points,
        "head_kinds": kinds.astype(np.int8),
        "head_explained": explained,
    }


def _spread(indices: np.ndarray) -> np.ndarray:
    """At most DRAWN of them, evenly spread."""
    return indices[np.linspace(0, len(indices) - 1, min(DRAWN, len(indices))).astype(int)]
