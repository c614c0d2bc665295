"""The anatomy measures through `scan`: every family, refusals, records, the embedded model's facts, the summary."""

import io
import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from naive import naive
from rich.console import Console
from tiny import FAMILIES, VARIANTS, spiking, tiny, token_ids

from spikesink import measures, scan
from spikesink.access import access, full_batch, observing, run
from spikesink.access.gated_ffn import gated_ffns
from spikesink.access.norm_weights import input_norm
from spikesink.access.rotary import unrotating
from spikesink.access.weights import key_projection, output_projection, probe
from spikesink.analyse.anatomy import geometry, heads, properties, trigger
from spikesink.analyse.anatomy.geometry import KeyParts
from spikesink.analyse.passes import Criteria, Pass, Scan, run_together
from spikesink.analyse.scan import measure
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.measure.amplifier import rank_one, spectrum
from spikesink.measure.sink_tokens import SinkTokens
from spikesink.measure.statistics import rank_correlation
from spikesink.records import Anatomy, NotApplicable, Section
from spikesink.report.terminal import print_record

UNGATED = dict.fromkeys(("gpt2", "gpt_neox", "gptj", "opt", "opt-post-norm", "gpt_neox-sequential"), "not gated") | {
    "gpt_oss": "linear term",
    "phi": "not gated",
    "stablelm-parallel": "linear terms",
}


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_every_measure_runs_or_says_why_on_every_family(family, tmp_path):
    accessed = access(tiny(family))
    record = scan(accessed, token_ids(sequences=5, tokens=17), epsilon=0.1, measures=("all",))
    json.loads(record.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert list(record.model_extra) == list(measures.BUILT_IN)
    if family in UNGATED:
        assert not record.amplifier.applicable
        assert UNGATED[family] in record.amplifier.reason
    else:
        assert [block.block for block in record.amplifier.blocks] == [2, 4, 6]
        for block in record.amplifier.blocks:
            assert block.channels[0].channel == record.summary.spike_channel
            magnitudes = np.abs(block.channels[0].eigenvalues)
            assert (np.diff(magnitudes) <= 1e-9).all()
            ffns = gated_ffns(accessed, block.block)
            chosen = next(ffn for ffn in ffns if ffn.expert == block.channels[0].expert)
            row = int(np.nonzero(
                (record.arrays["amplifier.blocks"] == block.block)
                & (record.arrays["amplifier.experts"] == (-2 if chosen.expert is None else chosen.expert))
            )[0][0])  # fmt: skip
            stored = record.arrays["amplifier.norms"][row, record.summary.spike_channel]
            assert block.channels[0].frobenius == pytest.approx(float(stored), rel=1e-5)
    assert record.trigger.probe.items == 97
    assert isinstance(record.normalisation, NotApplicable)
    assert "no spike" in record.normalisation.reason
    record.save(tmp_path / "run")
    again = Anatomy.read(tmp_path / "run")
    assert {n: type(s) for n, s in again.model_extra.items()} == {n: type(s) for n, s in record.model_extra.items()}
    assert again.to_json() == record.to_json()


def test_names_are_checked_before_anything_runs():
    assert measures.parse_names("amplifier, trigger") == ("amplifier", "trigger")
    with pytest.raises(InputError, match="did you mean 'amplifier'"):
        measures.parse_names("amplifer")


def test_a_measure_that_does_not_apply_leaves_the_others(monkeypatch):
    def refuse(_scanned, _progress):
        raise DoesNotApplyError("no such thing")

    monkeypatch.setitem(measures._REGISTERED, "trigger", measures.Measure("trigger", "?", refuse))
    record = scan(access(tiny("llama")), token_ids(), measures=("trigger", "amplifier"))
    assert (record.trigger.applicable, record.trigger.reason) == (False, "no such thing")
    assert record.amplifier.applicable


def test_a_new_measure_takes_a_section_and_a_line(monkeypatch, tmp_path):
    class Reach(Section):
        section: ClassVar[str | None] = "reach"
        tokens: int

    def measure_reach(scanned, _progress):
        return Reach(tokens=scanned.ids.numel()), {"ids": scanned.ids.numpy()}

    monkeypatch.setitem(measures._REGISTERED, "reach", measures.Measure("reach", "?", measure_reach))
    record = scan(access(tiny("llama")), token_ids(), measures=("reach",))
    record.save(tmp_path / "run")
    again = Anatomy.read(tmp_path / "run")
    assert isinstance(again.reach, Reach)
    assert again.reach.tokens == 39
    assert again.arrays["reach.ids"].shape == (3, 13)
    stream = io.StringIO()
    print_record(record, Console(file=stream, width=80, highlight=False))
    assert "Reach" in stream.getvalue()
    del Section.known["reach"]


def test_measures_share_one_pass_and_find_what_each_finds_alone(monkeypatch):
    accessed, ids = access(spiking(num_hidden_layers=4)), token_ids(sequences=7, tokens=17)
    first = torch.zeros(7, 17, dtype=torch.bool)
    first[:, 0] = True
    for module in (geometry, heads, properties):
        monkeypatch.setattr(module, "sink_tokens", lambda _: SinkTokens(first, first.int(), 0.3, 1))
    replayed = []
    replay = Scan.replay
    monkeypatch.setattr(Scan, "replay", lambda *args: (replayed.append(args[1]), replay(*args)))
    every = scan(accessed, ids, epsilon=0.1, measures=("all",))
    assert len(replayed) == 1
    applicable = 0
    for name in measures.BUILT_IN:
        alone = scan(accessed, ids, epsilon=0.1, measures=(name,))
        section = every.model_extra[name]
        assert section.model_dump() == alone.model_extra[name].model_dump()
        applicable += section.applicable
        for key, array in alone.arrays.items():
            np.testing.assert_array_equal(array, every.arrays[key])
    assert applicable == 6 and len(replayed) == 6


def test_passes_over_other_sequences_are_made_apart_and_a_failure_closes_all():
    scanned, _ = measure(access(tiny("llama")), token_ids(sequences=5, tokens=7), Criteria())
    seen, closed = {}, []

    class Count:
        def __init__(self, name):
            self.name = name

        def on_batch(self, batch):
            seen.setdefault(self.name, []).append(len(batch.ids))

    def steps(name, *rows):
        try:
            for one in rows:
                yield Pass([Count(name)], one)
            return sum(seen[name])
        finally:
            closed.append(name)

    running = {"one": steps("one", slice(3)), "other": steps("other", torch.tensor([0, 1, 2]), slice(None))}
    stages = []
    assert run_together(scanned, running, lambda *said: stages.append(said)) == {"one": 3, "other": 8}
    assert [said for said in stages if said[1] == said[2]] == [("measures", 3, 3), ("measures", 5, 5)]

    def fails():
        yield Pass([])
        raise RuntimeError("made to fail")

    with pytest.raises(RuntimeError, match="made to fail"):
        run_together(scanned, {"fails": fails(), "left": steps("left", slice(1))}, lambda *_: None)
    assert closed == ["one", "other", "left"]


def test_without_sinks_the_sink_measures_do_not_apply():
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    record = scan(access(model), token_ids(tokens=40), measures=("heads", "geometry"))
    for section in (record.heads, record.geometry):
        assert not section.applicable
        assert "attention sink" in section.reason


def test_the_loss_effect_is_the_direct_path(monkeypatch):
    """Against eager attention maps: the sink's part of one head, taken out of the last residual."""
    accessed = access(tiny("granite"))
    ids = token_ids(sequences=3, tokens=9)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, 0] = mask[2, 3] = True
    scanned, _ = measure(accessed, ids, Criteria())
    seen = probe(accessed)
    projections = {block: output_projection(accessed, block, seen)[0] for block in (1, 3, 5)}
    sinks = SinkTokens(mask, mask.int(), 0.3, 1)
    monkeypatch.setattr(heads, "TOKENS_AT_ONCE", 5)
    losses = heads.LossEffects(scanned, sinks, seen, projections)
    scanned.replay([losses.parts], "again", lambda *_: None)
    effects, test = losses.measure(lambda *_: None)
    reference = naive(accessed.model, "granite", ids)
    chosen = [(b, t) for b in range(3) for t in range(1, 8) if not mask[b, t]]
    assert test.tokens == len(chosen)
    assert test.sink_nats.value == pytest.approx(np.mean([effect.value for effect in effects.values()]))
    model = accessed.model
    for block, head in ((1, 0), (3, 3), (5, 2)):
        layer = model.model.layers[block // 2]
        norm = input_norm(accessed, block)
        hidden = (
            reference.residuals[block - 1]
            if block > 1
            else model.model.embed_tokens(ids) * model.config.embedding_multiplier
        )
        with torch.no_grad():
            value = layer.self_attn.v_proj(norm(hidden) * layer.input_layernorm.weight)
            rise = 0.0
            for b, t in chosen:
                weights = reference.attention[block // 2][b, head, t]
                part = sum(
                    weights[k] * value[b, k, (head // 2) * 6 : (head // 2 + 1) * 6] for k in range(9) if mask[b, k]
                )
                write = 0.6 * layer.self_attn.o_proj.weight[:, head * 6 : (head + 1) * 6] @ part
                final = reference.residuals[6][b, t]
                losses = [
                    -float((model.lm_head(model.model.norm(state)) / 2.0).log_softmax(-1)[ids[b, t + 1]])
                    for state in (final - write, final)
                ]
                rise += losses[0] - losses[1]
        assert effects[block, head].value == pytest.approx(rise / len(chosen), rel=1e-3, abs=1e-5)


def test_the_implicit_parameter_and_its_two_controls_by_hand():
    """The mean over all other prompts against each spike token: at the spike block, before the step-up, and without
    the spike's channel."""
    accessed, ids = access(spiking(num_hidden_layers=4)), token_ids(sequences=7, tokens=17)
    record = scan(accessed, ids, measures=("normalisation",))
    implicit, reference = record.normalisation.implicit, naive(accessed.model, "llama", ids)
    places = [(token.sequence, token.position) for token in record.summary.spike_tokens]
    (channel,) = record.summary.spike_channels
    assert (implicit.block, implicit.before_block) == (record.summary.spike_block, 1)
    assert len({sequence for sequence, _ in places}) == implicit.prompts_spike >= 3

    def explained(block, without=()):
        hidden = reference.residuals[block].double()
        normed = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        normed[..., list(without)] = 0.0
        wrong = total = 0.0
        for sequence, position in places:
            own = normed[sequence, position]
            others = [normed[s, p] for s, p in places if s != sequence]
            wrong += float((own - torch.stack(others).mean(0)).square().sum())
            total += float(own.square().sum())
        return 1 - wrong / total

    assert implicit.explained_spike == pytest.approx(explained(implicit.block), abs=1e-4)
    assert implicit.explained_spike_before == pytest.approx(explained(1), abs=1e-4)
    assert implicit.explained_spike_without_channels == pytest.approx(explained(implicit.block, [channel]), abs=1e-4)
    assert implicit.explained_spike > 0.9 > implicit.explained_spike_before


@pytest.mark.parametrize(("family", "refused"), [("llama", None), ("qwen3", "where keys are normed")])
def test_keys_are_taken_apart_between_the_steps_or_it_says_why(family, refused):
    """Rotation undone, every column of W_K together is the key."""
    accessed, ids = access(tiny(family)), token_ids(sequences=3, tokens=13)
    rows, positions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 4, 2, 7, 12])
    is_spike = np.array([True, False, True, False, False])
    steps = SimpleNamespace(step_up=[2], step_down=[6])
    parts = KeyParts(SimpleNamespace(accessed=accessed, steps=steps), rows, positions, is_spike, is_spike)
    keys = {}
    with unrotating(accessed) as rotary:

        class Keys:
            def on_attention(self, inputs):
                keys[inputs.block] = rotary.unrotated(inputs)[1].transpose(1, 2)[rows, positions]

        with observing(accessed, [parts.entering, Keys()]):
            run(accessed, full_batch(ids))
    measured = parts.measure(keys)
    if refused:
        assert refused in measured["key_parts_reason"]
        return
    assert [(part.block, part.n, part.n_other) for part in measured["key_parts"]] == [(3, 2, 3), (5, 2, 3)]
    reference = naive(accessed.model, family, ids).residuals
    for part in measured["key_parts"]:
        entering = reference[part.block - 1][rows[is_spike], positions[is_spike]].float()
        normed = input_norm(accessed, part.block)(entering)
        weight, _ = key_projection(accessed, part.block, 12)
        energies = [float((normed[:, c, None] * weight[:, c]).square().sum()) for c in range(24)]
        assert part.channels[0] == int(np.argmax(energies))
        alone = normed[:, part.channels[0], None] * weight[:, part.channels[0]]
        left = (normed @ weight.T - alone).square().sum() / (normed @ weight.T).square().sum()
        assert part.explained[0] == pytest.approx(1 - float(left), abs=1e-4)


def test_a_norm_on_the_output_has_no_direct_effect(monkeypatch):
    # Untrained weights have no sinks: the first tokens are taken for them, so that the section applies.
    first = torch.zeros(6, 40, dtype=torch.bool)
    first[:, 0] = True
    monkeypatch.setattr(heads, "sink_tokens", lambda _: SinkTokens(first, first.int(), 0.3, 1))
    accessed = access(tiny("gemma2"))
    record = scan(accessed, token_ids(sequences=6, tokens=40), epsilon=0.05, measures=("heads",))
    assert "norm follows" in record.heads.loss_reason
    assert record.heads.heads[0].write_norm > 0


@pytest.fixture(scope="module")
def anatomy(embedded, golden_ids):
    """All measures on 8 sequences, the probe on a few items."""
    patch = pytest.MonkeyPatch()
    items = np.concatenate([np.arange(0, 49152, 600), [2790, 4424, 14379]])
    plain = trigger.probe_vocabulary
    patch.setattr(trigger, "probe_vocabulary", lambda accessed, block, progress: plain(accessed, block, items))
    patch.setattr(heads, "PRODUCTS", 1e10)
    patch.setattr(heads, "TESTED_TOKENS", 48)
    yield scan(embedded, golden_ids[:8], measures=("all",))
    patch.undo()


@pytest.mark.embedded
def test_the_amplifier_of_the_embedded_model(anatomy):
    section = anatomy.amplifier
    norms = {block.block: block.channels[0] for block in section.blocks}
    assert {channel.channel for channel in norms.values()} == {507}
    assert max(norms, key=lambda block: norms[block].frobenius) == 58
    assert norms[58].frobenius == pytest.approx(696, abs=1)
    assert norms[24].frobenius == pytest.approx(152, abs=1)
    assert norms[58].eigenvalues[:2] == pytest.approx([-594, 103], abs=1)
    assert norms[58].rank == norms[24].rank == 0
    assert {24, 58} <= set(section.outlier_blocks)
    assert section.outliers[0].channel == 507
    steps = {(step.block, step.channel): step for step in section.steps}
    for block in (24, 58):
        step = steps[block, 507]
        assert step.rank_one_first.n == 8
        assert step.rank_one_first.ratio == pytest.approx(1.0, abs=0.1)
        assert step.alignment_spike > 2 * step.alignment_other
        # Away from spike tokens the rank-one form says nothing.
        assert not 0.5 < step.rank_one_other.ratio < 2
    assert steps[58, 507].share_of_spectrum > 0.9
    shared = {row.block: row for row in section.directions}
    assert shared[58].mean_cosine > 0.99 > shared[58].control_cosine


@pytest.mark.embedded
def test_the_prediction_at_position_0_against_the_captured_write(embedded, golden_ids):
    """lambda* d cos^2 against what the block writes into the residual stream, token by token."""

    class Keep:
        def on_residual(self, block, hidden):
            if block in (23, 57):
                self.__dict__[f"before_{block + 1}"] = hidden[:, 0].clone()

        def on_write(self, block, write):
            if block in (24, 58):
                self.__dict__[f"write_{block}"] = write[:, 0, 507].clone()

    keep = Keep()
    with observing(embedded, [keep]):
        run(embedded, full_batch(golden_ids[:8]))
    for block in (24, 58):
        hidden = input_norm(embedded, block)(keep.__dict__[f"before_{block}"])
        assert hidden.norm(dim=-1).square() == pytest.approx(torch.full((8,), 576.0), rel=1e-3)
        (ffn,) = gated_ffns(embedded, block)
        values, vectors = spectrum(ffn, 507)
        predicted = rank_one(float(values[0]), torch.from_numpy(vectors[0]).float(), hidden)
        assert float(predicted.mean() / keep.__dict__[f"write_{block}"].mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.embedded
def test_the_trigger_of_the_embedded_model(anatomy):
    probed = anatomy.trigger.probe
    assert probed.block == 24
    assert {item.token_id for item in probed.exceptions} >= {2790, 4424, 14379}
    counts = {count.criterion: count for count in probed.counts}
    # The median of ordinary text, not of the spike token itself.
    assert counts["sun2024"].threshold == pytest.approx(1000 * probed.ordinary_median)
    assert 1 < probed.ordinary_median < 5
    assert counts["absolute_1000"].first_count == probed.items - 3
    assert counts["absolute_1000"].later_ratio < 0.05
    last = anatomy.trigger.first_token_map.blocks[-1]
    assert last.block == 23
    assert last.after_first > 0.4 > 0.1 > last.after_later
    assert last.map_gain > last.map_gain_random
    first = {row.name: row for row in anatomy.trigger.self_sinking[0].classes}["first"]
    assert first.self_attention.value == pytest.approx(1.0)
    assert first.tokens == 8


@pytest.mark.embedded
def test_the_norms_and_properties_of_the_embedded_model(anatomy):
    blocks = {block.block: block for block in anatomy.normalisation.blocks}
    assert blocks[24].spike.energy_share > 0.9 > 0.5 > blocks[24].other.energy_share
    assert blocks[24].spike.cosine_across > 0.99 > 0.8 > blocks[24].other.cosine_across
    assert blocks[22].spike.cosine_across < 0.95
    assert blocks[40].spike.persistence > 0.999
    assert blocks[24].spike.bound <= 1.0
    assert anatomy.normalisation.implicit.explained_spike > 0.99
    assert anatomy.normalisation.implicit.explained_other < 0.8
    assert anatomy.normalisation.implicit.distinct_spike_tokens > 1
    assert [row.holds for row in anatomy.properties.properties[:4]] == [True, True, True, True]
    both = anatomy.properties.overlap
    assert both.n == 8 * 32
    assert both.spikes >= 8 <= both.sinks
    assert both.jaccard > 10 * both.chance_jaccard
    assert both.p_value < 0.01


@pytest.mark.embedded
def test_heads_and_geometry_of_the_embedded_model(anatomy, embedded, golden_ids):
    heads = {(head.block, head.head): head for head in anatomy.heads.heads}
    assert len(heads) == 270
    maps = eager_maps(embedded, golden_ids[:8])
    tokens, mass = naive_sinks(maps, anatomy.heads.sink_tokens)
    curve = anatomy.properties.overlap_curve
    assert [row.heads_min for row in curve] == [1, 3, 9, 27, 54]
    for row in curve:
        rule = anatomy.heads.sink_tokens.model_copy(update={"heads_min": row.heads_min})
        assert row.sinks == naive_sinks(maps, rule)[0]
    assert curve[1].jaccard == anatomy.properties.overlap.jaccard
    assert curve[-1].recall > curve[0].recall
    first, later = (
        np.median([rank.rank for key in anatomy.geometry.keys if (rank := getattr(key, name)) is not None])
        for name in ("first", "later")
    )
    assert first < 1.5 < 2 < later, "sinks on the first token have one key, others their own"
    assert anatomy.heads.sink_tokens.tokens == tokens >= 8
    for (block, head), trace in heads.items():
        assert trace.sink_mass == pytest.approx(float(mass[block // 2, head]), abs=1e-4)
    assert anatomy.heads.loss_tokens == 32
    correlation = {row.other: row for row in anatomy.heads.correlations}
    assert correlation["entropy_nats"].over_heads.high < 0
    gaps = {(gap.block, gap.head): gap for gap in anatomy.geometry.gaps}
    for gap in gaps.values():
        assert gap.gap == pytest.approx(gap.content + gap.distance, abs=1e-9)
    sinks, others = ([g.gap for g in gaps.values() if g.is_sink is kind] for kind in (True, False))
    assert np.mean(sinks) > np.mean(others) + 1
    largest = maps.mean(3)[..., : maps.shape[-1] // 2].amax(-1).double().mean(1)
    pairs = [(gap.gap, float(largest[gap.block // 2, gap.head]), gap.block) for gap in gaps.values()]
    over_layers = rank_correlation(*map(np.array, zip(*pairs, strict=True)))
    assert anatomy.geometry.gap_and_sink.model_dump() == pytest.approx(over_layers.model_dump(), abs=1e-3)
    ranks = np.array([(key.rank_spike, key.rank_other, key.separability) for key in anatomy.geometry.keys])
    assert np.median(ranks[:, 0]) < 0.4 * np.median(ranks[:, 1])
    for plane in anatomy.geometry.planes:
        points, kinds = (anatomy.arrays[f"geometry.{plane.name}_{part}"] for part in ("points", "kinds"))
        assert points.shape == (len(kinds), 2)
        assert set(kinds.tolist()) == {0, 1, 2}
    points, kinds = anatomy.arrays["geometry.head_points"], anatomy.arrays["geometry.head_kinds"]
    assert points.shape == (30, 9, len(kinds), 2) and kinds.tolist() == sorted(kinds.tolist())
    assert np.abs(points.mean(2)).max() < 1e-3 * np.abs(points).max()
    spread = points.std(2)
    assert (spread[..., 0] >= spread[..., 1]).all()
    assert ((anatomy.arrays["geometry.head_explained"] > 0) & (anatomy.arrays["geometry.head_explained"] <= 1)).all()


def test_every_head_has_its_own_plane():
    """Queries of the head, keys of the KV head that it shares; 24 of each kind at most, spread over all."""
    generator = np.random.default_rng(0)
    is_sink = np.arange(40) < 7
    watch = SimpleNamespace(
        queries={block: torch.from_numpy(generator.normal(size=(40, 6, 5))) for block in (1, 3)},
        keys={block: torch.from_numpy(generator.normal(size=(40, 2, 5))) for block in (1, 3)},
    )
    arrays = geometry._head_planes(watch, SimpleNamespace(is_sink=is_sink))
    assert arrays["head_blocks"].tolist() == [1, 3]
    assert arrays["head_kinds"].tolist() == [0] * 24 + [1] * 7 + [2] * 24
    others = 7 + np.linspace(0, 32, 24).astype(int)
    for row, block in enumerate((1, 3)):
        for head in range(6):
            queries, keys = watch.queries[block][:, head].numpy(), watch.keys[block][:, head // 3].numpy()
            vectors = np.concatenate([queries[others], keys[:7], keys[others]])
            centred = vectors - vectors.mean(0)
            energy = np.linalg.svd(centred, compute_uv=False) ** 2
            assert arrays["head_explained"][row, head] == pytest.approx(energy[:2].sum() / energy.sum(), rel=1e-5)
            drawn = arrays["head_points"][row, head].astype(float)
            assert np.square(drawn).sum(0) == pytest.approx(energy[:2], rel=1e-4)


def eager_maps(embedded, ids):
    """The model's own attention maps (layer, sequence, head, query, key)."""
    model = embedded.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(model(input_ids=ids, output_attentions=True, use_cache=False).attentions)
    model.set_attn_implementation(before)
    return maps


def naive_sinks(maps, rule):
    """Number of sink tokens, and attention of other queries on them (layer, head)."""
    above = maps.mean(3) > rule.importance_min
    above[..., maps.shape[-1] // 2 :] = False
    sinks = above.sum((0, 2)) >= rule.heads_min
    assert bool(sinks[:, 0].all())
    on_sinks = (maps * sinks[None, :, None, None]).sum(-1)
    counted = (~sinks).double()
    return int(sinks.sum()), (on_sinks * counted[None, :, None]).sum((1, 3)) / counted.sum()


@pytest.mark.embedded
def test_the_summary_shows_every_measure_within_80_columns(anatomy):
    stream = io.StringIO()
    print_record(anatomy, Console(file=stream, width=80, highlight=False))
    text = stream.getvalue()
    for name in ("Amplifier", "Trigger", "Normalisation", "Geometry", "Heads", "properties"):
        assert name in text
    assert "λ* in block 58 (layer 28, FFN): -593.6" in " ".join(text.replace("│", " ").split())
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_summary_shows_refusals():
    record = scan(access(tiny("gpt2")), token_ids(), measures=("amplifier", "normalisation"))
    stream = io.StringIO()
    print_record(record, Console(file=stream, width=80, highlight=False))
    assert "Does not apply" in stream.getvalue()
    assert "not gated" in " ".join(stream.getvalue().split())
