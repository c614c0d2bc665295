"""Direct effect on the loss when the sink's part of one head's write is taken out of the last residual. Spec section 3.

Later blocks keep what they wrote: this is the path from the head straight to the logits, exact on that path.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spikesink.access import AttentionRows, Batch
from spikesink.access.weights import Probe, unembedding
from spikesink.analyse.anatomy.sample import valid_mask
from spikesink.analyse.anatomy.sink_tokens import SinkTokens, sequences_with_sinks
from spikesink.analyse.passes import Progress
from spikesink.analyse.scanned import Scanned
from spikesink.errors import DoesNotApplyError
from spikesink.measure.heads import sink_output
from spikesink.measure.perplexity import token_losses
from spikesink.measure.statistics import bootstrap_mean
from spikesink.records.anatomy import Interval

PRODUCTS = 6e11
"""Multiplications spent on logits: heads x tokens x d x vocabulary. Decides how many tokens are measured."""
TOKENS_MIN, TOKENS_MAX = 32, 256
SEQUENCES = 32
CONTROL_HEADS = 24
SEED = 0


@dataclass(frozen=True)
class LossEffects:
    """By (block, head): mean rise of the loss in nats with its interval over tokens; and a random control."""

    per_head: dict[tuple[int, int], Interval]
    tokens: int
    sink: Interval
    """Mean |effect| over the control heads."""
    control: Interval


class _Gather:
    """Observer: what the sink gives to each head at chosen tokens (token, head, d_head), and the last residual."""

    def __init__(self, sinks: Tensor, rows: Tensor, positions: Tensor, last_block: int) -> None:
        self.sinks, self.rows, self.positions, self.last_block = sinks, rows, positions, last_block
        self.parts: dict[int, Tensor] = {}
        self.final = torch.empty(0)

    def on_batch(self, batch: Batch) -> None:
        self._rows = slice(batch.first_sequence, batch.first_sequence + len(batch.ids))
        local = self.rows - batch.first_sequence
        self._inside = (local >= 0) & (local < len(batch.ids))
        self._local = local

    def on_attention_rows(self, rows: AttentionRows) -> None:
        chosen = self._inside & (self.positions >= rows.query_start) & (self.positions < rows.query_stop)
        keys = slice(rows.key_start, rows.key_start + rows.weights.shape[-1])
        part = sink_output(rows.weights, rows.value, self.sinks[self._rows, keys].to(rows.weights.device))
        shape = (len(self.rows), part.shape[1], part.shape[3])
        kept = self.parts.setdefault(rows.block, torch.zeros(shape, device=part.device))
        kept[chosen] = part[self._local[chosen], :, self.positions[chosen] - rows.query_start]

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block == self.last_block:
            if not len(self.final):
                self.final = torch.zeros(len(self.rows), hidden.shape[-1], device=hidden.device)
            self.final[self._inside] = hidden[self._local[self._inside], self.positions[self._inside]].float()


def loss_effects(
    scanned: Scanned, found: SinkTokens, seen: Probe, projections: dict[int, Tensor], progress: Progress
) -> LossEffects:
    """projections: W_O (d, n_heads * d_head) per block. Raises DoesNotApplyError where writes do not simply add up."""
    accessed = scanned.accessed
    sites = {sites.block: sites for sites in accessed.blocks()}
    if accessed.post_norm or any(sites[block].output_norm is not None for block in projections):
        raise DoesNotApplyError("A norm follows the attention output, so one head's part of a write is no summand")
    unembed = unembedding(accessed, seen)
    sequences = sequences_with_sinks(found, SEQUENCES)
    rows, positions = _queries(scanned, found, sequences)
    gather = _Gather(found.mask[sequences], rows, positions, accessed.n_blocks)
    scanned.replay([gather], "sink parts", progress, sequences)
    targets = scanned.ids[sequences][rows, positions + 1].to(gather.final.device)
    losses = _Losses(unembed, gather.final, targets)
    heads = [(block, head) for block in sorted(projections) for head in range(gather.parts[block].shape[1])]
    effects: dict[tuple[int, int], np.ndarray] = {}
    drawn = np.random.default_rng(SEED).permutation(len(heads))[:CONTROL_HEADS].tolist()
    controls = []
    for done, (block, head) in enumerate(heads):
        progress("sink and loss", done, len(heads))
        width = gather.parts[block].shape[2]
        weight = projections[block][:, head * width : (head + 1) * width]
        part = gather.parts[block][:, head] @ weight.T * sites[block].multiplier
        effects[block, head] = losses.rise(part)
        if done in drawn:
            controls.append((effects[block, head], losses.rise(_random_like(part, done))))
    progress("sink and loss", len(heads), len(heads))
    sink, control = (np.array([np.abs(pair[index]).mean() for pair in controls]) for index in range(2))
    return LossEffects(
        per_head={key: bootstrap_mean(values) for key, values in effects.items()},
        tokens=len(rows),
        sink=bootstrap_mean(sink),
        control=bootstrap_mean(control),
    )


class _Losses:
    """Losses of chosen tokens when something is taken out of their last residual."""

    def __init__(self, unembed: Callable[[Tensor], Tensor], final: Tensor, targets: Tensor) -> None:
        self.unembed, self.final, self.targets = unembed, final, targets
        self.base = self._losses(final)

    def rise(self, part: Tensor) -> np.ndarray:
        """part (token, d); rise of the loss in nats, (token,)."""
        return (self._losses(self.final - part) - self.base).double().cpu().numpy()

    def _losses(self, hidden: Tensor) -> Tensor:
        with torch.inference_mode():
            return token_losses(self.unembed(hidden)[None], self.targets[None])[0]


def _queries(scanned: Scanned, found: SinkTokens, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and positions of tokens whose next token is predicted; none is a sink token itself."""
    sinks, valid = found.mask[sequences], valid_mask(scanned)[sequences]
    heads = sum(len(first) for first in scanned.sinks.first.values())
    affordable = int(PRODUCTS / (heads * scanned.accessed.d_model * scanned.accessed.vocab_size))
    usable = valid & ~sinks & (sinks.long().cumsum(1) > 0)
    usable[:, :-1] &= valid[:, 1:]
    usable[:, -1] = False
    choice = usable.nonzero()
    order = torch.randperm(len(choice), generator=torch.Generator().manual_seed(SEED))
    choice = choice[order[: min(TOKENS_MAX, max(TOKENS_MIN, affordable))]]
    if not len(choice):
        raise DoesNotApplyError("No token behind a sink token predicts another")
    return choice[:, 0], choice[:, 1]


def _random_like(part: Tensor, seed: int) -> Tensor:
    """Random directions with the lengths of `part`, (token, d)."""
    drawn = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)).to(part)
    return functional.normalize(drawn, dim=-1) * part.norm(dim=-1, keepdim=True)
