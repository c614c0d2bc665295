"""Remedies as they are deployed: a prefix, smoothing and rotation in the weights; what int8 per tensor then costs."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.access.linears import LinearSite, find_linears, missing_linears
from spikesink.analyse.evaluation import HELD_OUT_SPIKES, Evaluator
from spikesink.analyse.passes import stream
from spikesink.analyse.quantisation import InputRanges
from spikesink.errors import DoesNotApplyError
from spikesink.intervene.fold import rotated, smoothed
from spikesink.intervene.prefix import arrays_of, prefix_states, prefixed, shares_first, spared_prefix
from spikesink.intervene.quantise import Scheme, quantised_inputs
from spikesink.measure.states import SpikeStates
from spikesink.records.deployment import PREFIX, SMOOTHING, Damage, Remedies

STAGE = "remedies"
LONGEST = 4
"""Tokens of a prefix at most."""
ENOUGH = 0.05
"""Spike tokens per sequence of a text that need no longer prefix."""
ARRAYS = {True: "input_max", False: "input_max_without_spikes"}
"""Names of the largest magnitudes that enter each linear map, before a dot and its name; by whether spikes count."""

Arrays = dict[str, np.ndarray]
Context = Callable[[], AbstractContextManager]


def remedies(evaluator: Evaluator, held_out: Tensor) -> tuple[Remedies, Arrays]:
    """What enters every linear map in int8, one scale per tensor, with each remedy; and what exports need.

    Scales are dynamic, or static from the held-out sequences under the same remedy. Arrays: the prefix's keys and
    values, and the largest magnitudes (channel,) that enter each linear map, with spike tokens and without.
    """
    accessed = evaluator.accessed
    linears = find_linears(accessed)
    if not linears:
        reason = "the model has no linear maps that are known by name"
        return Remedies(applicable=False, reason=reason), {}
    ranges = InputRanges(evaluator.spike_tokens(held_out, HELD_OUT_SPIKES))
    ranges.fill(accessed, linears, held_out, evaluator.batch_size)
    arrays = {
        f"{ARRAYS[counted]}.{name}": largest.numpy()
        for counted, each in ((True, ranges.all), (False, ranges.unmarked))
        for name, largest in each.largest.items()
    }
    table = _Rows(evaluator, held_out, linears)
    facts, ids = _prefix(evaluator, held_out)
    skipped = [facts.pop("missing")] if "missing" in facts else []
    table.add(None, nullcontext)
    if ids:
        arrays |= arrays_of(prefix_states(accessed, ids))
        table.add(PREFIX, lambda text: prefixed(accessed, ids, text), ids)
    for name, fold in (
        (SMOOTHING, lambda _: smoothed(accessed, ranges.all.largest)),
        ("rotation", lambda _: rotated(accessed)),
    ):
        try:
            table.add(name, fold)
        except DoesNotApplyError as reason:
            skipped.append(f"{name}: {reason}")
    missing = missing_linears(accessed, linears)
    return Remedies(rows=table.rows, skipped=skipped, missing=missing, **facts), arrays


def stored_largest(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """By name the largest magnitude (channel,) that enters each linear map, from the arrays of `remedies`."""
    start = f"{ARRAYS[True]}."
    return {name.removeprefix(start): torch.from_numpy(each) for name, each in arrays.items() if name.startswith(start)}


class _Rows:
    """Int8 of every linear map's input under one remedy after another."""

    def __init__(self, evaluator: Evaluator, held_out: Tensor, linears: list[LinearSite]) -> None:
        self.evaluator, self.held_out, self.linears = evaluator, held_out, linears
        self.baseline = evaluator.baseline_loss()
        self.rows: list[Damage] = []

    def add(
        self, remedy: str | None, context: Callable[[Tensor], AbstractContextManager], ids: tuple[int, ...] = ()
    ) -> None:
        """Dynamic and static scales; context: of a run on these ids; ids: a prefix, never rounded and in no scale."""
        spared = spared_prefix(self.evaluator.ids.shape, ids) if ids else None
        kept = spared_prefix(self.held_out.shape, ids) if ids else None
        accessed, batch_size = self.evaluator.accessed, self.evaluator.batch_size
        held_out = partial(context, self.held_out)
        for scales in ("dynamic", "static"):
            largest = None
            if scales == "static":
                largest = largest_inputs(accessed, self.linears, self.held_out, kept, held_out, batch_size)
            scheme = Scheme(static=largest, spared_tokens=spared)
            name = f"inputs int8 per tensor {scales}" + (f" + {remedy}" if remedy else "")
            quantised = quantised_inputs(accessed, self.linears, scheme)
            result = self.evaluator.loss(f"{STAGE}/{name}", context(self.evaluator.ids), quantised)
            self.rows.append(
                Damage(
                    name=name, kind="all", bits=8, granularity="tensor", scales=scales, remedy=remedy, blocks=None,
                    perplexity=result.perplexity, loss_difference_nats=result.cost(self.baseline),
                )
            )  # fmt: skip


