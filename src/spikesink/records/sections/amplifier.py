"""The section of a scan about FFNs as directional quadratic amplifiers."""

from typing import ClassVar

from spikesink.records.base import Frozen, Section
from spikesink.records.intervals import Interval


class Prediction(Frozen):
    """A prediction against the truth over n tokens: sum(predicted) / sum(true), and R^2 about the mean of the truth."""

    n: int
    ratio: float | None
    r2: float | None


class AmplifierChannel(Frozen):
    """||U_k||_F of one channel and the eigenvalues of S_k that are largest by magnitude. Sun et al. 2026, figure 4."""

    channel: int
    frobenius: float
    rank: int
    """0 where no channel of the block, in any expert, has a larger norm."""
    eigenvalues: list[float]
    expert: int | None = None
    """In a mixture of experts, the expert with the largest norm for this channel; -1 the shared one."""


class AmplifierBlock(Frozen):
    """One FFN block; without channels where it has no quadratic form, and `reason` says why."""

    block: int
    experts: int
    """Gated maps in the block: 1 for a dense FFN."""
    median_frobenius: float | None
    """Median over channels (and experts)."""
    channels: list[AmplifierChannel]
    reason: str | None = None


class OutlierChannel(Frozen):
    """A channel whose ||U_k||_F is far above the median of its block."""

    block: int
    channel: int
    expert: int | None
    frobenius: float
    over_median: float
    """Norm over the median norm of the block's channels, those of all experts."""


class GateStatistics(Frozen):
    """Means over tokens; 1 and 1 where the gate is the identity. Spec 2.2."""

    n: int
    cosine: float | None
    norm_ratio: float | None


class StepAmplifier(Frozen):
    """One channel of a step FFN: its rank-one form lambda* ||h~||^2 cos^2(s*, h~) against the block's true output."""

    block: int
    channel: int
    eigenvalue: float
    """lambda*"""
    next_eigenvalue: float | None
    share_of_spectrum: float
    """lambda*^2 / ||S_k||_F^2"""
    alignment_spike: float | None
    """Mean |cos(s*, h~)| at spike tokens."""
    alignment_other: float | None
    rank_one_first: Prediction
    """At position 0, padding left out."""
    rank_one_spike: Prediction
    rank_one_other: Prediction
    quadratic_spike: Prediction
    """The whole form h~^T S_k h~: what is missing is the gate's distance from the identity."""
    quadratic_other: Prediction


class StepGate(Frozen):
    """How near the gate of an FFN block is to the identity; `control` marks a block in the plateau, not a step."""

    block: int
    control: bool
    spike: GateStatistics
    other: GateStatistics


class SharedDirection(Frozen):
    """Mean |cos| between the s* of followed channels of a block, and of random channels as control."""

    block: int
    channels: list[int]
    mean_cosine: float | None
    control_cosine: float | None
    control: Interval | None = None
    """The control with its interval over random channels."""


class Amplifier(Section):
    """The FFN as a directional quadratic amplifier. Sun et al. 2026, section on figures 2-4 and 8; spec 2.2.

    Arrays: `amplifier.norms` (row, channel), with the block and expert of each row in `amplifier.blocks` and
    `amplifier.experts` (-1 = the shared expert, -2 = a dense FFN); `amplifier.directions` (row, d): the s* of `steps`.
    """

    section: ClassVar[str | None] = "amplifier"

    spike_channel: int
    followed_channels: list[int]
    """The spike channel, further spike channels, and the three largest of the residual at the spike block."""
    outlier_over_median_min: float
    outliers: list[OutlierChannel]
    """Channels whose norm reaches that multiple of the block's median; the largest of them."""
    outlier_count: int
    outlier_blocks: list[int]
    blocks: list[AmplifierBlock]
    steps: list[StepAmplifier]
    gates: list[StepGate]
    directions: list[SharedDirection]
    steps_reason: str | None
    """Why steps, gates and directions are empty."""
    erratum: str = (
        "Eq. 19 ends in lambda* sqrt(d) cos(s*, h~); since ||h~|| = sqrt(d), it must be lambda* d cos^2(s*, h~), and "
        "that is what is measured here."
    )
