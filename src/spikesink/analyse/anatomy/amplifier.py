"""The amplifier of every FFN block, and how much of the step blocks' true output it predicts. Spec 2.2."""

import numpy as np
import torch
from torch import Tensor

from spikesink.access.gated_ffn import gated_ffns
from spikesink.analyse.anatomy.sample import TokenSample, entering, followed_channels, sample_tokens
from spikesink.analyse.passes import Progress, Scan, Steps
from spikesink.errors import DoesNotApplyError
from spikesink.measure.amplifier import (
    channel_norms,
    fit,
    gate_identity,
    output,
    quadratic,
    rank_one,
    spectrum,
    symmetric_norm,
)
from spikesink.measure.geometry import mean_cosine
from spikesink.records.sections import amplifier as record
from spikesink.weights import GatedFFN

OUTLIER_OVER_MEDIAN_MIN = 10.0
LISTED_OUTLIERS = 64
EIGENVALUES = 8
RANDOM_CHANNELS = 24
"""Channels whose directions are the control of the followed ones: the mean of so many pairs varies by a few percent."""
DENSE_ROW = -2
"""What `amplifier.experts` says of a dense FFN."""


def measure_amplifier(scanned: Scan, progress: Progress) -> Steps[tuple[record.Amplifier, dict[str, np.ndarray]]]:
    """Norms of all channels of all FFNs, spectra of the followed ones, and the steps taken apart."""
    accessed = scanned.accessed
    followed = followed_channels(scanned)
    blocks: list[record.AmplifierBlock] = []
    rows: list[tuple[int, int, np.ndarray]] = []
    ffn_blocks = range(2, accessed.n_blocks + 1, 2)
    for done, block in enumerate(ffn_blocks):
        progress("amplifier", done, len(ffn_blocks))
        try:
            ffns = gated_ffns(accessed, block)
        except DoesNotApplyError as reason:
            blocks.append(
                record.AmplifierBlock(block=block, experts=0, median_frobenius=None, channels=[], reason=str(reason))
            )
            continue
        norms = np.stack([channel_norms(ffn).double().cpu().numpy() for ffn in ffns])
        experts = (DENSE_ROW if ffn.expert is None else ffn.expert for ffn in ffns)
        rows += [(block, expert, row) for expert, row in zip(experts, norms, strict=True)]
        blocks.append(
            record.AmplifierBlock(
                block=block,
                experts=len(ffns),
                median_frobenius=float(np.median(norms)),
                channels=[_channel(ffns, norms, channel) for channel in followed],
            )
        )
    progress("amplifier", len(ffn_blocks), len(ffn_blocks))
    if not rows:
        raise DoesNotApplyError(blocks[0].reason or "No FFN has a quadratic form")
    steps = _Steps(scanned, followed)
    yield from steps.measure()
    outliers = _outliers(rows, {block.block: block.median_frobenius for block in blocks})
    section = record.Amplifier(
        spike_channel=followed[0],
        followed_channels=followed,
        outlier_over_median_min=OUTLIER_OVER_MEDIAN_MIN,
        outliers=outliers[:LISTED_OUTLIERS],
        outlier_count=len(outliers),
        outlier_blocks=sorted({outlier.block for outlier in outliers}),
        blocks=blocks,
        steps=steps.amplifiers,
        gates=steps.gates,
        directions=steps.shared,
        steps_reason=steps.reason,
    )
    arrays = {
        "norms": np.stack([row for _, _, row in rows]).astype(np.float32),
        "blocks": np.array([block for block, _, _ in rows]),
        "experts": np.array([expert for _, expert, _ in rows]),
        "directions": np.array(steps.directions, dtype=np.float32).reshape(-1, accessed.d_model),
    }
    return section, arrays


def _channel(ffns: list[GatedFFN], norms: np.ndarray, channel: int) -> record.AmplifierChannel:
    """The channel in the expert where its norm is largest."""
    index = int(norms[:, channel].argmax())
    return record.AmplifierChannel(
        channel=channel,
        frobenius=float(norms[index, channel]),
        rank=int((norms.max(0) > norms[index, channel]).sum()),
        eigenvalues=spectrum(ffns[index], channel, EIGENVALUES)[0].tolist(),
        expert=ffns[index].expert,
    )


def _outliers(rows: list[tuple[int, int, np.ndarray]], medians: dict[int, float | None]) -> list[record.OutlierChannel]:
    """rows: block, expert and norms (channel,); medians: of all norms of a block."""
    outliers = []
    for block, expert, norms in rows:
        over = norms / max(medians[block] or 0.0, 1e-30)
        outliers += [
            record.OutlierChannel(
                block=block,
                channel=int(channel),
                expert=None if expert == DENSE_ROW else expert,
                frobenius=float(norms[channel]),
                over_median=float(over[channel]),
            )
            for channel in np.nonzero(over >= OUTLIER_OVER_MEDIAN_MIN)[0]
        ]
    return sorted(outliers, key=lambda outlier: -outlier.over_median)


