"""A scan with BOS and one without it on the same text: what the BOS token, rather than the first place, does."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from spikesink.analyse.passes import no_progress, stream
from spikesink.analyse.scan import accessed_model, scan
from spikesink.data.tokens import Tokens
from spikesink.errors import InputError
from spikesink.measure.perplexity import LossMeasure
from spikesink.measure.statistics import bootstrap_mean
from spikesink.records import Anatomy, Timing
from spikesink.records.scan import BosPair, BosSide

MOSTLY = 0.9
"""Share of sequences whose first token spikes, or of sink heads whose largest key is the first, from which the place is
named."""


def scan_bos_pair(model: Any, tokens: Tokens, **options: Any) -> tuple[Anatomy, Anatomy, BosPair]:
    """The record with BOS, the one without it, and their comparison.

    tokens: with a BOS in front of every sequence (`tokenise(..., bos="always")`), at least three long; without it the
    sequences are one shorter and otherwise the same. options: those of `scan`. Raises InputError.
    """
    if not tokens.bos_added or tokens.ids.shape[1] < 3:
        raise InputError(
            f"A comparison with and without BOS needs sequences of at least 3 tokens that begin with BOS; got "
            f"{tokens.ids.shape[1]} tokens, BOS {'in front' if tokens.bos_added else 'not in front of all of them'}. "
            "Make them with tokenise(..., bos='always')."
        )
    accessed = accessed_model(model)
    bare = replace(tokens, ids=np.ascontiguousarray(tokens.ids[:, 1:]), bos="never", bos_added=False)
    records = scan(accessed, replace(tokens, bos="always"), **options), scan(accessed, bare, **options)
    # BOS predicts the first token of the text, which nothing does without it.
    losses = LossMeasure(skip=1)
    stream(
        accessed, torch.from_numpy(np.require(tokens.ids, np.int64, ["C", "W"])), [losses],
        batch_size=options.get("batch_size"), stage="paired losses", progress=options.get("progress", no_progress),
    )  # fmt: skip
    differences = records[1].arrays["sequence_loss_nats"] - np.array(losses.sequence_losses())
    with_bos, without = sides = [_side(record) for record in records]
    spikes_first = all(side.first_spikes is not None and side.first_spikes >= MOSTLY for side in sides)
    sinks_first = min(_first_sinks(record) for record in records) >= MOSTLY
    spikes = _goes("Spikes", with_bos.has_spikes, without.has_spikes, first=spikes_first)
    sinks = _goes("Sinks", with_bos.has_sinks, without.has_sinks, first=sinks_first)
    pair = BosPair(
        with_bos=with_bos,
        without_bos=without,
        loss_difference_nats=bootstrap_mean(differences),
        sentence=f"{spikes} {sinks}",
        provenance=records[0].provenance,
        timing=Timing.now(total_s=sum(record.timing.total_s for record in records)),
    )
    return *records, pair


def _side(record: Anatomy) -> BosSide:
    summary, sequences = record.summary, record.provenance.tokens["sequences"]
    firsts = sum(token.position == 0 for token in summary.spike_tokens)
    listed = len(summary.spike_tokens) == record.spikes.token_count
    share = record.spikes.token_count / (sequences * record.provenance.tokens["seq_len"])
    return BosSide(
        perplexity=summary.perplexity,
        spike=summary.spike,
        max_over_median=summary.max_over_median,
        has_spikes=summary.has_spikes,
        spike_channels=summary.spike_channels,
        spike_token_share=share,
        first_spikes=firsts / sequences if listed else None,
        sink_ratio=summary.sink_ratio,
        has_sinks=summary.has_sinks,
        first_key_importance=record.sinks.first_key_importance,
    )


def _first_sinks(record: Anatomy) -> float:
    """Share of sink heads whose first key gets nearly all that the largest gets (on average over sequences)."""
    heads = [head for head in record.sinks.heads if head.is_sink]
    first = sum(head.first_key_importance >= 0.9 * head.max_importance for head in heads)
    return first / len(heads) if heads else 0.0


def _goes(what: str, with_bos: bool, without: bool, *, first: bool) -> str:
    """first: in both conditions they are at the first token."""
    if with_bos and without:
        place = ": the first place makes them, whatever token stands there" if first else ""
        return f"{what} are there with BOS and without it{place}."
    if with_bos or without:
        return f"{what} are there only {'with' if with_bos else 'without'} BOS."
    return f"{what} are there neither with BOS nor without it."
