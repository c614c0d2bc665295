"""The whole of `dissociate`: on the embedded model the known facts, on a tiny one the shape of the record."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from naive import perplexity
from tiny import MARKED, VOCAB, spiking, tiny, token_ids

from spikesink.access import access
from spikesink.analyse.dissociation import _cannot_answer, dissociation_rows
from spikesink.analyse.dose import doses, judged, parse_dose
from spikesink.analyse.evaluation import Evaluator
from spikesink.analyse.finding import find
from spikesink.analyse.interventions import dissociate, parse_which, split
from spikesink.analyse.kv_cache import _note
from spikesink.analyse.resume import FinishedPasses
from spikesink.analyse.scan import scan
from spikesink.analyse.verdict import dissociation
from spikesink.bootstrap import estimate, share
from spikesink.cli.intervene import _long_tokens
from spikesink.cli.options import Text
from spikesink.data.tokens import Tokens
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene import INTERVENTIONS
from spikesink.measure.sinks import SinkCriteria
from spikesink.records.intervals import Estimate
from spikesink.records.interventions import Interventions
from spikesink.report.dose import dose_figure
from spikesink.report.interventions import intervention_figures


@pytest.fixture(scope="module")
def record(embedded, golden_ids):
    which = "zero_spikes,freeze_spikes,cut_amplifier,mask_sinks,drop_bos"
    return dissociate(embedded, golden_ids[:16], which=which, held_out=6, draws=1)


def rows(record):
    return {row.name: row for row in record.interventions}


@pytest.mark.embedded
def test_zeroing_ruins_and_one_constant_does(record):
    by_name = rows(record)
    base = by_name["baseline"].perplexity.value
    assert by_name["zero_spikes"].perplexity.value > 1e3 * base
    assert by_name["zero_spikes"].plateau_kept.value < 0.15
    assert abs(by_name["freeze_spikes"].perplexity.value / base - 1) < 0.03
    assert abs(by_name["freeze_spikes"].sink_ratio_kept.value - 1) < 0.03
    assert record.dissociation.constant_suffices.answer == "yes"


@pytest.mark.embedded
def test_the_amplifier_is_a_few_weights(record):
    by_name = rows(record)
    assert 1 <= record.found["amplifier_entries"] <= 20
    assert by_name["cut_amplifier"].plateau_kept.value < 0.15
    control = by_name["cut_amplifier/random_entries"]
    assert abs(control.loss_difference_nats.value) < 0.01
    assert control.control_of == "cut_amplifier"
    assert abs(control.plateau_kept.value - 1) < 0.01


@pytest.mark.embedded
def test_masking_takes_sinks_and_leaves_spikes(record):
    by_name = rows(record)
    assert by_name["mask_sinks"].sink_ratio_kept.value < 0.4
    assert abs(by_name["mask_sinks"].plateau_kept.value - 1) < 0.01
    assert abs(by_name["mask_sinks/random_keys"].sink_ratio_kept.value - 1) < 0.1


@pytest.mark.embedded
def test_what_was_found(record):
    assert rows(record)["baseline"].spike_tokens == pytest.approx(1.1, abs=0.15)
    assert rows(record)["cut_amplifier"].spike_tokens == 0
    assert (record.found["step_up_block"], record.found["step_down_block"]) == (24, 58)
    assert record.found["channels"] == [507]
    assert record.found["sink_positions"] == [0]
    assert (record.found["sequences"], record.found["same_context"]) == (6, 1 / 6)
    assert (record.found["edit_block"], record.found["attention_behind"]) == (24, 18)
    assert record.arrays["spike_states"].shape == (37, 576)
    assert record.arrays["spike_states"][0].argmax() == 507
    assert np.linalg.norm(record.arrays["direction"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.embedded
def test_a_row_that_does_not_apply_says_why_and_the_table_goes_on(record):
    assert not rows(record)["drop_bos"].applicable
    assert "BOS" in rows(record)["drop_bos"].reason
    assert rows(record)["drop_bos"].perplexity is None


@pytest.mark.embedded
def test_the_record_comes_back_from_disk(record, tmp_path):
    record.save(tmp_path)
    again = Interventions.read(tmp_path)
    assert again.model_dump() == record.model_dump()
    assert np.array_equal(again.arrays["spike_states"], record.arrays["spike_states"])
    # Earlier versions also recorded what not computing pinned tokens saved.
    content = json.loads((tmp_path / "interventions.json").read_text())
    older = {**content, "skipping": {"applicable": True, "layers": 16}}
    (tmp_path / "interventions.json").write_text(json.dumps(older))
    assert Interventions.read(tmp_path).model_dump() == record.model_dump()


def test_a_tiny_model_gets_the_whole_record():
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=130)
    steps = []
    record = dissociate(lively, ids, which="all", held_out=3, progress=lambda *step: steps.append(step))
    names = [row.name for row in record.interventions if row.control_of is None]
    assert names[0] == "baseline"
    assert names[1:] == [made.name for made in parse_which("all").interventions]
    base = rows(record)["baseline"].perplexity.value
    with torch.no_grad():
        assert base == pytest.approx(perplexity(lively(ids[:4]).logits, ids[:4]), rel=1e-3)
    assert record.quantisation.applicable
    assert {damage.kind for damage in record.quantisation.sites} >= {"down_proj", "kv", "weights"}
    assert record.quantisation.rotation_error < 1e-3
    assert [row.keep for row in record.kv_cache.table] == [None, 0, 1, 2, 4, 8, 4, 1, 2, 4, 8]
    assert [row.positions for row in record.kv_cache.table] == ["true"] * 7 + ["reassigned"] * 4
    true, reassigned = ({row.keep: row for row in record.kv_cache.table if row.positions == which and row.first == 0}
                        for which in ("true", "reassigned"))  # fmt: skip
    assert all(abs(true[keep].perplexity.value / reassigned[keep].perplexity.value - 1) > 1e-4 for keep in (1, 2, 4))
    assert (record.kv_cache.sequences, record.kv_cache.tokens) == (4, 130), "held-out sequences are not evaluated"
    assert record.recommendation.keep_sink_tokens == record.kv_cache.keep
    assert {stage for stage, _, _ in steps} >= {"interventions", "quantisation", "KV cache"}
    assert all(0 <= done <= total for _, done, total in steps)
    assert all(math.isfinite(row.perplexity.value) for row in record.interventions if row.applicable)
    record.to_json()


@pytest.mark.parametrize(("family", "beyond"), [("llama", True), ("gpt2", False)])
def test_the_cache_is_measured_beyond_the_models_positions_where_they_are_rotations(family, beyond):
    accessed = access(tiny(family, max_position_embeddings=100, n_positions=100))
    ids, long = token_ids(sequences=5, tokens=17), token_ids(sequences=2, tokens=130)
    if not beyond:
        with pytest.raises(InputError, match="beyond the model's 100 positions"):
            dissociate(accessed, ids, which="kv_cache", held_out=2, long_tokens=long)
        return
    with pytest.raises(InputError, match="which asks for no KV cache"):
        dissociate(accessed, ids, which="none", held_out=2, long_tokens=long)
    cache = dissociate(accessed, ids, which="kv_cache", held_out=2, long_tokens=long).kv_cache
    assert cache.tokens == 130 and {row.positions for row in cache.table} == {"true", "reassigned"}
    assert cache.note == (
        "No window of 128: it needs sequences of 256 tokens, these have 130. "
        "130 tokens are beyond the model's 100 positions: full attention and true positions go there, reassigned ones "
        "do not."
    )


@pytest.mark.parametrize(("family", "tokens"), [("llama", 140), ("gpt2", 100)])
def test_learned_positions_shorten_what_was_asked_for_and_rotations_do_not(family, tokens, monkeypatch):
    accessed = access(tiny(family, max_position_embeddings=100, n_positions=100))
    seen = []
    monkeypatch.setattr(
        Text, "read", lambda text, _, sequences, beyond: seen.append((text.seq_len, text.pack, sequences, beyond))
    )
    _long_tokens(Text(), accessed, 2, 140)
    assert seen == [(tokens, True, 2, family == "llama")]
    short = " ".join(
        f"No window of {window}: it needs sequences of {2 * window} tokens, these have 100." for window in (64, 128)
    )
    ends = " Sequences end with the model's 100 positions: it has no others."
    assert _note(accessed, 100) == short + (ends if family == "gpt2" else "")


def test_draws_are_kept_apart_and_paired():
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=21)
    by_name = rows(dissociate(lively, ids, which="zero_spikes", held_out=3, draws=3))
    control = by_name["zero_spikes/random_channels"]
    assert [draw.seed for draw in control.draws] == [1, 2, 3]
    assert len({draw.perplexity for draw in control.draws}) > 1
    mean = np.mean([math.log(draw.perplexity) for draw in control.draws])
    assert control.perplexity.value == pytest.approx(math.exp(mean))
    base = math.log(by_name["baseline"].perplexity.value)
    assert control.loss_difference_nats.value == pytest.approx(mean - base, abs=1e-9)


def test_spike_tokens_are_a_share_with_its_interval():
    """Four copies of BOS spike in front of every sequence."""
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=21)
    ids[:, 3] = 2
    by_name = rows(dissociate(lively, ids, which="repeat_bos", held_out=3, draws=1))
    before = (ids[:4] < MARKED).sum(1).numpy()
    kept = by_name["repeat_bos"].spike_tokens_kept
    assert kept.value == pytest.approx((before + 4).mean() / before.mean())
    drawn = np.random.default_rng(0).integers(0, 4, (2000, 4))
    resampled = (before + 4)[drawn].mean(1) / before[drawn].mean(1)
    assert (kept.low, kept.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])))
    assert kept.low < kept.value < kept.high


def test_of_no_sinks_nothing_is_a_share():
    """Nothing is 0 % of nothing: no share in any row, no chart of shares, and no answer."""
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=21)
    targets = replace(find(lively, ids[4:]), has_sinks=True, sink_positions=(0,))
    evaluator = Evaluator(access(lively), ids[:4], targets, FinishedPasses(), SinkCriteria(epsilon=0.999))
    chosen = [INTERVENTIONS[name] for name in ("zero_spikes", "mask_sinks_everywhere")]
    table = dissociation_rows(evaluator, chosen, 1)
    assert len(table) == 6 and all(row.applicable for row in table)
    assert {row.sink_ratio.value for row in table} == {0}
    assert {row.sink_ratio_kept for row in table} | {row.downstream_sink_ratio_kept for row in table} == {None}
    assert all(row.plateau_kept is not None for row in table)
    verdict = dissociation(table, has_spikes=True, has_sinks=True)
    assert {verdict.sinks_need_spikes.answer, verdict.spikes_need_sinks.answer} == {"undecided"}
    assert "no head behind the spikes sinks on the evaluated sequences" in verdict.sinks_need_spikes.reason
    assert "no head sinks on the evaluated sequences" in verdict.spikes_need_sinks.reason
    (dose,) = doses(evaluator, parse_dose(["shrink_spikes=10"]))
    assert (dose.stays_to, dose.falls_from) == (None, None) and "no head behind the spikes sinks" in dose.sentence
    made = dissociate(lively, ids, which="none", held_out=3).model_copy(update={"interventions": table, "dose": [dose]})
    assert [figure.name for figure in intervention_figures(made)] == ["interventions_cost"]
    dose_figure(dose)


def test_a_share_of_a_sparse_baseline_leaves_out_resamples_without_it():
    sparse = [0.0] * 7 + [0.5]
    assert estimate(share, sparse, sparse) == Estimate(value=1, low=1, high=1)


def test_controls_are_not_left_out():
    with pytest.raises(InputError, match="draws is 0; expected at least 1"):
        dissociate(spiking(), token_ids(sequences=7, tokens=21), which="zero_spikes", draws=0)


def test_a_sweep_says_where_the_other_stays_and_falls():
    """Attention of a random model is nearly uniform, and then the first keys are sinks, whatever spikes."""
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=21)
    asked = ["shrink_spikes=1,4,1000", "mask_sinks_everywhere=0,1"]
    targets = replace(find(lively, ids[4:]), has_sinks=True, sink_positions=(0,))
    evaluator = Evaluator(access(lively), ids[:4], targets, FinishedPasses(), SinkCriteria(epsilon=0.1))
    spikes, sinks = doses(evaluator, parse_dose(asked))
    assert [(row.name, row.strength) for row in spikes.levels] == [
        ("shrink_spikes", 1),
        *((f"shrink_spikes{control}", k) for k in (4, 1000) for control in ("", "/random_tokens", "/random_blocks")),
    ]
    by_level = {row.strength: row for row in spikes.levels if row.control_of is None}
    base = by_level[1]
    assert base.loss_difference_nats.value == 0 and base.plateau_kept.value == 1
    # The one block writes next to all of the spike, in one channel.
    assert by_level[4].plateau_kept.value == pytest.approx(1 / 4, rel=0.02)
    assert by_level[4].norm_ratio.value == pytest.approx(base.norm_ratio.value / 4, rel=0.02)
    control = next(row for row in spikes.levels if row.name.endswith("random_tokens"))
    assert control.norm_ratio.value == pytest.approx(base.norm_ratio.value, rel=0.02)
    assert (spikes.stays_to, sinks.stays_to) == (1000, 1), "neither needs the other in this model"
    assert "Up to a divisor of 1000 the sinks stay" in spikes.sentence and "last level tried" in spikes.sentence
    assert "but no level removes the sinks" in sinks.sentence, "others of these keys take their place"
    # The first level changes nothing: that sinks stay there says nothing.
    gone = Estimate(value=0.1, low=0, high=0.2)
    made = INTERVENTIONS["shrink_spikes"]
    levels = [
        row.model_copy(update={"downstream_sink_ratio_kept": gone}) if row.strength == 4 else row
        for row in spikes.levels
    ]
    sentence = judged(made, levels).sentence
    assert sentence.startswith("At no level tried do the sinks stay (the weakest, a divisor of 4: 10% [0%, 20%] of")


def test_a_sweep_without_sinks_is_refused_and_an_unknown_one_named():
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=21)
    (dose,) = dissociate(lively, ids, which="none", dose=["mask_sinks"], held_out=3).dose
    assert (dose.applicable, dose.reason, dose.levels) == (False, "the model has no sinks", [])
    for wrong in ("shrink_spike", "freeze_spikes", "mask_sinks=0,2", "mask_sinks=some"):
        with pytest.raises(InputError, match=r"shrink_spikes|without a strength|expected 0 to 1|numbers with commas"):
            parse_dose([wrong])


def test_rows_with_other_targets_have_their_own_reference():
    ids = token_ids(sequences=7, tokens=21)
    ids[:, 0] = 1
    model = tiny("llama")
    by_name = rows(dissociate(model, ids, which="drop_bos,repeat_bos", held_out=3, draws=1))
    with torch.no_grad():
        logits = model(ids[:4]).logits
        without = model(ids[:4, 1:]).logits
    full = math.log(perplexity(logits[:, 1:], ids[:4, 1:]))
    assert by_name["drop_bos"].loss_difference_nats.value == pytest.approx(
        math.log(perplexity(without, ids[:4, 1:])) - full, abs=1e-4
    )


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    from spikesink.analyse import evaluation

    real, count = evaluation.evaluate, []

    def stopping(*args, **options):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=7, tokens=21)
    options = {"which": "zero_spikes,freeze_spikes", "held_out": 3, "draws": 1}
    monkeypatch.setattr(evaluation, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        dissociate(lively, ids, **options, folder=tmp_path)
    resumed = dissociate(lively, ids, **options, folder=tmp_path)
    assert len(count) == 1 + 7
    whole = dissociate(lively, ids, **options)
    assert resumed.model_dump(exclude={"timing", "provenance"}) == whole.model_dump(exclude={"timing", "provenance"})


def test_names():
    assert [made.name for made in parse_which("zero-spikes, mask_sinks").interventions] == ["zero_spikes", "mask_sinks"]
    assert parse_which("zero_spikes").parts == ()
    assert parse_which(None).parts == ("quantisation", "kv_cache")
    assert {made.edits for made in parse_which("sinks").interventions} == {"sinks"}
    with pytest.raises(InputError, match="did you mean 'zero_spikes'"):
        parse_which("zero_spike")
    with pytest.raises(InputError, match="did you mean 'quantisation'"):
        parse_which("quantization")


def test_held_out_sequences_are_the_last_and_at_most_half():
    ids = np.arange(40).reshape(10, 4)
    evaluated, held_out = split(Tokens.from_ids(ids), 3)
    assert evaluated.tolist() == ids[:7].tolist()
    assert held_out.tolist() == ids[7:].tolist()
    assert [len(part) for part in split(Tokens.from_ids(ids), 16)] == [5, 5]
    with pytest.raises(InputError, match="at least 4"):
        split(Tokens.from_ids(ids[:3]), 1)


def test_constants_are_means_over_the_held_out_tokens():
    lively, ids = spiking(num_hidden_layers=4), token_ids(sequences=5, tokens=21)
    accessed = access(lively)
    targets = find(accessed, ids)
    assert targets.has_spikes
    assert 3 in targets.channels
    with torch.no_grad():
        hidden = lively(ids, output_hidden_states=True).hidden_states[targets.edit_block // 2]
    spikes = (hidden[..., list(targets.channels)].abs() >= targets.magnitude_min).any(-1)
    assert targets.spike_tokens == int(spikes.sum())
    assert torch.allclose(targets.spike_states[targets.edit_block], hidden[spikes].mean(0), rtol=1e-3, atol=1e-2)
    assert int(ids.max()) < VOCAB


def quiet(family):
    """A tiny model whose random weights are too small for spikes."""
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(6.0)
    return model


def add(module, position, channel, size):
    """Let a module add to what it writes at these positions."""

    def hook(_module, _arguments, output):
        written = (output[0] if isinstance(output, tuple) else output).clone()
        written[:, position, channel] += size
        return (written, *output[1:]) if isinstance(output, tuple) else written

    module.register_forward_hook(hook)


def test_a_spike_that_attention_of_a_parallel_layer_writes():
    """There is no residual behind attention alone: constants are those behind the layer, by its own output."""
    model, ids = quiet("gpt_neox"), token_ids(8, 24)
    add(model.gpt_neox.layers[0].attention, 0, 3, 500.0)
    after = []
    keep = model.gpt_neox.layers[0].register_forward_hook(lambda *given: after.append(given[2].clone()))
    with torch.no_grad():
        model(ids)
    keep.remove()
    accessed = access(model)
    targets = find(accessed, ids)
    assert (targets.step_up_block, targets.edit_block, targets.channels, targets.spike_tokens) == (1, 2, (3,), 8)
    assert torch.allclose(targets.spike_states[2], after[0][:, 0].mean(0), rtol=1e-4, atol=1e-4)
    assert targets.magnitude_min == pytest.approx(0.1 * float(after[0].abs().max()))
    by_name = rows(dissociate(accessed, ids, which="zero_spikes,cut_amplifier", held_out=4))
    assert by_name["zero_spikes"].spike_tokens == 0
    assert "not by an FFN" in by_name["cut_amplifier"].reason


def test_without_step_blocks_the_verdict_says_where_spikes_are():
    """Post-norm: no steps. The last block gives every token 3,000 in one channel: the largest, and no spike."""
    model, ids = quiet("opt-post-norm"), token_ids(8, 24)
    layers = model.model.decoder.layers
    add(layers[0].final_layer_norm, 0, 3, 500.0)
    add(layers[-1].final_layer_norm, slice(None), 11, 3000.0)
    accessed = access(model)
    summary, targets = scan(accessed, ids).summary, find(accessed, ids)
    assert (summary.spike_block, summary.spike_channels, summary.step_up_blocks) == (6, [3], [])
    assert (targets.edit_block, targets.channels, targets.spike_tokens) == (2, (3,), 8)


def test_a_magnitude_that_no_token_reaches_has_no_amplifier():
    accessed, ids = access(spiking()), token_ids(8, 40)
    ids[:, 0], ids[:, 1:] = 2, ids[:, 1:].clamp(min=MARKED)
    assert find(accessed, ids).amplifier == ((3, 0),)
    targets = find(accessed, ids, magnitude=1e6)
    assert (targets.spike_tokens, targets.amplifier) == (0, ())
    with pytest.raises(DoesNotApplyError, match="no entries of W_down"):
        INTERVENTIONS["cut_amplifier"](accessed, targets)


def test_spike_tokens_are_counted_by_their_contexts():
    """The same token in front of every sequence is one context, whatever follows; another in front is a second."""
    accessed, ids = access(spiking(num_hidden_layers=4)), token_ids(sequences=6, tokens=11) % (VOCAB - MARKED) + MARKED
    ids[:, 0] = 1
    found = find(accessed, ids)
    assert (found.spike_tokens, found.same_context) == (6, 1)
    ids[4, 0] = 2
    assert find(accessed, ids).same_context == pytest.approx(5 / 6)
    ids[4, 0], ids[2, 5] = 1, 1
    found = find(accessed, ids)
    assert (found.spike_tokens, found.same_context) == (7, 6 / 7)


def test_layers_that_are_taken_over_change_no_row(monkeypatch):
    """Every intervention and control says truly from where on it changes the model."""
    lively, ids = spiking(num_hidden_layers=3), token_ids(sequences=5, tokens=17)
    first, second, *others = lively.model.layers
    with torch.no_grad():
        for matrix in (second.self_attn.o_proj, second.mlp.down_proj):
            matrix.weight[7] = 0
    lively.model.layers = torch.nn.ModuleList([second, first, *others])
    options = {"which": "spikes,sinks,quantisation", "held_out": 3, "draws": 4}
    taken = dissociate(lively, ids, **options)
    assert taken.found["edit_block"] == 4
    monkeypatch.setattr("spikesink.access.prefix.MAX_BYTES", 0)
    computed = dissociate(lively, ids, **options)
    assert taken.model_dump(exclude={"timing"}) == computed.model_dump(exclude={"timing"})


def test_an_edit_behind_the_last_attention_block_says_nothing_about_sinks():
    """All sinks are left then, whatever sinks need: models whose last FFN completes the spike."""
    evaluator = SimpleNamespace(targets=SimpleNamespace(has_spikes=True, edit_block=8, attention_behind=0))
    told = {
        name: _cannot_answer(
            evaluator,  # type: ignore[arg-type]
            {"name": name, "control_of": None},
            SimpleNamespace(spike_tokens=[2.0], downstream_ratios=[], sink_ratios=[0.5]),  # type: ignore[arg-type]
        )
        for name in ("shrink_spikes", "mask_sinks_everywhere")
    }
    assert str(told["shrink_spikes"]).startswith("no attention block stands behind block 8 (layer 3, FFN)")
    assert told["mask_sinks_everywhere"] is None
