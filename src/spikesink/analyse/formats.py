"""What the formats that models are served in cost, how much of it spikes do, and which values are lost."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from spikesink import bootstrap
from spikesink.access import editing
from spikesink.access.linears import KINDS, LinearSite, editing_inputs
from spikesink.analyse.evaluation import Evaluation, Evaluator, evaluate, spike_share
from spikesink.analyse.quantisation import Calibration, calibrate
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.formats import FORMATS, round_to
from spikesink.intervene.quantise import TokenMarks, kv_name
from spikesink.measure.states import ChannelRange
from spikesink.records.interventions import FormatDamage, Formats

STAGE = "formats"
KV = ("fp8 e4m3 per tensor", "fp8 e4m3 per token", "nvfp4")
"""Formats that caches come in; keys and values of a token side by side."""


class Rounding(TokenMarks):
    """Rounds what enters linear maps, or keys and values, to a format, and counts the ordinary values that are lost.

    Marked tokens are spikes; spared, they stay as they are and are in no scale.
    """

    def __init__(self, name: str, ranges: ChannelRange, marked: Tensor | None, spare: bool) -> None:
        super().__init__(marked)
        self.name, self.ranges, self.spare = name, ranges, spare
        self.values = self.lost = 0

    def rounded(self, site: str, entering: Tensor) -> Tensor:
        """What enters a site, (..., channel), in the format."""
        flat = entering.reshape(-1, entering.shape[-1])
        spikes = torch.zeros(len(flat), dtype=torch.bool) if self.rows is None else self.rows.reshape(-1)
        spikes = spikes.to(flat.device)
        chosen = ~spikes if self.spare else torch.ones_like(spikes)
        if not bool(chosen.any()):
            return entering
        largest = self.ranges.largest[site].max() if FORMATS[self.name].static else None
        values, scale = round_to(flat[chosen], self.name, largest)
        ordinary = ~spikes[chosen]
        held = flat[chosen][ordinary] != 0
        small = values[ordinary].abs() < FORMATS[self.name].smallest_normal * scale[ordinary]
        self.values += int(held.sum())
        self.lost += int((held & small).sum())
        result = flat.clone()
        result[chosen] = values
        return result.view_as(entering)

    def enter(self, site: LinearSite, entering: Tensor) -> Tensor:
        return self.rounded(site.name, entering)


class KvRounding(Rounding):
    """The same on post-RoPE keys and values; channels are those of all KV heads."""

    def edit_keys(self, block: int, key: Tensor) -> Tensor:
        return self._cached(kv_name(block, "key"), key)

    def edit_values(self, block: int, value: Tensor) -> Tensor:
        return self._cached(kv_name(block, "value"), value)

    def _cached(self, site: str, cached: Tensor) -> Tensor:
        flat = cached.transpose(1, 2).flatten(2)
        return self.rounded(site, flat).unflatten(2, (cached.shape[1], -1)).transpose(1, 2)


def served_formats(evaluator: Evaluator, held_out: Tensor) -> Formats:
    """Every format of FORMATS at the input of all linear maps, and those of caches at keys and values.

    Static scales are learned on the held-out ids (sequence, token). Weights stay as they are.
    """
    calibration = calibrate(evaluator, held_out)
    baseline = evaluator.loss("baseline", untouched=evaluator.accessed.n_layers)
    asked = [("inputs", name) for name in FORMATS] + [("kv", name) for name in KV]
    rows, skipped = [], []
    for index, (kind, name) in enumerate(asked):
        evaluator.progress(STAGE, index, len(asked))
        try:
            rows.append(_row(evaluator, calibration, baseline, kind, name))
        except DoesNotApplyError as reason:
            skipped.append(f"{name} of {kind}: {reason}")
    evaluator.progress(STAGE, len(asked), len(asked))
    return Formats(rows=rows, skipped=skipped)


def _row(evaluator: Evaluator, calibration: Calibration, baseline: Evaluation, kind: str, name: str) -> FormatDamage:
    broken, lost = _pass(evaluator, calibration, kind, name, spare=False)
    difference = bootstrap.estimate(bootstrap.difference, broken.losses, baseline.losses)
    share = without = None
    if calibration.spikes is not None:
        kept, without = _pass(evaluator, calibration, kind, name, spare=True)
        share = spike_share(broken, kept, baseline) if difference.low > 0 else None
    made = FORMATS[name]
    return FormatDamage(
        name=name,
        kind=kind,
        element=made.element,
        scales=made.scales,
        static=made.static,
        perplexity=bootstrap.estimate(bootstrap.perplexity, broken.loss_sums, broken.predictions),
        loss_difference_nats=difference,
        spike_share=share,
        lost=lost,
        lost_without_spikes=without,
    )


def _pass(
    evaluator: Evaluator, calibration: Calibration, kind: str, name: str, *, spare: bool
) -> tuple[Evaluation, float]:
    """A pass in the format, and the share of ordinary values that were lost in it."""
    made = KvRounding if kind == "kv" else Rounding
    rounding = made(name, calibration.ranges, calibration.spikes, spare)

    def run() -> dict[str, Any]:
        with ExitStack() as stack:
            if kind != "kv":
                sites = [site for kind in KINDS for site in calibration.sites[kind]]
                stack.enter_context(editing_inputs(sites, rounding.enter))
            edited = editing(evaluator.accessed, rounding)
            result = evaluate(
                evaluator.accessed, evaluator.ids, edited, batch_size=evaluator.batch_size, loss_only=True
            )
        return {"evaluation": result.to_dict(), "lost": rounding.lost / max(1, rounding.values)}

    result = evaluator.kept(f"formats/{kind} {name}{' spike tokens kept' if spare else ''}", run)
    return Evaluation(**result["evaluation"]), result["lost"]
