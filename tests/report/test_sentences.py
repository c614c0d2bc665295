"""The sentences of the anatomy follow from what the record says, and change with it."""

import pytest
from made import anatomy, interventions

from spikesink.records.intervals import Interval
from spikesink.records.sections.geometry import KeyPart, KeyRank
from spikesink.records.sections.heads import LossTest, Modulation
from spikesink.records.sections.properties import OverlapAtShare
from spikesink.records.sections.trigger import AttentionAblation, AttentionAblationRow
from spikesink.report.amplifier import amplifier_part
from spikesink.report.build import record_document
from spikesink.report.geometry import geometry_part
from spikesink.report.heads import heads_part
from spikesink.report.interventions import interventions_part
from spikesink.report.kv_cache import kv_cache_part
from spikesink.report.normalisation import normalisation_part
from spikesink.report.properties import properties_part
from spikesink.report.trigger import trigger_part

RECORD = anatomy()


def changed(section, **fields):
    return getattr(RECORD, section).model_copy(update=fields)


def said(part, label):
    """Value and note of a figure of merit."""
    (merit,) = [merit for merit in part.merits if merit.label == label]
    return merit.text, merit.note


def ablation(shares, free_from):
    """Attention left out from block 1, 3 and 5 on, then block 1 alone."""
    rows = [(1, 5), (3, 5), (5, 5), (1, 1)]
    return AttentionAblation(
        block=6, threshold=100.0, items=256, spiking_share=1.0, kept_min=0.9, free_from=free_from,
        rows=[AttentionAblationRow(first_block=first, last_block=last, spiking_share=share)
              for (first, last), share in zip(rows, shares, strict=True)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "free", "ends"),
    [
        ((0.95, 0.97, 1.0, 1.0), 1, "(layer 2, FFN) 95 % do: attention is not what makes them spike."),
        (
            (0.11, 0.96, 1.0, 0.99),
            3,
            "without those from block 3 (layer 1, attention) on 96 %, without block 1 (layer 0, attention) alone 99 %: "
            "attention is needed, but not from there on.",
        ),
        ((0.11, 0.2, 0.4, 0.3), None, "alone 30 %: attention is needed, to the last block before."),
    ],
)
def test_whether_attention_makes_them_spike(shares, free, ends):
    note = trigger_part(RECORD, changed("trigger", attention_ablation=ablation(shares, free))).note
    assert note.startswith("Of 256 items alone at position 0, 100 % spike; without any attention write before block 6")
    assert ends in note


def test_from_items_that_do_not_spike_nothing_follows_about_attention():
    none = ablation((0.05, 0.0, 0.0, 0.0), 1).model_copy(update={"spiking_share": 0.0})
    note = trigger_part(RECORD, changed("trigger", attention_ablation=none)).note
    assert note.startswith("None of 256 items alone at position 0 spikes, so leaving attention out says nothing.")


@pytest.mark.parametrize(("count", "words"), [(1, "3.1."), (7, "3.1; the first 1 are listed.")])
def test_that_not_all_exceptions_are_listed_is_said_where_it_is_so(count, words):
    probe = RECORD.trigger.probe.model_copy(update={"exception_count": count})
    tables = trigger_part(RECORD, changed("trigger", probe=probe)).tables
    assert next(table for table in tables if table.caption.startswith("Items that do not spike")).note.endswith(words)


@pytest.mark.parametrize(
    ("begin", "words"), [(4, "all begin with BOS"), (0, "none begin with BOS"), (3, "3 of 4 begin with BOS")]
)
def test_what_given_ids_begin_with_is_on_the_page(begin, words):
    tokens = {**RECORD.provenance.tokens, "bos": "as given", "begin_with_bos": begin}
    record = RECORD.model_copy(update={"provenance": RECORD.provenance.model_copy(update={"tokens": tokens})})
    assert f", {words}," in record_document(record).lead


