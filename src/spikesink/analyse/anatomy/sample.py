"""Tokens that measures look at closely, and what the residual stream holds at them."""

from collections.abc import Collection
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.access.norm_weights import input_norm
from spikesink.analyse.passes import Pass, Scan, Steps, no_progress
from spikesink.errors import DoesNotApplyError
from spikesink.measure.sink_tokens import SinkTokens
from spikesink.measure.states import Gather
from spikesink.measure.tallies import TOP, TokensAbove
from spikesink.observer import Observer
from spikesink.positions import ranks

SPIKE_TOKENS = 128
OTHER_TOKENS = 512
SEQUENCES = 64
"""With a sink token, that are looked at."""
SEED = 0


@dataclass(frozen=True)
class TokenSample:
    """Spike tokens (the largest) and others (at random). All (token,); `sequence` counts rows of the scan's ids, `rank`
    the tokens before it in its sequence, padding left out."""

    sequence: Tensor
    position: Tensor
    rank: Tensor
    is_spike: Tensor

    @property
    def is_first(self) -> Tensor:
        return self.is_spike & (self.rank == 0)


def spike_block(scanned: Scan) -> int:
    """The block whose residual the spike is read in; that of the largest magnitude where there is no spike."""
    return scanned.spike.verdict.verdict_block if scanned.spike.has_spikes else scanned.spike.block


def spike_mask(scanned: Scan) -> Tensor:
    """Which tokens are spike tokens, of the shape of ids. Where the scan could not list them all, one more pass."""
    if len(scanned.spike.tokens) < scanned.spike.verdict.token_count:
        return _seen_again(scanned)
    mask = torch.zeros(scanned.ids.shape, dtype=torch.bool)
    rows = torch.from_numpy(scanned.spike.tokens[:, 1:].astype(np.int64))
    mask[rows[:, 0], rows[:, 1]] = True
    return mask


_masks: WeakKeyDictionary[Scan, Tensor] = WeakKeyDictionary()
"""Spike tokens that took a pass, which the measures of a scan share."""


def _seen_again(scanned: Scan) -> Tensor:
    if scanned not in _masks:
        block = spike_block(scanned)
        threshold = scanned.spikes.residuals[block].threshold(scanned.criteria.spikes)
        above = TokensAbove(block, threshold, scanned.ids.shape)
        scanned.replay([above], "spike tokens", no_progress)
        _masks[scanned] = above.mask
    return _masks[scanned]


def valid_mask(scanned: Scan) -> Tensor:
    """Which tokens are no padding, of the shape of ids."""
    return torch.ones(scanned.ids.shape, dtype=torch.bool) if scanned.valid is None else scanned.valid.bool().cpu()


def sample_tokens(scanned: Scan, spikes: int = SPIKE_TOKENS, others: int = OTHER_TOKENS) -> TokenSample:
    """At most so many spike tokens, largest first, and so many of the others, drawn with a fixed seed."""
    chosen = torch.from_numpy(scanned.spike.tokens[:spikes, 1:].astype(np.int64))
    valid = valid_mask(scanned)
    rest = (valid & ~spike_mask(scanned)).nonzero()
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(SEED))[:others]
    both = torch.cat([chosen, rest[order]])
    is_spike = torch.arange(len(both)) < len(chosen)
    return TokenSample(both[:, 0], both[:, 1], ranks(valid)[both[:, 0], both[:, 1]], is_spike)


def followed_channels(scanned: Scan) -> list[int]:
    """The spike channel, further spike channels, and the largest of the residual at the spike block; at most 8."""
    top = scanned.spikes.residuals[spike_block(scanned)].peaks.top()
    channels = [*scanned.spike.channels, *(peak.channel for peak in top[:TOP])]
    return list(dict.fromkeys(channels))[:8]


def read_by(accessed: AccessedModel, block: int) -> int:
    """The block after which stands the residual that this one reads: in a parallel layer, both read what enters it."""
    return block - 2 if accessed.parallel and block % 2 == 0 else block - 1


def residual_at(sample: TokenSample, blocks: Collection[int], *also: Observer) -> Steps[dict[int, Tensor]]:
    """Residuals after these blocks (0 = the embedding) at the sampled tokens, (token, d) each.

    also: further observers of the sequences that hold sampled tokens, in rising order.
    """
    rows, index = torch.unique(sample.sequence, return_inverse=True)
    gather = Gather(index, sample.position, residuals=blocks)
    yield Pass([gather, *also], rows)
    return gather.residuals


def entering(scanned: Scan, sample: TokenSample, blocks: list[int]) -> Steps[dict[int, Tensor]]:
    """h~ entering each block at the sampled tokens, (token, d): normed without gamma, or the residual itself where
    the block has no input norm. Raises DoesNotApplyError for norms that are not known."""
    accessed = scanned.accessed
    norms = {block: input_norm(accessed, block) for block in blocks}
    before = {block: read_by(accessed, block) for block in blocks}
    residuals = yield from residual_at(sample, set(before.values()))
    return {
        block: residuals[before[block]] if norm is None else norm(residuals[before[block]])
        for block, norm in norms.items()
    }


def sink_tokens(scanned: Scan) -> SinkTokens:
    """The sink tokens of the scanned text. Raises DoesNotApplyError where there are none."""
    if not bool(scanned.sink_tokens.mask.any()):
        raise DoesNotApplyError("No token of this text is an attention sink")
    return scanned.sink_tokens


def sequences_with_sinks(sinks: SinkTokens) -> Tensor:
    """Indices of the first sequences that have a sink token, at most SEQUENCES."""
    return torch.nonzero(sinks.mask.any(1))[:, 0][:SEQUENCES]
