"""The answer: every number in it is the record's, and what was not measured is said with the command that adds it."""

import numpy as np
import pytest
from made import anatomy, interventions, training

from spikesink.records.advice import advice, formats_within
from spikesink.records.deployment import BlockDamage, Budget, FormatDamage, Formats, MeasureSet
from spikesink.records.intervals import Estimate
from spikesink.report.answer import answer
from spikesink.report.format import blocks, listed, number, percent, signed
from spikesink.report.runs import Model


def answers(**records):
    return {statement.heading: statement for statement in answer(Model("made/model", **records))}


def test_everything_measured():
    said = answers(anatomy=anatomy(), interventions=interventions())
    assert list(said) == ["What to do", "Spikes", "Sinks", "What breaks without them"]
    spikes = said["Spikes"].text
    assert "500 in channel 5 after block 2 (layer 0, FFN), 1,234 × the median" in spikes
    assert "1 channel (5) and 3 tokens spike: the first token of 2 of 4 sequences and 1 later one (“⏎”)." in spikes
    assert spikes.endswith("Block 2 (layer 0, FFN) makes them; block 6 (layer 2, FFN) takes them away.")
    assert said["Sinks"].text.startswith(
        "3 of 6 heads sink (sink ratio 50 %, sun2026, ε = 0.3); 2 of them mostly on the first"
    )
    assert "2 of 3 spike tokens are among the 5 sink tokens; without first tokens, 0 of 1." in said["Sinks"].text
    breaks = said["What breaks without them"].text
    assert "takes the perplexity from 12.5 to 2.9 million" in breaks
    assert "costs -0.0005 [-0.011, +0.0095] nats" in breaks
    assert "as it must" not in breaks
    alike = interventions()
    asked = alike.dissociation.constant_suffices.model_copy(update={"answer": "not applicable"})
    alike = alike.model_copy(
        update={"dissociation": alike.dissociation.model_copy(update={"constant_suffices": asked})}
    )
    breaks = answers(anatomy=anatomy(), interventions=alike)["What breaks without them"].text
    assert "nats, as it must, since most are the same token behind the same ones; masking" in breaks
    assert "masking the sink keys costs +1.25 [+1.24, +1.26] nats" in breaks
    assert breaks.endswith("Sinks go with the spikes, spikes stay without sinks.")
    line = "spikesink intervene made/model --which formats,remedies"
    unmeasured = f"Not measured: formats and remedies; {line} measures that."
    assert said["What to do"].points == ("Keep block 2 in high precision.", unmeasured)
    assert said["What to do"].command == line
    assert all(statement.measured for statement in said.values())


def test_the_key_that_sinks_take_is_counted():
    record = anatomy()
    record.arrays["key_importance"][:, 1, 0] = 0.0
    record.arrays["key_importance"][:, 1, 2] = 0.9
    assert "none of them mostly on the first token; most often on position 2" in answers(anatomy=record)["Sinks"].text


def test_a_mixer_is_not_called_attention():
    """A hybrid model whose first block, a recurrence, makes the spikes."""
    record = anatomy()
    cycles = [
        cycle.model_copy(update={"kind": "mixer"}) if cycle.block == 1 else cycle for cycle in record.lifecycle.blocks
    ]
    update = {
        "lifecycle": record.lifecycle.model_copy(update={"blocks": cycles}),
        "summary": record.summary.model_copy(update={"step_up_blocks": [1], "spike_block": 1}),
    }
    text = answers(anatomy=record.model_copy(update=update))["Spikes"].text
    assert "after block 1 (layer 0, mixer)" in text and "Block 1 (layer 0, mixer) makes them" in text
    assert record.placed(3) == "3 (layer 1, attention)" and record.placed(99) == "99 (layer 49, attention)"


def test_a_verdict_of_no():
    said = answers(anatomy=anatomy(spikes=False, sinks=False, measures=()))
    assert said["Spikes"].text.startswith("No spikes. The largest magnitude is 500 in channel 5")
    assert "At most it is 8.5 × the median and 7.25 × its own token's median" in said["Spikes"].text
    assert "a spike needs 20 × and 11 × after one block" in said["Spikes"].text
    assert said["Sinks"].text.startswith("No sinks.")


def test_the_cache_keeps_what_heads_sink_on():
    """Of three sink heads one is on key 1; with a second one there, and the third on key 2, none is on the first."""
    record = anatomy(name="org/name")
    record.arrays["key_importance"][0, 1] = record.arrays["key_importance"][1, 1]
    record.arrays["key_importance"][2, 1] = [0.1, 0.1, 0.7, *[0.01] * 3]
    said = answers(anatomy=record)
    assert "none of them mostly on the first token; most often on position 1" in said["Sinks"].text
    line = "spikesink intervene org/name --which kv_cache"
    assert said["What to do"].points[-1] == (
        "Keep positions 0 to 2 in the KV cache, not the first token alone: heads sink mostly on positions 1 (2 heads) "
        f"and 2 (1 head). {line} measures how many."
    )
    assert said["What to do"].command == line


def test_what_was_not_measured_names_its_command():
    said = answers(anatomy=anatomy(name="org/name", measures=()))
    assert not said["What breaks without them"].measured
    assert "spikesink intervene org/name adds it" in said["What breaks without them"].text
    alone = answers(interventions=interventions())
    assert list(alone) == ["What to do", "Spikes and sinks", "What breaks without them"]
    assert "spikesink scan made/model adds it" in alone["Spikes and sinks"].text
    nothing = interventions(parts=False)
    some = answers(interventions=nothing)
    unmeasured = (
        "Not measured: quantisation, kv_cache, formats and remedies; "
        "spikesink intervene made/model --which quantisation,kv_cache,formats,remedies measures that."
    )
    assert list(some)[-1] == "What to do" and some["What to do"].points[-1] == unmeasured
    # What a scan says of it is not lost beside interventions that say nothing of it.
    scanned = answers(anatomy=anatomy(measures=()))["What to do"].points
    both = answers(anatomy=anatomy(measures=()), interventions=nothing)
    assert list(both)[-1] == "What to do" and both["What to do"].points == (*scanned, unmeasured)