def test_which_kind_of_block_turns_the_first_token():
    """Attention 0.1 to 0.2 and 0.5 to 0.4; the FFN between them 0.2 to 0.5."""
    block = RECORD.trigger.first_token_map.blocks[0]
    ends = ((1, 0.1, 0.2), (3, 0.5, 0.4))
    blocks = [
        block.model_copy(update={"block": at, "before_first": before, "after_first": after})
        for at, before, after in ends
    ]
    first = RECORD.trigger.first_token_map.model_copy(update={"blocks": blocks})
    note = trigger_part(RECORD, changed("trigger", first_token_map=first)).note
    assert "attention blocks change the first token's |cos| with s* by +0.000 in all, FFN blocks by +0.300." in note
    refused = trigger_part(RECORD, changed("trigger", attention_ablation_reason="made so")).note
    assert "Leaving attention out does not apply: made so." in refused


def test_keys_as_sums_of_columns_and_ranks_of_first_and_later_sinks():
    parts = [
        KeyPart(
            block=block, n=9, channels=[channel, 1, 2], explained=[0.5, 0.6, 0.8], n_other=7,
            explained_other=[0.3, 0.4, 0.7],
        )
        for block, channel in ((3, 5), (5, 5), (7, 2))
    ]  # fmt: skip
    ranks = {name: KeyRank(n=n, rank=rank, rank_other=4.0) for name, n, rank in (("first", 4, 1.25), ("later", 3, 3.5))}
    keys = [key.model_copy(update=ranks) for key in RECORD.geometry.keys]
    part = geometry_part(RECORD, changed("geometry", key_parts=parts, keys=keys))
    assert said(part, "keys explained") == (
        "80 %",
        "of spike tokens' key energy by 3 columns of W_K, 50 % by one (channel 5 in 2 of 3 blocks); other keys, by "
        "their own: 70 %, 30 %",
    )
    assert said(part, "rank of sink keys of first tokens")[0] == "1.25"
    assert said(part, "rank of sink keys of later tokens") == (
        "3.5", "median over KV heads, 3 keys; as many other keys 4"
    )  # fmt: skip


def test_what_a_sinks_mass_goes_with_inside_a_head_and_what_it_does_to_the_loss():
    def interval(value, low, high, n=24):
        return Interval(value=value, low=low, high=high, n=n)

    within = Modulation(other="write", mean=interval(-0.66, -0.79, -0.54, 220), negative_share=0.95)
    loss = LossTest(
        heads=24, tokens=768, sequences=64, sink_nats=interval(0.0016, 0.001, 0.002),
        control_nats=interval(0.0005, 0.0001, 0.001), sink_rejected=10, control_rejected=1,
        difference_nats=interval(0.0011, -0.0001, 0.002), difference_p_value=0.07, alpha=0.05,
    )  # fmt: skip
    part = heads_part(RECORD, changed("heads", modulation=[within], loss_test=loss))
    assert said(part, "sink mass and the norm of the write within heads") == (
        "-0.66 [-0.79, -0.54]",
        "mean correlation over queries at one position; negative in 95 % of 220 heads",
    )
    text, note = said(part, "without a head's sink part")
    assert text == "+0.0016 [+0.001, +0.002] nats"
    assert note.endswith(
        "24 heads, 768 tokens; differs from 0 in 10 of them (Holm); a random direction 0.0005 [0.0001, 0.001], 1"
    )
    assert said(part, "more than a random part")[1] == "sink less random, over 64 sequences; p = 0.07"


def test_a_constant_vector_has_its_two_controls():
    implicit = RECORD.normalisation.implicit.model_copy(
        update={"before_block": 1, "explained_spike_before": 0.85, "explained_spike_without_channels": 0.997}
    )
    part = normalisation_part(RECORD, changed("normalisation", implicit=implicit))
    text, note = said(part, "explained before they spike")
    assert text == "85 %" and note.endswith("they are mostly first tokens, alike by their place")
    assert said(part, "explained without the spike channels")[0] == "99.7 %"
    for distinct, told in ((1, True), (2, False)):
        some = implicit.model_copy(update={"distinct_spike_tokens": distinct})
        note = said(
            normalisation_part(RECORD, changed("normalisation", implicit=some)),
            "explained by the mean of other prompts",
        )[1]
        assert ("of which a constant says nothing" in note) == told