class _Steps:
    """The step FFNs, their predictions and gates at spike and other tokens, and one plateau FFN as control."""

    def __init__(self, scanned: Scan, followed: list[int]) -> None:
        self.amplifiers: list[record.StepAmplifier] = []
        self.gates: list[record.StepGate] = []
        self.shared: list[record.SharedDirection] = []
        self.directions: list[np.ndarray] = []
        self.scanned, self.followed, self.sample = scanned, followed, sample_tokens(scanned)
        step_blocks = _step_ffns(scanned)
        self.steps = [block for block in step_blocks if _dense(scanned, block)]
        self.reason = _no_steps(scanned, step_blocks, self.steps)

    def measure(self) -> Steps[None]:
        """One pass over the sequences of the sample, where there are steps."""
        if self.reason is not None:
            return
        control = _control_block(self.scanned, self.steps)
        hidden = yield from entering(self.scanned, self.sample, [*self.steps, *control])
        for block in [*self.steps, *control]:
            (ffn,) = gated_ffns(self.scanned.accessed, block)
            tokens = hidden[block].to(ffn.gate)
            self.gates.append(_gate(block, block in control, ffn, tokens, self.sample))
            if block not in control:
                self._step(block, ffn, tokens)

    def _step(self, block: int, ffn: GatedFFN, hidden: Tensor) -> None:
        vectors = []
        for channel in self.followed:
            values, directions = spectrum(ffn, channel, EIGENVALUES)
            vectors.append(directions[0])
            self.amplifiers.append(_step_amplifier(block, channel, ffn, values, directions[0], hidden, self.sample))
        self.directions += vectors
        others = [channel for channel in range(ffn.down.shape[0]) if channel not in self.followed]
        drawn = np.random.default_rng(block).permutation(others)[:RANDOM_CHANNELS]
        controls = np.stack([spectrum(ffn, int(channel), 1)[1][0] for channel in drawn])
        control = mean_cosine(controls)
        self.shared.append(
            record.SharedDirection(
                block=block,
                channels=self.followed,
                mean_cosine=mean_cosine(np.stack(vectors)).value,
                control_cosine=control.value,
                control=control,
            )
        )


def _step_ffns(scanned: Scan) -> list[int]:
    steps = scanned.steps
    return [] if steps is None else [block for block in (*steps.step_up, *steps.step_down) if block % 2 == 0]


def _dense(scanned: Scan, block: int) -> bool:
    try:
        ffns = gated_ffns(scanned.accessed, block)
    except DoesNotApplyError:
        return False
    return len(ffns) == 1 and ffns[0].expert is None


def _no_steps(scanned: Scan, step_blocks: list[int], steps: list[int]) -> str | None:
    if steps:
        return None
    if scanned.steps is None:
        return "no spikes" if not scanned.spike.has_spikes else "post-norm: no block makes the spike alone"
    if not step_blocks:
        return "no FFN block is a step-up or step-down block"
    return f"the FFNs of the step blocks ({', '.join(map(str, step_blocks))}) are no single gated map"


def _control_block(scanned: Scan, steps: list[int]) -> list[int]:
    """The FFN block in the middle of the plateau, where there is one that is no step."""
    assert scanned.steps is not None
    start = max(scanned.steps.step_up, default=1)
    stop = min(scanned.steps.step_down, default=scanned.accessed.n_blocks)
    middle = [b for b in range(2, scanned.accessed.n_blocks + 1, 2) if start < b < stop and b not in steps]
    chosen = middle[len(middle) // 2 : len(middle) // 2 + 1]
    return [block for block in chosen if _dense(scanned, block)]


def _gate(block: int, control: bool, ffn: GatedFFN, hidden: Tensor, sample: TokenSample) -> record.StepGate:
    cosines, ratios = gate_identity(ffn, hidden)

    def over(mask: Tensor) -> record.GateStatistics:
        chosen, count = mask.numpy(), int(mask.sum())
        if count == 0:
            return record.GateStatistics(n=0, cosine=None, norm_ratio=None)
        return record.GateStatistics(
            n=count, cosine=float(cosines[chosen].mean()), norm_ratio=float(ratios[chosen].mean())
        )

    return record.StepGate(block=block, control=control, spike=over(sample.is_spike), other=over(~sample.is_spike))


def _step_amplifier(
    block: int,
    channel: int,
    ffn: GatedFFN,
    values: np.ndarray,
    vector: np.ndarray,
    hidden: Tensor,
    sample: TokenSample,
) -> record.StepAmplifier:
    value, direction = float(values[0]), torch.from_numpy(vector).to(hidden)
    true = output(ffn, hidden, channel).double().cpu().numpy()
    rank = rank_one(value, direction, hidden).double().cpu().numpy()
    full = quadratic(ffn, hidden, channel).double().cpu().numpy()
    cosine = (torch.nn.functional.normalize(hidden, dim=-1) @ direction).abs().double().cpu().numpy()

    def over(predicted: np.ndarray, mask: Tensor) -> record.Prediction:
        return fit(predicted[mask.numpy()], true[mask.numpy()])

    spike, other = sample.is_spike, ~sample.is_spike
    return record.StepAmplifier(
        block=block,
        channel=channel,
        eigenvalue=value,
        next_eigenvalue=float(values[1]) if len(values) > 1 else None,
        share_of_spectrum=value**2 / max(symmetric_norm(ffn, channel) ** 2, 1e-300),
        alignment_spike=float(cosine[spike.numpy()].mean()) if spike.any() else None,
        alignment_other=float(cosine[other.numpy()].mean()) if other.any() else None,
        rank_one_first=over(rank, sample.is_first),
        rank_one_spike=over(rank, spike),
        rank_one_other=over(rank, other),
        quadratic_spike=over(full, spike),
        quadratic_other=over(full, other),
    )