def largest_inputs(
    accessed: AccessedModel,
    linears: list[LinearSite],
    ids: Tensor,
    left_out: Tensor | None = None,
    context: Context = nullcontext,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """By name the largest magnitude (channel,) that enters each linear map, of all tokens that are not marked."""
    ranges = InputRanges(left_out)
    with context():
        ranges.fill(accessed, linears, ids, batch_size)
    return ranges.unmarked.largest


def _spikes_behind(evaluator: Evaluator, ids: Tensor, prefix: tuple[int, ...]) -> Tensor:
    """Which tokens of these sequences spike behind a prefix, (sequence, token) bool; none that is part of it."""
    targets = evaluator.targets
    states = SpikeStates(targets.edit_block, targets.is_spike)
    with prefixed(evaluator.accessed, prefix, ids):
        stream(evaluator.accessed, ids, [states], batch_size=evaluator.batch_size)
    spikes = torch.cat(states.spikes)[:, len(prefix) :]
    return torch.nn.functional.pad(spikes, (int(shares_first(ids, prefix)), 0))


def _prefix(evaluator: Evaluator, held_out: Tensor) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The shortest prefix behind which the held-out text spikes no more, and what it does to the evaluated one."""
    if not evaluator.targets.has_spikes:
        return {"missing": "prefix: the model has no spikes"}, ()
    try:
        chosen = choose_prefix(evaluator, held_out)
        after = _spikes_behind(evaluator, evaluator.ids, chosen)
    except DoesNotApplyError as reason:
        return {"missing": f"prefix: {reason}"}, ()
    before = evaluator.spike_tokens()
    assert before is not None, "a model with spikes"
    alone = evaluator.loss(f"{STAGE}/prefix", prefixed(evaluator.accessed, chosen, evaluator.ids))
    baseline = evaluator.baseline_loss()
    return {
        "prefix_ids": list(chosen),
        "prefix_text": [evaluator.accessed.token_text(token) for token in chosen],
        "prefix_alone_nats": alone.cost(baseline),
        "spike_tokens": float(before.sum(1).float().mean()),
        "spike_tokens_behind_prefix": float(after.sum(1).float().mean()),
        "first_token_spikes": float(before[:, 0].float().mean()),
        "first_token_spikes_behind_prefix": float(after[:, 0].float().mean()),
    }, chosen


def choose_prefix(evaluator: Evaluator, ids: Tensor) -> tuple[int, ...]:
    """Token ids: first BOS, or the most frequent spike token; then, while text spikes, its most frequent one.

    Raises DoesNotApplyError where the model has no room for one.
    """
    bos = getattr(evaluator.accessed.tokenizer, "bos_token_id", None)
    spikes = evaluator.spike_tokens(ids, HELD_OUT_SPIKES)
    assert spikes is not None, "a model with spikes"
    chosen = (int(bos) if bos is not None else Counter(ids[spikes].tolist()).most_common(1)[0][0],)
    spikes = _spikes_behind(evaluator, ids, chosen)
    while float(spikes.sum(1).float().mean()) > ENOUGH and len(chosen) < LONGEST:
        longer = (*chosen, Counter(ids[spikes].tolist()).most_common(1)[0][0])
        try:
            fewer = _spikes_behind(evaluator, ids, longer)
        except DoesNotApplyError:  # no positions for one more
            break
        if fewer.sum() >= spikes.sum():
            break
        chosen, spikes = longer, fewer
    return chosen
