"""The section of a scan about the keys and queries of sink heads."""

from typing import ClassVar

from spikesink.records.base import Frozen, Section
from spikesink.records.intervals import Interval
from spikesink.records.sections.heads import SinkTokenRule


class KeyRank(Frozen):
    """Effective rank of n keys, and of as many keys that are no sink's, since rank grows with number."""

    n: int
    rank: float
    rank_other: float


class KeyPart(Frozen):
    """Keys of one block as sums of columns of W_K: the share of their energy that few input channels bring. Eq. 26.

    The share is 1 - ||k - sum over the channels of h~_c W_K[:, c]||^2 / ||k||^2 over all keys together; it can be
    negative where parts cancel. Channels are ordered by the energy of their parts.
    """

    block: int
    n: int
    channels: list[int]
    """Of the keys of spike tokens, the largest first."""
    explained: list[float]
    """By the first one, two, ... of them."""
    n_other: int
    explained_other: list[float]
    """The same for keys that are no sink's, with their own largest channels: the control."""


class KeyGeometry(Frozen):
    """Keys of one KV head before the rotary embedding: those of sink tokens against as many others."""

    block: int
    kv_head: int
    n: int
    """Sink keys; as many other keys are drawn, since rank grows with number."""
    rank_sink: float
    """Effective rank, exp of the entropy of the singular values. Roy & Vetterli 2007."""
    rank_other: float
    n_spike: int
    rank_spike: float | None
    """Of the sink keys that belong to spike tokens; None for fewer than two."""
    energy_rank_sink: int
    """Directions that hold 99 % of the squared norm."""
    energy_rank_other: int
    energy_rank_spike: int | None
    first: KeyRank | None = None
    """Sink keys of first tokens; None for fewer than two."""
    later: KeyRank | None = None
    """Sink keys of later tokens, which need not look like those."""
    norm_sink: float
    norm_other: float
    separability: float | None
    """Area under the ROC curve of the mean difference, learnt on half of the sequences and tested on the others."""
    separability_control: float | None
    """The same for random tokens called sinks."""


class LogitGap(Frozen):
    """One query head: the sink's attention logit less the mean of the other keys', over queries. Eq. 26."""

    block: int
    head: int
    is_sink: bool
    gap: float
    """Mean over queries, after the rotary embedding; before any softcap."""
    gap_std: float
    """A sink's gap is large and constant."""
    content: float
    """Part of the gap that is there before the rotary embedding: q.k_sink against q.k_other."""
    distance: float
    """The rest: what the positions add."""
    positive_share: float
    """Share of queries whose gap is positive."""
    cosine_sink: float
    """Mean cos(q, k_sink), pre-RoPE."""
    cosine_other: float


class KeyPlane(Frozen):
    """A head's queries and keys in the plane of their two principal components; points are in the arrays."""

    name: str
    """`sink_head` or `other_head`: prefix of the arrays."""
    block: int
    head: int
    importance: float
    explained: float
    """Share of the variance that the plane holds."""


class Geometry(Section):
    """Keys and queries of sinks before the rotary embedding. Sun et al. 2026, figure 6; spec section 3.

    Arrays: `geometry.NAME_points` (n, 2) and `geometry.NAME_kinds` (n,) for the planes: 0 = query, 1 = sink key,
    2 = other key. The same with fewer points for every head, each in its own plane: `geometry.head_points` (block,
    head, n, 2) of `geometry.head_blocks`, `geometry.head_kinds` (n,), and the share of variance that each plane holds,
    `geometry.head_explained` (block, head).
    """

    section: ClassVar[str | None] = "geometry"

    sink_tokens: SinkTokenRule
    sequences: int
    queries: int
    keys: list[KeyGeometry]
    gaps: list[LogitGap]
    gap_and_sink: Interval
    """Rank correlation over heads between the gap and the head's largest importance; its interval is over layers."""
    planes: list[KeyPlane]
    key_parts: list[KeyPart] | None = None
    """In the blocks between a spike's step-up and its step-down; None as `key_parts_reason` says."""
    key_parts_reason: str | None = None