def a_format(kind, name, cost, high, worst=None):
    """worst: by block, what it costs alone."""
    return FormatDamage(
        name=name, kind=kind, element="e4m3", scales="tensor", static=False, spike_share=None, lost=0.0,
        lost_without_spikes=None, scanned=bool(worst),
        perplexity=Estimate(value=9.0, low=8.0, high=10.0),
        loss_difference_nats=Estimate(value=cost, low=cost - 0.1, high=high),
        worst_blocks=[
            BlockDamage(block=block, loss_difference_nats=Estimate(value=alone, low=0.01, high=0.9))
            for block, alone in (worst or {}).items()
        ],
    )  # fmt: skip


def test_formats_alone_say_what_can_be_served():
    """One within, one whose mean is within but not its interval, one far over with blocks that stand out; no weights
    within."""
    formats = Formats(
        rows=[
            a_format("inputs", "coarse", 0.5, 0.6, worst={24: 0.3, 4: 0.1, 6: 0.09}),
            a_format("inputs", "vague", 0.04, 0.07),
            a_format("inputs", "dear", 0.03, 0.05),
            a_format("inputs", "fine", 0.01, 0.02),
            a_format("weights", "tiny", 0.3, 0.31),
        ]
    )
    assert formats_within(formats, None) == {"inputs": ["fine", "dear"], "weights": []}
    budget = Budget(nats=0.02, deployed="")
    assert formats_within(formats, budget) == {"inputs": ["fine"], "weights": []}
    bare = interventions(parts=False)
    record = bare.model_copy(
        update={
            "formats": formats,
            "recommendation": bare.recommendation.model_copy(
                update={"text": " ".join(advice(True, bare.quantisation, bare.kv_cache, formats=formats)), "blocks": []}
            ),
        }
    )
    *said, unmeasured = answers(interventions=record)["What to do"].points
    assert said == [
        "What enters linear maps costs at most 0.05 nats (upper end) in fine (+0.010), dear (+0.030); more in vague "
        "(+0.040), coarse (+0.500; leave out first: 24 (layer 11, FFN) +0.300, 4 (layer 1, FFN) +0.100).",
        "Weights cost at most 0.05 nats (upper end) in no format; more in tiny (+0.300).",
    ]
    assert unmeasured.startswith("Not measured: quantisation, kv_cache and remedies; ")


def test_within_a_budget_no_other_layers_are_named():
    record = interventions()
    few = MeasureSet(
        measures=["smoothing"], ignored=[], blocks=[], within=True,
        perplexity=Estimate(value=9.0, low=8.0, high=10.0),
        loss_difference_nats=Estimate(value=0.01, low=0.0, high=0.02),
    )  # fmt: skip
    for chosen, named in ((None, True), (few, False)):
        budget = Budget(nats=0.05, deployed="", tried=[few], chosen=chosen)
        advised = record.recommendation.model_copy(update={"modules": ["a.down_proj"], "budget": budget})
        said = answers(interventions=record.model_copy(update={"recommendation": advised}))["What to do"].points
        assert any(point.startswith("Keep in high precision: a.down_proj") for point in said) is named


def test_a_training_run_says_how_it_ended():
    said = answers(training=training())
    assert list(said) == ["Training"]
    assert "999 parameters, 90 steps, 9,000 tokens; held-out loss 1.600 nats." in said["Training"].text
    assert "largest magnitude 300." in said["Training"].text
    both = answers(anatomy=anatomy(), training=training())
    assert list(both)[-1] == "Training" and "spikesink scan RUN/model" not in both["Training"].text


def test_no_block_named_where_the_rule_does_not_apply():
    record = anatomy()
    rule = record.lifecycle.step_rule.model_copy(update={"applies": False, "reason": "post-norm: writes do not add up"})
    changed = record.model_copy(update={"lifecycle": record.lifecycle.model_copy(update={"step_rule": rule})})
    assert "not named: post-norm: writes do not add up" in answers(anatomy=changed)["Spikes"].text


@pytest.mark.parametrize(
    ("value", "text"),
    [(26671.3, "26,671"), (2913173.6, "2.91 million"), (0.0, "0"), (0.0474, "0.0474"), (None, "–"), (4e-6, "4e-06"),
     (12.345, "12.3"), (3.2e12, "3.2e+12"), (999.6, "1,000"), (999.6e6, "1e+09"), (999.4e6, "999 million")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_small_words():
    assert [percent(x) for x in (0.75, 0.7521, 0.0, 1.0, 0.99984, 0.00012, None)] == [
        "75 %", "75.2 %", "0 %", "100 %", "99.98 %", "0.012 %", "–"
    ]  # fmt: skip
    assert (signed(11.344), signed(-0.00046), signed(0.1), signed(0.0997)) == ("+11.34", "-0.0005", "+0.10", "+0.10")
    assert listed([1, 2, 3]) == "1, 2 and 3" and listed([1]) == "1" and listed(list(range(9)), 2) == "0, 1 and 7 more"
    assert blocks([24]) == "block 24 (layer 11, FFN)"
    assert blocks([57, 60]) == "blocks 57 (layer 28, attention) and 60 (layer 29, FFN)"
    assert blocks([]) == "no single block"
    assert [number(x, 2) for x in (131.4, 99.6, 12.34, 0.00104)] == ["131", "100", "12", "0.001"]
    assert number(float(np.float32(1.5))) == "1.5"
