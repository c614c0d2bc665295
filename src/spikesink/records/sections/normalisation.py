"""The section of a scan about what the norms make of spike tokens."""

from typing import ClassVar

from spikesink.records.base import Frozen, Section


class NormStatistics(Frozen):
    """h~ of a group of tokens after one block. Sun et al. 2026, eq. 23-25."""

    tokens: int
    prompts: int
    bound: float | None
    """Largest |h~_i| / sqrt(d). At most 1 for any vector, so no finding: near 1 says that one channel is all."""
    energy_share: float | None
    """Mean share of ||h~||^2 in the spike channels."""
    participation_ratio: float | None
    """Mean number of channels that carry the energy, (sum h~^2)^2 / sum h~^4."""
    cosine_within: float | None
    """Mean cosine over pairs of tokens of one prompt; None where no prompt has two."""
    cosine_across: float | None
    """Mean cosine over pairs of tokens of different prompts."""
    persistence: float | None
    """Mean cosine with the same token after the previous block."""


class NormalisationBlock(Frozen):
    """Spike tokens and the others after one block, normed."""

    block: int
    spike: NormStatistics
    other: NormStatistics


class ImplicitParameter(Frozen):
    """Share of h~'s energy at the spike block that the mean over all other prompts explains; 1 = a constant."""

    block: int
    explained_spike: float | None
    explained_other: float | None
    """Control: the tokens that do not spike."""
    prompts_spike: int
    prompts_other: int
    before_block: int | None = None
    """The block before the step-up: spike tokens are mostly first tokens, which are alike before they spike as well."""
    explained_spike_before: float | None = None
    """Of the same tokens there."""
    explained_spike_without_channels: float | None = None
    """At the spike block with the spike channels taken out of h~."""
    distinct_spike_tokens: int
    """Different token ids among the spike tokens: with 1 (a BOS) a constant vector says nothing."""


class Normalisation(Section):
    """What normalisation does to spike tokens. Sun et al. 2026, figure 5; spec 2.4."""

    section: ClassVar[str | None] = "normalisation"

    norm: str
    """Kind of the norm that residuals are seen through."""
    spike_channels: list[int]
    blocks: list[NormalisationBlock]
    implicit: ImplicitParameter
