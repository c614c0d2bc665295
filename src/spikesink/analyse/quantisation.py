"""Where int8 breaks a model, how much of it spikes do, and what mends it: simulated quantisation, measured."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from spikesink import bootstrap
from spikesink.access import AccessedModel, editing, full_batch, observing, run
from spikesink.access.linears import KINDS, LinearSite, editing_inputs, find_linears, missing_linears
from spikesink.analyse.evaluation import Evaluation, Evaluator, spike_share
from spikesink.analyse.passes import stream
from spikesink.intervene import freeze_spikes
from spikesink.intervene.quantise import (
    Scheme,
    TokenMarks,
    kv_name,
    quantised_inputs,
    quantised_kv,
    quantised_weights,
    rotated_inputs,
)
from spikesink.measure.states import ChannelRange
from spikesink.positions import layer_of
from spikesink.records.deployment import KEPT, Damage, Quantisation, is_damage
from spikesink.records.intervals import Estimate

STAGE = "quantisation"
SITE_KINDS = (*KINDS, "kv")
WORST_CHANNELS = 8
"""Channels per site that the remedy of mixed precision keeps."""
WORST_BLOCK_MIN = 0.05
"""A worst block alone does at least this share of the damage, in nats, of its site kind in all blocks."""
ROTATION_SEQUENCES = 2
N_WEIGHTS, N_REMEDIES = 3, 6
"""Rows of weights and of remedies, for the progress bar."""


@dataclass(frozen=True)
class Calibration:
    """Learned on held-out sequences, but for `spikes`, which marks the evaluated ones."""

    sites: dict[str, list[LinearSite]]
    """By kind; a kind that the model does not have is empty."""
    ranges: ChannelRange
    spikes: Tensor | None
    """Spike tokens (sequence, token) bool of the evaluated sequences; None where the model has no spikes."""
    ordinary: ChannelRange
    """Ranges without the held-out spike tokens; all of them where these were not told."""
    missing: list[str]
    """Kinds of linear maps that some block does not have singly, with the reason."""

    @property
    def blocks(self) -> list[int]:
        """Blocks with linear maps."""
        return sorted({site.block for sites in self.sites.values() for site in sites})


class InputRanges(TokenMarks):
    """Ranges of what enters linear maps, of all tokens and of those that are not marked."""

    def __init__(self, marked: Tensor | None) -> None:
        super().__init__(marked)
        self.all = ChannelRange()
        self.unmarked = self.all if marked is None else ChannelRange()

    def note(self, name: str, values: Tensor) -> Tensor:
        self.all.update(name, values)
        if self.rows is not None and not bool(self.rows.all()):
            self.unmarked.update(name, values.flatten(0, -2)[~self.rows.flatten().to(values.device)])
        return values

    def fill(self, accessed: AccessedModel, linears: list[LinearSite], ids: Tensor, batch_size: int | None) -> None:
        """One pass over ids (sequence, token)."""
        with editing(accessed, self), editing_inputs(linears, lambda site, entering: self.note(site.name, entering)):
            stream(accessed, ids, [], batch_size=batch_size)


class _Ranges(InputRanges):
    """The same, and those of keys and values."""

    def edit_keys(self, block: int, key: Tensor) -> Tensor:
        self.note(kv_name(block, "key"), key.transpose(1, 2).flatten(2))
        return key

    def edit_values(self, block: int, value: Tensor) -> Tensor:
        self.note(kv_name(block, "value"), value.transpose(1, 2).flatten(2))
        return value


def calibrate(evaluator: Evaluator, held_out: Tensor, marked: Tensor | None = None) -> Calibration:
    """One pass over the held-out sequences for ranges, and one over the evaluated ones for spike tokens.

    marked: spike tokens (sequence, token) of the held-out ones, for ranges without them.
    """
    linears = find_linears(evaluator.accessed)
    ranges = _Ranges(marked)
    ranges.fill(evaluator.accessed, linears, held_out, evaluator.batch_size)
    sites = {kind: [site for site in linears if site.kind == kind] for kind in KINDS}
    missing = missing_linears(evaluator.accessed, linears)
    return Calibration(sites, ranges.all, evaluator.spike_tokens(), ranges.unmarked, missing)


@dataclass
class _Table:
    """Runs quantised configurations and turns them into rows."""

    evaluator: Evaluator
    calibration: Calibration
    baseline: Evaluation
    total: int
    done: int = 0

    def row(self, name: str, *contexts: AbstractContextManager, **facts: Any) -> tuple[Damage, Evaluation]:
        untouched = layer_of(min(facts.get("blocks") or [1]))
        result = self.evaluator.loss(f"quantisation/{name}", *contexts, untouched=untouched)
        self.done += 1
        self.evaluator.progress(STAGE, self.done, max(self.total, self.done))
        damage = Damage(
            name=name,
            perplexity=result.perplexity,
            loss_difference_nats=result.cost(self.baseline),
            **{"remedy": None, "blocks": None, **facts},
        )
        return damage, result

    def activations(
        self,
        kind: str,
        scheme: Scheme,
        *further: AbstractContextManager,
        block: int | None = None,
        remedy: str | None = None,
    ) -> tuple[Damage, Evaluation]:
        """Activations of one kind quantised, in one block or all, with further contexts open."""
        scales = "dynamic" if scheme.static is None else "static"
        name = f"{kind} int{scheme.bits} per {scheme.granularity} {scales}"
        name += f" block {block}" if block else ""
        name += f" + {remedy}" if remedy else ""
        return self.row(
            name,
            self.context(kind, scheme, None if block is None else {block}),
            *further,
            kind=kind,
            bits=scheme.bits,
            granularity=scheme.granularity,
            scales=scales,
            remedy=remedy,
            blocks=None if block is None else [block],
        )

    def context(self, kind: str, scheme: Scheme, blocks: set[int] | None):
        if kind == "kv":
            return quantised_kv(self.evaluator.accessed, scheme, blocks)
        return quantised_inputs(self.evaluator.accessed, self.sites(kind, blocks), scheme)

    def sites(self, kind: str, blocks: set[int] | None = None):
        return [site for site in self.calibration.sites[kind] if blocks is None or site.block in blocks]

    def blocks(self, kind: str) -> list[int]:
        if kind == "kv":
            return [sites.block for sites in self.evaluator.accessed.attending]
        return sorted({site.block for site in self.calibration.sites[kind]})


def quantisation(evaluator: Evaluator, held_out: Tensor, *, thorough: bool = False) -> Quantisation:
    """Perplexity under simulated quantisation: by site kind, by block of the worst kind, and with remedies.

    thorough: also int4 and static scales of every site kind, not of the worst alone.
    """
    calibration = calibrate(evaluator, held_out)
    baseline = evaluator.baseline_loss()
    table = _Table(evaluator, calibration, baseline, total=0)
    kinds = [kind for kind in SITE_KINDS if kind == "kv" or calibration.sites[kind]]
    further = len(_further(calibration)) * (len(kinds) if thorough else 1)
    table.total = 2 * len(kinds) + further + N_WEIGHTS + N_REMEDIES + evaluator.accessed.n_layers
    sites = [table.activations(kind, Scheme(granularity="tensor")) for kind in kinds]
    worst, (damage, broken) = max(
        zip(kinds, sites, strict=True), key=lambda pair: (pair[0] != "kv", pair[1][0].loss_difference_nats.value)
    )
    sites += [table.activations(kind, Scheme(granularity="token")) for kind in kinds]
    for kind in kinds if thorough else [worst]:
        sites += [table.activations(kind, scheme) for scheme in _further(calibration)]
    rows = [row for row, _ in sites] + _weights(table)
    blocks = [table.activations(worst, Scheme(), block=block)[0] for block in table.blocks(worst)]
    worst_blocks = _worst_blocks(blocks, broken, baseline) if is_damage(damage.loss_difference_nats) else []
    remedies = _remedies(table, worst, worst_blocks)
    # Without spikes or damage some remedies have nothing to do.
    evaluator.progress(STAGE, table.total, table.total)
    is_told = damage.loss_difference_nats.low > 0
    return Quantisation(
        weights_note=_weights_note(evaluator),
        baseline=baseline.perplexity,
        sites=rows,
        blocks=blocks,
        worst_kind=worst,
        worst_blocks=worst_blocks,
        worst_modules=[site.name for site in table.sites(worst, set(worst_blocks))],
        remedies=[row for row, _ in remedies.values()],
        spike_share=spike_share(broken, remedies[KEPT][1], baseline) if KEPT in remedies and is_told else None,
        rotation_error=_rotation_error(table, worst),
        skipped=calibration.missing,
    )


def _further(calibration: Calibration) -> list[Scheme]:
    """Int4 and static scales, and per channel."""
    static = calibration.ranges.largest
    return [
        Scheme(granularity="channel"),
        Scheme(granularity="tensor", static=static),
        Scheme(granularity="channel", static=static),
        Scheme(bits=4, granularity="tensor"),
        Scheme(bits=4, granularity="token"),
    ]


def _weights(table: _Table) -> list[Damage]:
    """Weights of every linear map, rounded to int8 and int4 with a scale per output channel, and int8 per tensor."""
    sites = [site for kind in table.calibration.sites for site in table.sites(kind)]
    rows = []
    for bits, granularity in ((8, "channel"), (4, "channel"), (8, "tensor")) if sites else ():
        rows.append(
            table.row(
                f"weights int{bits} per {granularity}",
                quantised_weights(sites, bits, granularity),
                kind="weights",
                bits=bits,
                granularity=granularity,
                scales="weights",
            )[0]
        )
    return rows


def _worst_blocks(blocks: list[Damage], broken: Evaluation, baseline: Evaluation) -> list[int]:
    """Blocks that alone do a notable share of the damage, the worst first."""
    whole = float(bootstrap.difference(broken.losses, baseline.losses))
    worst = [row for row in blocks if is_notable(row.loss_difference_nats, whole)]
    worst.sort(key=lambda row: -row.loss_difference_nats.value)
    return [block for row in worst for block in row.blocks or []]


def is_notable(cost: Estimate, whole: float) -> bool:
    """Whether what a block costs alone is a notable share of the whole damage in nats, and surely no gain."""
    return cost.low > 0 and cost.value >= WORST_BLOCK_MIN * whole > 0


def _remedies(table: _Table, kind: str, worst_blocks: list[int]) -> dict[str, tuple[Damage, Evaluation]]:
    """What mends int8 per tensor at the worst site kind."""
    plain = Scheme()
    accessed, targets, calibration = table.evaluator.accessed, table.evaluator.targets, table.calibration
    rows: dict[str, tuple[Damage, Evaluation]] = {}
    if worst_blocks:
        others = set(table.blocks(kind)) - set(worst_blocks)
        rows["worst blocks kept"] = table.row(
            f"{kind} int8 per tensor dynamic + worst blocks kept",
            table.context(kind, plain, others),
            kind=kind, bits=8, granularity="tensor", scales="dynamic", remedy="worst blocks kept",
            blocks=sorted(others),
        )  # fmt: skip
    if calibration.spikes is not None:
        spared = replace(plain, spared_tokens=calibration.spikes)
        rows[KEPT] = table.activations(kind, spared, remedy=KEPT)
        rows["spike tokens frozen"] = table.activations(
            kind, spared, freeze_spikes(accessed, targets), remedy="spike tokens frozen"
        )
    if kind != "kv":
        channels = {site.name: calibration.ranges.worst(site.name, WORST_CHANNELS) for site in table.sites(kind)}
        kept = replace(plain, spared_channels=channels)
        remedy = f"{WORST_CHANNELS} worst channels kept"
        rows[remedy] = table.activations(kind, kept, remedy=remedy)
        rows["Hadamard rotation"] = table.row(
            f"{kind} int8 per tensor dynamic + Hadamard rotation",
            rotated_inputs(accessed, table.sites(kind), plain),
            kind=kind, bits=8, granularity="tensor", scales="dynamic", remedy="Hadamard rotation",
        )  # fmt: skip
    damage, result = table.activations(kind, replace(plain, granularity="token"))
    rows["per token"] = (damage.model_copy(update={"remedy": "per token"}), result)
    return rows


def _rotation_error(table: _Table, kind: str) -> float | None:
    """Largest difference of logits that the rotation alone makes, relative to the largest logit."""
    if kind == "kv":
        return None
    accessed, batch = table.evaluator.accessed, full_batch(table.evaluator.ids[:ROTATION_SEQUENCES])
    with observing(accessed, []):
        plain = run(accessed, batch).double()
        with rotated_inputs(accessed, table.sites(kind), None):
            rotated = run(accessed, batch).double()
    return float((rotated - plain).abs().max() / plain.abs().max())


def _weights_note(evaluator: Evaluator) -> str | None:
    facts = evaluator.accessed.provenance
    already = facts.get("gguf_quantisation") or facts.get("dequantised_from")
    if not already:
        return None
    return f"The weights come from {already}: they were quantised before, and every figure here is on top of that."
