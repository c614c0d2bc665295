"""Where int8 breaks a model, how much of it spikes do, and what mends it: simulated quantisation, measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from spikesink.access import full_batch, observing, run
from spikesink.analyse import bootstrap
from spikesink.analyse.calibration import Calibration, calibrate
from spikesink.analyse.dissociation import Bench
from spikesink.analyse.trial import Trial
from spikesink.intervene import freeze_spikes
from spikesink.intervene.quantise import Scheme, quantised_inputs, quantised_kv, quantised_weights, rotated_inputs
from spikesink.records.interventions import Damage, Estimate, Quantisation

STAGE = "quantisation"
KINDS = ("attention_in", "attention_out", "ffn_in", "down_proj", "kv")
WORST_CHANNELS = 8
"""Channels per site that the remedy of mixed precision keeps."""
WORST_BLOCK_MIN = 0.05
"""A worst block alone does at least this share of the damage, in nats, of its site kind in all blocks."""
ROTATION_SEQUENCES = 2
N_WEIGHTS, N_REMEDIES = 3, 6
"""Rows of weights and of remedies, for the progress bar."""


@dataclass
class _Table:
    """Runs quantised configurations and turns them into rows."""

    bench: Bench
    calibration: Calibration
    baseline: Trial
    total: int
    done: int = 0

    def row(self, name: str, contexts: Callable[[], tuple], **facts: Any) -> tuple[Damage, Trial]:
        trial = self.bench.loss(f"quantisation/{name}", contexts)
        self.done += 1
        self.bench.progress(STAGE, self.done, max(self.total, self.done))
        damage = Damage(
            name=name,
            perplexity=bootstrap.estimate(bootstrap.perplexity, trial.loss_sums, trial.predictions),
            loss_difference_nats=bootstrap.estimate(bootstrap.difference, trial.losses, self.baseline.losses),
            **{"remedy": None, "blocks": None, **facts},
        )
        return damage, trial

    def activations(
        self, kind: str, scheme: Scheme, *, block: int | None = None, remedy: str | None = None, also: tuple = ()
    ) -> tuple[Damage, Trial]:
        """Activations of one kind quantised, in one block or all. also: functions that open further contexts."""
        scales = "dynamic" if scheme.static is None else "static"
        name = f"{kind} int{scheme.bits} per {scheme.granularity} {scales}"
        name += f" block {block}" if block else ""
        name += f" + {remedy}" if remedy else ""
        return self.row(
            name,
            lambda: (self.context(kind, scheme, None if block is None else {block}), *(make() for make in also)),
            kind=kind,
            bits=scheme.bits,
            granularity=scheme.granularity,
            scales=scales,
            remedy=remedy,
            blocks=None if block is None else [block],
        )

    def context(self, kind: str, scheme: Scheme, blocks: set[int] | None):
        if kind == "kv":
            return quantised_kv(self.bench.accessed, scheme, blocks)
        return quantised_inputs(self.bench.accessed, self.sites(kind, blocks), scheme)

    def sites(self, kind: str, blocks: set[int] | None = None):
        return [site for site in self.calibration.sites[kind] if blocks is None or site.block in blocks]

    def blocks(self, kind: str) -> list[int]:
        if kind == "kv":
            return [sites.block for sites in self.bench.accessed.attending]
        return sorted({site.block for site in self.calibration.sites[kind]})


def quantisation(bench: Bench, held_out: Tensor, *, thorough: bool = False) -> Quantisation:
    """Perplexity under simulated quantisation: by site kind, by block of the worst kind, and with remedies.

    thorough: also int4 and static scales of every site kind, not of the worst alone.
    """
    calibration = calibrate(bench, held_out)
    baseline = bench.loss("baseline", tuple)
    table = _Table(bench, calibration, baseline, total=0)
    kinds = [kind for kind in KINDS if kind == "kv" or calibration.sites[kind]]
    further = len(_further(calibration)) * (len(kinds) if thorough else 1)
    table.total = 2 * len(kinds) + further + N_WEIGHTS + N_REMEDIES + bench.accessed.n_layers
    sites = [table.activations(kind, Scheme(granularity="tensor")) for kind in kinds]
    worst, (_, broken) = max(
        zip(kinds, sites, strict=True), key=lambda pair: (pair[0] != "kv", pair[1][0].loss_difference_nats.value)
    )
    sites += [table.activations(kind, Scheme(granularity="token")) for kind in kinds]
    for kind in kinds if thorough else [worst]:
        sites += [table.activations(kind, scheme) for scheme in _further(calibration)]
    rows = [damage for damage, _ in sites] + _weights(table)
    blocks = [table.activations(worst, Scheme(), block=block)[0] for block in table.blocks(worst)]
    worst_blocks = _worst_blocks(blocks, broken, baseline)
    remedies = _remedies(table, worst, worst_blocks)
    return Quantisation(
        weights_note=_weights_note(bench),
        baseline=bootstrap.estimate(bootstrap.perplexity, baseline.loss_sums, baseline.predictions),
        sites=rows,
        blocks=blocks,
        worst_kind=worst,
        worst_blocks=worst_blocks,
        remedies=[damage for damage, _ in remedies.values()],
        spike_share=_spike_share(broken, remedies, baseline),
        rotation_error=_rotation_error(table, worst),
        skipped=[f"{kind}: the model has no such single linear map" for kind in KINDS if kind not in kinds],
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
                lambda bits=bits, granularity=granularity: (quantised_weights(sites, bits, granularity),),
                kind="weights",
                bits=bits,
                granularity=granularity,
                scales="weights",
            )[0]
        )
    return rows


def _worst_blocks(blocks: list[Damage], broken: Trial, baseline: Trial) -> list[int]:
    """Blocks that alone do a notable share of the damage, the worst first."""
    whole = float(bootstrap.difference(broken.losses, baseline.losses))
    found = [
        row
        for row in blocks
        if row.loss_difference_nats.low > 0 and row.loss_difference_nats.value >= WORST_BLOCK_MIN * whole > 0
    ]
    found.sort(key=lambda row: -row.loss_difference_nats.value)
    return [block for row in found for block in row.blocks or []]


def _remedies(table: _Table, kind: str, worst_blocks: list[int]) -> dict[str, tuple[Damage, Trial]]:
    """What mends int8 per tensor at the worst site kind."""
    plain = Scheme()
    accessed, found, calibration = table.bench.accessed, table.bench.found, table.calibration
    rows: dict[str, tuple[Damage, Trial]] = {}
    if worst_blocks:
        others = set(table.blocks(kind)) - set(worst_blocks)
        rows["worst blocks kept"] = table.row(
            f"{kind} int8 per tensor dynamic + worst blocks kept",
            lambda: (table.context(kind, plain, others),),
            kind=kind, bits=8, granularity="tensor", scales="dynamic", remedy="worst blocks kept",
            blocks=sorted(others),
        )  # fmt: skip
    if calibration.spikes is not None:
        spared = replace(plain, spared_tokens=calibration.spikes)
        rows["spike tokens kept"] = table.activations(kind, spared, remedy="spike tokens kept")
        rows["spike tokens frozen"] = table.activations(
            kind, spared, remedy="spike tokens frozen", also=(lambda: freeze_spikes(accessed, found),)
        )
    if kind != "kv":
        channels = {site.name: calibration.ranges.worst(site.name, WORST_CHANNELS) for site in table.sites(kind)}
        kept = replace(plain, spared_channels=channels)
        remedy = f"{WORST_CHANNELS} worst channels kept"
        rows[remedy] = table.activations(kind, kept, remedy=remedy)
        rows["Hadamard rotation"] = table.row(
            f"{kind} int8 per tensor dynamic + Hadamard rotation",
            lambda: (rotated_inputs(accessed, table.sites(kind), plain),),
            kind=kind, bits=8, granularity="tensor", scales="dynamic", remedy="Hadamard rotation",
        )  # fmt: skip
    damage, trial = table.activations(kind, replace(plain, granularity="token"))
    rows["per token"] = (damage.model_copy(update={"remedy": "per token"}), trial)
    return rows


def _spike_share(broken: Trial, remedies: dict[str, tuple[Damage, Trial]], baseline: Trial) -> Estimate | None:
    """Share of the damage, in nats, that is gone when spike tokens are kept in high precision."""
    if "spike tokens kept" not in remedies:
        return None

    def gone(damaged: np.ndarray, mended: np.ndarray, plain: np.ndarray, axis: int = -1) -> np.ndarray:
        return (damaged - mended).mean(axis) / (damaged - plain).mean(axis)

    kept = remedies["spike tokens kept"][1]
    return bootstrap.estimate(gone, broken.losses, kept.losses, baseline.losses)


def _rotation_error(table: _Table, kind: str) -> float | None:
    """Largest difference of logits that the rotation alone makes, relative to the largest logit."""
    if kind == "kv":
        return None
    accessed, batch = table.bench.accessed, full_batch(table.bench.ids[:ROTATION_SEQUENCES])
    with observing(accessed, []):
        plain = run(accessed, batch).double()
        with rotated_inputs(accessed, table.sites(kind), None):
            rotated = run(accessed, batch).double()
    return float((rotated - plain).abs().max() / plain.abs().max())


def _weights_note(bench: Bench) -> str | None:
    already = bench.accessed.provenance.get("gguf_quantisation")
    if not already:
        return None
    return f"The weights come from {already}: they were quantised before, and every figure here is on top of that."