def test_a_shared_direction_has_its_control_with_an_interval():
    direction = RECORD.amplifier.directions[0].model_copy(
        update={"control": Interval(value=0.4, low=0.35, high=0.45, n=24)}
    )
    part = amplifier_part(RECORD, changed("amplifier", directions=[direction]))
    assert said(part, "shared direction in block 2 (layer 0, FFN)") == (
        "0.99", "mean |cos| between the s* of 2 channels; 24 random channels 0.4 [0.35, 0.45]"
    )  # fmt: skip


def test_properties_show_their_limits_and_the_curve_its_reason():
    first, *others = RECORD.properties.properties
    first = first.model_copy(
        update={
            "value": 0.224, "threshold": 0.25, "answer": "borderline", "sensitivity": [0.2, 0.3125],
            "interval": Interval(value=0.22, low=0.2, high=0.26, n=24),
        }
    )  # fmt: skip
    curve = [
        OverlapAtShare(heads_share=share, heads_min=heads, sinks=40, jaccard=0.5, recall=0.5, later_sinks=9,
                                later_jaccard=0.1)
        for share, heads in ((0.0, 1), (0.01, 3))
    ]  # fmt: skip
    table, *_, by_share = properties_part(
        RECORD, changed("properties", properties=[first, *others], overlap_curve=curve)
    ).tables
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["verdict"], row["over sequences"], row["threshold"]) == (
        "borderline", "0.22 [0.2, 0.26]", "0.25 (0.2, 0.312)"
    )  # fmt: skip
    assert {"verdict", "value", "threshold"} <= set(table.brief)
    assert [row[1] for row in by_share.rows] == ["one head", "1 %"]
    assert "Used elsewhere: 3 heads, 1 % of all: one odd head makes no sink token" in by_share.note


RULES = {"in_words": ["An answer that changes when one row is left out is undecided."]}


@pytest.mark.parametrize(
    ("answer", "sensitivity", "ends"),
    [
        ("yes", {}, "; the same with each limit moved and each row left out"),
        ("undecided", {}, "; undecided too with each limit moved and each row left out"),
        ("undecided", {"fell_max 0.6": "yes"}, "; yes with fell max 0.6"),
        ("not applicable", {}, "(rows: zero spikes)"),
    ],
)
def test_a_verdict_says_what_it_hangs_on(answer, sensitivity, ends):
    record = interventions()
    verdict = record.dissociation.sinks_need_spikes.model_copy(update={"answer": answer, "sensitivity": sensitivity})
    judged = record.dissociation.model_copy(update={"sinks_need_spikes": verdict, "rules": RULES})
    rows = interventions_part(record.model_copy(update={"dissociation": judged})).tables[0].rows
    assert rows[0][2].endswith(ends)
    assert "moved" not in rows[2][2]
    older = record.dissociation.model_copy(update={"sinks_need_spikes": verdict, "rules": {}})
    rows = interventions_part(record.model_copy(update={"dissociation": older})).tables[0].rows
    assert rows[0][2] == "because (rows: zero spikes)"


def test_reassigned_positions_are_named():
    record = interventions()
    row = record.kv_cache.table[-1]
    both = [*record.kv_cache.table, row.model_copy(update={"positions": "reassigned"})]
    part = kv_cache_part(record.model_copy(update={"kv_cache": record.kv_cache.model_copy(update={"table": both})}))
    assert [line[2] for line in part.tables[0].rows] == ["true"] * 6 + ["reassigned"]
    assert [bool(style) for style in part.tables[0].styles] == [False, True, False] * 2 + [False]
    assert {point["line"] for point in part.figures[0].rows} == {"window 16", "window 64", "window 64, reassigned"}
    refused = record.kv_cache.model_copy(update={"reassigned_reason": "made so"})
    note = kv_cache_part(record.model_copy(update={"kv_cache": refused})).note
    assert note == "Reassigned positions do not apply: made so."
