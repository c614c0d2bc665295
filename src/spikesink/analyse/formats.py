"""What the formats that models are served in cost, how much of it spikes do, in which blocks, which values are lost."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spikesink import bootstrap
from spikesink.access import editing
from spikesink.access.linears import LinearSite, editing_inputs
from spikesink.analyse.evaluation import HELD_OUT_SPIKES, Evaluation, Evaluator, evaluate, spike_share
from spikesink.analyse.quantisation import Calibration, calibrate, is_notable
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.formats import FORMATS, lost, round_to
from spikesink.intervene.quantise import KvEdit, TokenMarks, kv_name, replaced_weights
from spikesink.measure.states import ChannelRange
from spikesink.positions import layer_of, placed
from spikesink.records.deployment import FORMAT_NATS, BlockDamage, FormatDamage, Formats

STAGE = "formats"
INPUTS = (
    "fp8 e4m3 per tensor static",
    "fp8 e4m3 per tensor",
    "fp8 e5m2 per tensor",
    "fp8 e4m3 per token",
    "fp8 e4m3 per 128",
    "mxfp8",
    "mxfp4",
    "nvfp4",
)
"""What enters linear maps."""
WEIGHTS = {
    "fp8 e4m3 per output channel": "fp8 e4m3 per token",
    "fp8 e4m3 per 128": "fp8 e4m3 per 128",
    "fp8 e4m3 per 32": "fp8 e4m3 per 32",
    "int4 per 128": "int4 per 128",
    "int4 per 32": "int4 per 32",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
}
"""Weights, (output, input) channels: groups run along the input."""
KV = {
    "fp8 e4m3 scale 1": ("fp8 e4m3 scale 1",) * 2,
    "fp8 e4m3 per tensor static": ("fp8 e4m3 per tensor static",) * 2,
    "fp8 e4m3 per tensor": ("fp8 e4m3 per tensor",) * 2,
    "fp8 e4m3 per token": ("fp8 e4m3 per token",) * 2,
    "fp8 e4m3 keys per channel, values per token": ("fp8 e4m3 per channel static", "fp8 e4m3 per token"),
    "int8 per tensor static": ("int8 per tensor static",) * 2,
    "int8 per token": ("int8 per token",) * 2,
    "int8 keys per channel, values per token": ("int8 per channel static", "int8 per token"),
    "nvfp4": ("nvfp4",) * 2,
}
"""Caches: the formats of keys and of values, those of all KV heads of a token side by side."""
SCAN_SEQUENCES = 4
"""Sequences of that."""


class Rounding(TokenMarks):
    """Rounds what enters linear maps, or keys and values, to a format, and counts the ordinary values that are lost.

    Marked tokens are spikes; spared, they stay as they are and are in no scale.
    """

    def __init__(self, name: str, ranges: ChannelRange, marked: Tensor | None, spare: bool) -> None:
        super().__init__(marked)
        self.name, self.ranges, self.spare = name, ranges, spare
        self.values = self.lost = 0
        self._shared: tuple[Tensor, Tensor] | None = None

    def rounded(self, site: str, entering: Tensor, name: str | None = None) -> Tensor:
        """What enters a site, (..., channel), in the format; name: another format than that of the object."""
        name = name or self.name
        flat = entering.reshape(-1, entering.shape[-1])
        spikes = torch.zeros(len(flat), dtype=torch.bool) if self.rows is None else self.rows.reshape(-1)
        spikes = spikes.to(flat.device)
        chosen = ~spikes if self.spare else torch.ones_like(spikes)
        if not bool(chosen.any()):
            return entering
        values, scale = round_to(flat[chosen], name, self._largest(site, name))
        ordinary = ~spikes[chosen]
        held = flat[chosen][ordinary]
        self.values += int((held != 0).sum())
        self.lost += int(lost(held, values[ordinary], scale[ordinary], name).sum())
        result = flat.clone()
        result[chosen] = values
        return result.view_as(entering)

    def _largest(self, site: str, name: str) -> Tensor | None:
        if not FORMATS[name].static:
            return None
        largest = self.ranges.largest[site]
        return largest if FORMATS[name].scales == "channel" else largest.max()

    def enter(self, site: LinearSite, entering: Tensor) -> Tensor:
        """What several maps read (q, k and v) is rounded and counted once."""
        if self._shared is None or self._shared[0] is not entering:
            self._shared = entering, self.rounded(site.name, entering)
        return self._shared[1]

    def weight(self, rows: Tensor) -> Tensor:
        """A weight (output, input) in the format."""
        values, scale = round_to(rows, self.name)
        self.values += int((rows != 0).sum())
        self.lost += int(lost(rows, values, scale, self.name).sum())
        return values


def served_formats(evaluator: Evaluator, held_out: Tensor) -> Formats:
    """Inputs of all linear maps, their weights, and keys and values, each in the formats that they are served in.

    Static scales are learned on the held-out ids (sequence, token). What costs FORMAT_NATS nats or more is also done in
    one block at a time, on the first sequences.
    """
    calibration = calibrate(evaluator, held_out, evaluator.spike_tokens(held_out, HELD_OUT_SPIKES))
    baseline = evaluator.baseline_loss()
    few = replace(evaluator, ids=evaluator.ids[:SCAN_SEQUENCES], seconds=0.0)
    with few.prefix.keeping():
        few_baseline = few.loss(f"baseline of {len(few.ids)}")
    asked = [(kind, name) for kind, names in (("inputs", INPUTS), ("weights", WEIGHTS), ("kv", KV)) for name in names]
    rows, skipped = [], []
    for index, (kind, name) in enumerate(asked):
        evaluator.progress(STAGE, index, len(asked))
        try:
            row = _row(evaluator, calibration, baseline, kind, name)
        except DoesNotApplyError as reason:
            skipped.append(f"{name} of {kind}: {reason}")
            continue
        if row.loss_difference_nats.low > 0 and row.loss_difference_nats.value >= FORMAT_NATS:
            worst = _worst_blocks(few, calibration, few_baseline, kind, name)
            row = row.model_copy(update={"worst_blocks": worst, "scanned": True})
        rows.append(row)
    evaluator.progress(STAGE, len(asked), len(asked))
    evaluator.seconds += few.seconds
    return Formats(rows=rows, skipped=skipped, missing=calibration.missing)


def _row(evaluator: Evaluator, calibration: Calibration, baseline: Evaluation, kind: str, name: str) -> FormatDamage:
    broken, gone = _pass(evaluator, calibration, kind, name)
    difference = broken.cost(baseline)
    share = without = kept_difference = None
    if calibration.spikes is not None and kind != "weights":
        kept, without = _pass(evaluator, calibration, kind, name, spare=True)
        share = spike_share(broken, kept, baseline) if difference.low > 0 else None
        kept_difference = kept.cost(baseline)
    made = [FORMATS[each] for each in _formats(kind, name)]
    scales = dict.fromkeys(each.scales for each in made)
    return FormatDamage(
        name=name,
        kind=kind,
        element=made[0].element,
        scales=" of keys, ".join(scales) + " of values" * (len(scales) > 1),
        static=made[0].static or made[0].fixed is not None,
        perplexity=broken.perplexity,
        loss_difference_nats=difference,
        kept_loss_difference_nats=kept_difference,
        spike_share=share,
        lost=gone,
        lost_without_spikes=without,
    )


def _formats(kind: str, name: str) -> tuple[str, ...]:
    """Names in FORMATS."""
    return KV[name] if kind == "kv" else (WEIGHTS[name] if kind == "weights" else name,)


def _worst_blocks(
    few: Evaluator, calibration: Calibration, baseline: Evaluation, kind: str, name: str
) -> list[BlockDamage]:
    """Blocks that alone do a notable share of what the format does in all, the worst first."""
    whole, _ = _pass(few, calibration, kind, name)
    damage = float(bootstrap.difference(whole.losses, baseline.losses))
    accessed = few.accessed
    blocks = [sites.block for sites in accessed.attending] if kind == "kv" else calibration.blocks
    rows = []
    for block in blocks:
        alone, _ = _pass(few, calibration, kind, name, block=block)
        cost = alone.cost(baseline)
        if is_notable(cost, damage):
            rows.append(BlockDamage(block=block, loss_difference_nats=cost))
    return sorted(rows, key=lambda row: -row.loss_difference_nats.value)


def _pass(
    evaluator: Evaluator,
    calibration: Calibration,
    kind: str,
    name: str,
    *,
    spare: bool = False,
    block: int | None = None,
) -> tuple[Evaluation, float]:
    """A pass in the format, in one block or all, and the share of ordinary values that were lost in it."""
    contexts, rounding = _contexts(evaluator, calibration, kind, name, spare, block)
    untouched = 0 if block is None else layer_of(block)

    def run() -> dict[str, Any]:
        with evaluator.prefix.replaying(untouched):
            result = evaluate(
                evaluator.accessed, evaluator.ids, *contexts, batch_size=evaluator.batch_size, loss_only=True
            )
        return {"evaluation": result.to_dict(), "lost": rounding.lost / max(1, rounding.values)}

    key = f"formats/{kind} {name}{' spike tokens kept' if spare else ''}"
    key += "" if block is None else f" block {placed(block)}"
    result = evaluator.kept(f"{key} of {len(evaluator.ids)}", run)
    return Evaluation(**result["evaluation"]), result["lost"]


def _contexts(
    evaluator: Evaluator, calibration: Calibration, kind: str, name: str, spare: bool, block: int | None
) -> tuple[list[AbstractContextManager], Rounding]:
    accessed = evaluator.accessed
    ranges = calibration.ordinary if spare else calibration.ranges
    marked = _kept_in_cache(evaluator, calibration.spikes) if kind == "kv" else calibration.spikes
    formats = _formats(kind, name)
    rounding = Rounding(formats[0], ranges, marked, spare)
    if kind == "kv":
        by_kind: dict[str, str] = {"key": formats[0], "value": formats[1]}
        edit = KvEdit(
            lambda block, which, flat: rounding.rounded(kv_name(block, which), flat, by_kind[which]),
            None if block is None else {block},
        )
        return [editing(accessed, rounding), editing(accessed, edit)], rounding
    sites = [site for each in calibration.sites.values() for site in each if block in (None, site.block)]
    if kind == "weights":
        return [replaced_weights(sites, rounding.weight)], rounding
    return [editing(accessed, rounding), editing_inputs(sites, rounding.enter)], rounding


def _kept_in_cache(evaluator: Evaluator, spikes: Tensor | None) -> Tensor | None:
    """Spike tokens and, where heads sink, the positions that they sink on."""
    if spikes is None or not evaluator.targets.has_sinks:
        return spikes
    kept = spikes.clone()
    kept[:, [position for position in evaluator.targets.sink_positions if position < kept.shape[1]]] = True
    return kept
