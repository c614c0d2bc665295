"""Self-sinking: how much early heads attend to the token itself, by class of token. Spec 2.3."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from spikesink.access.norm_weights import NormScale, norm_scale
from spikesink.analyse.anatomy.sample import valid_mask
from spikesink.analyse.passes import Pass, Scan, Steps
from spikesink.errors import DoesNotApplyError
from spikesink.measure.statistics import bootstrap_mean
from spikesink.observer import AttentionRows, Observer
from spikesink.positions import ranks
from spikesink.records.intervals import Interval
from spikesink.records.sections import trigger as record

MAX_SEQUENCES = 256
CLASSES = ("first", "delimiter", "other")


def self_sinking(scanned: Scan, last_block: int) -> Steps[list[record.SelfSinkingBlock]]:
    """Per token class, for every attention block up to `last_block`. Raises DoesNotApplyError."""
    accessed = scanned.accessed
    if accessed.tokenizer is None:
        raise DoesNotApplyError("Without a tokenizer it is not known which tokens are delimiters")
    ids, valid = scanned.ids[:MAX_SEQUENCES], valid_mask(scanned)[:MAX_SEQUENCES]
    blocks = [sites.block for sites in accessed.attending if sites.block <= last_block]
    scales = {block: norm_scale(accessed.blocks()[block - 1], accessed.d_model) for block in blocks}
    known = {block: scale for block, scale in scales.items() if scale is not None}
    if not known:
        raise DoesNotApplyError("The attention blocks have no norm at their input, so there is no gamma to align with")
    watched = _SelfAttention(blocks, known, (len(ids), ids.shape[1]))
    yield Pass([watched], slice(MAX_SEQUENCES))
    classes, seen = _classes(scanned, ids, valid), ranks(valid) + 1
    return [
        record.SelfSinkingBlock(
            block=block, classes=[_class(watched, block, name, classes[name], seen) for name in CLASSES]
        )
        for block in known
    ]


def is_delimiter(text: str) -> bool:
    """No letter and no digit: punctuation, brackets, white space, line ends."""
    return bool(text) and not any(character.isalnum() for character in text)


def _classes(scanned: Scan, ids: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Masks of the shape of ids; the first token counts as nothing else."""
    known = {int(token): is_delimiter(scanned.accessed.token_text(int(token))) for token in torch.unique(ids)}
    delimiter = torch.tensor([[known[int(token)] for token in row] for row in ids])
    first = valid & (ranks(valid) == 0)
    later = valid & ~first
    return {"first": first, "delimiter": later & delimiter, "other": later & ~delimiter}


@dataclass
class _SelfAttention(Observer):
    """Per token and block, self-attention (mean over heads), post-norm magnitude and cosine with gamma."""

    blocks: list[int]
    scales: dict[int, NormScale]
    shape: tuple[int, int]
    values: dict[str, dict[int, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {
            name: {block: torch.zeros(self.shape) for block in self.blocks} for name in ("self", "magnitude", "cosine")
        }

    def on_residual(self, block: int, hidden: Tensor) -> None:
        if block + 1 not in self.scales:
            return
        scale = self.scales[block + 1]
        magnitude = (scale.norm(hidden) * scale.gain).norm(dim=-1) / hidden.shape[-1] ** 0.5
        cosine = cosine_similarity(hidden.float(), scale.gain, dim=-1)
        self.values["magnitude"][block + 1][self.batch.rows] = magnitude.cpu()
        self.values["cosine"][block + 1][self.batch.rows] = cosine.cpu()

    def on_attention_rows(self, rows: AttentionRows) -> None:
        if rows.block in self.blocks:
            diagonal = rows.weights.mean(1).diagonal(offset=rows.query_start - rows.key_start, dim1=1, dim2=2)
            # Queries before or after the range of keys are padding.
            queries = slice(max(rows.query_start, rows.key_start), min(rows.query_stop, rows.keys.stop))
            self.values["self"][rows.block][self.batch.rows, queries] = diagonal.cpu()


def _class(watched: _SelfAttention, block: int, name: str, members: Tensor, seen: Tensor) -> record.TokenClass:
    """members, seen (sequence, token): the tokens of the class, and how many keys each token sees."""
    counts = members.sum(1).numpy()

    def mean(quantity: str) -> Interval:
        totals = (watched.values[quantity][block] * members).sum(1).numpy()
        return bootstrap_mean(totals / np.maximum(counts, 1), counts)

    return record.TokenClass(
        name=name,
        tokens=int(counts.sum()),
        self_attention=mean("self"),
        uniform=float((1.0 / seen[members]).mean()) if members.any() else None,
        norm_magnitude=mean("magnitude"),
        gamma_cosine=mean("cosine"),
    )
